"""The packaged photos and golden images: free, small, as credited, and degraded the same way every time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gamma_export.photos import (
    VERIFICATION_COPIES,
    degraded,
    packaged_golden,
    packaged_photos,
    verification_set,
)
from gamma_runtime.errors import InputError, UsageError

FREE = {"CC0-1.0", "public domain", "CC-BY-2.0", "CC-BY-4.0"}


def _records(folder: str) -> list[dict[str, Any]]:
    home = packaged_photos()[0].parents[1] / folder
    records: list[dict[str, Any]] = json.loads((home / f"{folder}.json").read_text())
    return records


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    pixels = cv2.imread(str(packaged_photos()[10]))
    return np.ascontiguousarray(pixels[:240, :300, ::-1])


def _detail(pixels: np.ndarray) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def test_sixteen_photos_within_three_megabytes() -> None:
    photos = packaged_photos()
    assert len(photos) == 16
    assert sum(path.stat().st_size for path in photos) <= 3_000_000
    shapes = [cv2.imread(str(path)).shape for path in photos]
    assert all(384 <= min(height, width) <= 512 for height, width, _ in shapes)
    assert len({round(width / height, 1) for height, width, _ in shapes}) >= 5


def test_photos_carry_no_metadata() -> None:
    for path in packaged_photos():
        content = path.read_bytes()
        assert content[:4] == b"\xff\xd8\xff\xe0", path.name  # JFIF first
        assert b"Exif" not in content, path.name
        assert b"http" not in content, path.name


@pytest.mark.parametrize(("folder", "files"), [("photos", packaged_photos()), ("golden", packaged_golden())])
def test_records_name_every_file(folder: str, files: list[Path]) -> None:
    records = {record["file"]: record for record in _records(folder)}
    assert sorted(records) == [path.name for path in files]
    for path in files:
        record = records[path.name]
        assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert record["licence"] in FREE
        assert record["author"]
        assert record["source"]


def test_credits_name_every_author_and_licence() -> None:
    credits = (packaged_photos()[0].parent / "CREDITS.md").read_text()
    for record in _records("photos"):
        (line,) = [line for line in credits.splitlines() if line.startswith(f"| {record['file']} ")]
        assert record["author"] in line
        assert record["licence"] in line


def test_golden_images_are_three_kinds_and_small() -> None:
    golden = packaged_golden()
    assert [path.suffix for path in golden] == [".png", ".jpg", ".webp"]
    assert all(path.stat().st_size <= 150_000 for path in golden)
    assert all(min(cv2.imread(str(path)).shape[:2]) >= 224 for path in golden)
    assert all(record["licence"] == "CC0-1.0" for record in _records("golden"))


@pytest.mark.parametrize(("kind", "level"), [("blur", 2.0), ("jpeg", 12), ("noise", 20.0)])
def test_degraded_is_a_worse_copy_and_deterministic(photo: np.ndarray, kind: Any, level: float) -> None:
    before = photo.copy()
    first, second = degraded(photo, kind, level), degraded(photo, kind, level)
    assert first.dtype == np.uint8
    assert first.shape == photo.shape
    assert np.array_equal(first, second)
    assert np.array_equal(photo, before)
    assert np.abs(first.astype(int) - photo).mean() > 2


def test_stronger_levels_degrade_more(photo: np.ndarray) -> None:
    def error(kind: Any, level: float) -> float:
        return float(np.abs(degraded(photo, kind, level).astype(int) - photo).mean())

    assert error("blur", 4) > error("blur", 1)
    assert error("jpeg", 5) > error("jpeg", 60)
    assert error("noise", 40) > error("noise", 5)
    assert _detail(degraded(photo, "blur", 2.0)) < 0.1 * _detail(photo)
    assert _detail(degraded(photo, "noise", 40)) > _detail(photo)


def test_degrading_keeps_the_colours_in_place() -> None:
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    for kind, level in VERIFICATION_COPIES:
        assert degraded(red, kind, level)[32, 32].tolist() == pytest.approx([200, 0, 0], abs=4)


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        ("sharpen", 1, "sharpen"),
        ("blur", 0, "0.1 to 50"),
        ("jpeg", 101, "101 is outside"),
        ("noise", -1, "-1 is outside"),
    ],
)
def test_wrong_kind_or_level_is_refused(photo: np.ndarray, kind: Any, level: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        degraded(photo, kind, level)


def test_pixels_of_another_type_are_refused(photo: np.ndarray) -> None:
    with pytest.raises(UsageError, match="float32"):
        degraded(photo.astype(np.float32), "blur", 2.0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="240, 300"):
        degraded(photo[..., 0], "blur", 2.0)


def test_verification_set_is_each_photo_and_its_copies() -> None:
    paths = packaged_photos()[:2]
    found = list(verification_set(paths))
    names = [name for name, _ in found]
    assert names == [f"{path.name}{tail}" for path in paths for tail in ("", "#blur", "#jpeg")]
    for start in (0, 3):
        original, blurred, compressed = (pixels for _, pixels in found[start : start + 3])
        assert original.shape == blurred.shape == compressed.shape
        assert np.array_equal(blurred, degraded(original, *VERIFICATION_COPIES[0]))
        assert np.array_equal(compressed, degraded(original, *VERIFICATION_COPIES[1]))


def test_verification_set_refuses_what_the_runtime_refuses(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(packaged_photos()[0].read_bytes()[:20_000] + b"\xff\xd9")
    with pytest.raises(InputError, match="cut"):
        list(verification_set([cut]))
