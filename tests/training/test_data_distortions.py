"""Distortions: the same pixels every time, worse with every level, and a label that sees each of them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable

import cv2
import numpy as np
import pytest

from gamma_export.photos import packaged_photos
from gamma_runtime.errors import UsageError
from gamma_training.data.distortions import KINDS, LEVEL_COUNT, STRENGTHS, Distortion, apply
from gamma_training.data.metric import quality, similarity
from gamma_training.data.pixels import read_photo
from tests.training.photos import Pixels, picture

LEVELS = range(1, LEVEL_COUNT + 1)
# The digest of every kind at level 3, as the child process prints it too.
DIGESTS = """
import hashlib
from tests.training.photos import Pixels, picture
from gamma_training.data.distortions import KINDS, Distortion, apply
photo = picture(3)
for kind in KINDS:
    print(kind, hashlib.sha256(apply(photo, Distortion.of_photo(kind, 3, content="a", seed=5)).tobytes()).hexdigest())
"""


def labels_of(photo: Pixels, kind: str, levels: Iterable[int]) -> list[float]:
    copies = (apply(photo, Distortion.of_photo(kind, level, content="a", seed=1)) for level in levels)
    return [quality(photo, copy) for copy in copies]


def test_there_are_enough_kinds() -> None:
    assert len(KINDS) >= 12
    assert set(STRENGTHS) == set(KINDS)
    assert all(len(values) == LEVEL_COUNT for values in STRENGTHS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_shape_and_leaves_the_photo_alone(kind: str) -> None:
    photo = picture(1, 101, 75)  # odd sides
    before = photo.copy()
    photo.flags.writeable = False
    copy = apply(photo, Distortion(kind, 5, 9))
    assert copy.shape == photo.shape
    assert copy.dtype == np.uint8
    assert copy.flags.c_contiguous
    assert np.array_equal(photo, before)
    assert not np.array_equal(copy, photo)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_get_worse_on_real_photos(kind: str) -> None:
    for number in (1, 6):  # coffee and pagoda, in colour
        found = labels_of(read_photo(packaged_photos()[number], 224), kind, LEVELS)
        assert all(np.diff([1.0, *found]) < 0), found


def test_two_processes_make_the_same_bytes() -> None:
    done = subprocess.run([sys.executable, "-c", DIGESTS], capture_output=True, text=True, check=True)
    photo = picture(3)
    copies = {kind: apply(photo, Distortion.of_photo(kind, 3, content="a", seed=5)) for kind in KINDS}
    here = [f"{kind} {hashlib.sha256(copy.tobytes()).hexdigest()}" for kind, copy in copies.items()]
    assert done.stdout.splitlines() == here


def test_seed_and_content_decide_what_is_random() -> None:
    photo = picture()
    one = Distortion.of_photo("gaussian-noise", 2, content="a", seed=1)
    assert one == Distortion.of_photo("gaussian-noise", 2, content="a", seed=1)
    others = [
        Distortion.of_photo("gaussian-noise", 2, content="b", seed=1),
        Distortion.of_photo("gaussian-noise", 2, content="a", seed=2),
    ]
    assert all(not np.array_equal(apply(photo, one), apply(photo, other)) for other in others)


def test_kinds_of_noise_are_different_fields() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    fields = [apply(grey, Distortion(kind, 3, 7)).astype(float) for kind in ("gaussian-noise", "multiplicative-noise")]
    assert abs(np.corrcoef(fields[0].ravel(), fields[1].ravel())[0, 1]) < 0.1


def test_threads_of_opencv_do_not_matter() -> None:
    photo, before = picture(2, 512, 400), cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = apply(photo, Distortion("lens-blur", 4))
        cv2.setNumThreads(4)
        assert np.array_equal(apply(photo, Distortion("lens-blur", 4)), one)
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize(
    ("kind", "level", "seed"), [("smear", 1, 0), ("jpeg", 0, 0), ("jpeg", 6, 0), ("jpeg", True, 0), ("jpeg", 1, -1)]
)
def test_what_does_not_exist_is_refused(kind: str, level: int, seed: int) -> None:
    with pytest.raises(UsageError):
        Distortion(kind, level, seed)


def test_other_pixels_are_refused() -> None:
    for pixels in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(UsageError, match="not uint8"):
            apply(pixels, Distortion("jpeg", 1))  # type: ignore[arg-type]


def test_the_label_of_the_photo_itself_is_one_and_symmetric() -> None:
    photo = picture()
    copy = apply(photo, Distortion("gaussian-blur", 3))
    assert quality(photo, photo) == pytest.approx(1.0, abs=1e-6)
    assert quality(photo, copy) == pytest.approx(quality(copy, photo), abs=1e-6)
    assert quality(photo, picture(99)) < 0.2  # nothing in common


def test_levels_of_all_kinds_mean_about_the_same() -> None:
    """Pooled over kinds, the label orders copies by how bad they are, not by what was done to them."""
    photo = read_photo(packaged_photos()[1], 384)
    for kind in KINDS:
        if kind in ("desaturation", "colour-cast", "chroma-noise"):
            continue  # these depend on how colourful a photo is
        slight, middle, strong = labels_of(photo, kind, (1, 3, 5))
        assert 0.75 < slight < 0.97, kind
        assert 0.4 < middle < 0.82, kind
        assert 0.1 < strong < 0.52, kind


@pytest.mark.parametrize("kind", ["gaussian-blur", "jpeg", "colour-cast", "impulse-noise"])
def test_the_parts_of_all_squares_give_the_label_of_the_whole(kind: str) -> None:
    photo = read_photo(packaged_photos()[1], 384)[:320, :320]
    copy = apply(photo, Distortion(kind, 3))
    parts = similarity(photo, copy).in_squares(16)
    assert parts.shape == (20, 20, 4)
    structure, gradients, squares, chroma = parts.mean((0, 1))
    deviation = np.sqrt(squares - gradients**2)
    assert structure**0.5 * (1 - 2 * deviation) ** 2 * chroma**0.7 == pytest.approx(quality(photo, copy), abs=0.02)
    half = photo.copy()
    half[:, 160:] = copy[:, 160:]
    found = similarity(photo, half).in_squares(16)
    assert found[:, :8] == pytest.approx(1, abs=1e-5)  # where nothing was done
    assert found[:, 12:] == pytest.approx(parts[:, 12:], abs=1e-5)


def test_colour_alone_changes_the_label() -> None:
    photo = picture()
    luma = photo.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    grey = np.repeat(np.clip(np.rint(luma), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    assert quality(photo, grey) < 0.9


def test_the_label_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(UsageError, match="compared with"):
        quality(picture(), picture(0, 250, 240))
    with pytest.raises(UsageError, match="of 64 or more"):
        quality(picture(0, 40, 40), picture(0, 40, 40))
