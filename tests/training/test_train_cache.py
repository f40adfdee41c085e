"""When a cache of views serves again, and when it is made anew."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gamma_runtime.errors import InputError
from gamma_runtime.steps import Steps
from gamma_training.data import Sample
from gamma_training.dims import GammaDims
from gamma_training.model import Gamma
from gamma_training.train.cache import Cache, open_cache
from gamma_training.train.config import CacheSpec
from gamma_training.train.distributed import Group
from tests.training import photos, tiny

DIMS = tiny.dims(tiny.tower(64, 2, 1))
ALONE = Group(0, 1, torch.device("cpu"))


def model(dims: GammaDims = DIMS) -> Gamma:
    made = Gamma(dims)
    made.load_state_dict(tiny.state(DIMS), strict=False)  # without ln_pre there are fewer
    return made


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    folder = photos.folder_of(tmp_path / "photos", 2)
    return [
        Sample(folder / f"photo{n}.png", 1.0, 0.5, "natural-quality", "train", "one", f"photo{n}.png") for n in range(2)
    ]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


def opened(out: Path, samples: list[Sample], of: Gamma | None = None, blocks: int = 1) -> Cache:
    return open_cache(
        out,
        CacheSpec(crops=2, dtype="float32"),
        of or model(),
        blocks,
        samples,
        lambda _: None,
        seed=1,
        workers=0,
        group=ALONE,
        steps=Steps(quiet=False),
    )


def files(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def views(cache: Cache) -> np.ndarray:
    return np.stack([[cache(index, view) for view in range(cache.crops)] for index in range(2)])


def test_the_same_photos_and_model_make_one_file(out: Path, samples: list[Sample]) -> None:
    first = views(opened(out, samples))
    [name] = files(out)
    made = (out / name).stat().st_mtime_ns
    assert np.array_equal(views(opened(out, samples)), first)
    assert files(out) == [name]
    assert (out / name).stat().st_mtime_ns == made


def test_another_photo_under_the_same_name_makes_another_file(out: Path, samples: list[Sample]) -> None:
    first = views(opened(out, samples))
    path = samples[1].path
    status = path.stat()
    photos.save(path, seed=9)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # another size
    second = views(opened(out, samples))
    assert len(files(out)) == 2
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # another time
    opened(out, samples)
    assert len(files(out)) == 3


def test_a_photo_that_is_gone_is_named(out: Path, samples: list[Sample]) -> None:
    opened(out, samples)
    samples[1].path.unlink()
    with pytest.raises(InputError, match=r"photo1\.png"):
        opened(out, samples)


@pytest.mark.parametrize(
    "change",
    [
        lambda dims: dataclasses.replace(dims, mean=(0.5, 0.5, 0.5)),
        lambda dims: dataclasses.replace(dims, std=(0.5, 0.5, 0.5)),
        lambda dims: dataclasses.replace(dims, ln_pre=False),
        lambda dims: dataclasses.replace(dims, vision=dataclasses.replace(dims.vision, activation="gelu")),
        lambda dims: dataclasses.replace(dims, vision=dataclasses.replace(dims.vision, epsilon=1e-2)),
    ],
)
def test_what_weights_do_not_say_makes_another_file(
    out: Path, samples: list[Sample], change: Callable[[GammaDims], GammaDims]
) -> None:
    first = views(opened(out, samples))
    second = views(opened(out, samples, model(change(DIMS))))
    assert len(files(out)) == 2
    assert not np.array_equal(first, second)


def test_crops_are_the_same_for_every_model(out: Path, samples: list[Sample]) -> None:
    opened(out, samples, blocks=0)
    opened(out, samples, model(dataclasses.replace(DIMS, mean=(0.5, 0.5, 0.5))), blocks=0)
    assert len(files(out)) == 1


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _headless(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _headless,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\3\4" + bytes(100)),  # NumPy would take it for an archive
        lambda path: np.save(path, np.load(path)[:, :1]),
        lambda path: np.save(path, np.load(path).astype(np.float16)),
        lambda path: np.save(path, np.load(path).view(np.int32)),
        lambda path: np.save(path, np.asfortranarray(np.load(path))),
    ],
)
def test_a_damaged_file_is_made_anew_and_a_line_says_so(
    out: Path, samples: list[Sample], damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    first = views(opened(out, samples))
    [name] = files(out)
    content = (out / name).read_bytes()
    assert "damaged" not in capsys.readouterr().err
    damage(out / name)
    assert np.array_equal(views(opened(out, samples)), first)
    assert f"{name}: damaged, and made anew" in capsys.readouterr().err
    assert files(out) == [name]
    assert (out / name).read_bytes() == content


def test_a_file_is_on_the_disk_before_it_has_its_name(
    out: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("synced folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "synced")
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append("renamed")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    opened(out, samples)
    assert done == ["synced", "renamed", "synced folder"]
