"""When a cache of views serves again, and when it is made anew."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch

from gamma_runtime.errors import InputError, OutputError
from gamma_runtime.files import TEMPORARY_PREFIX
from gamma_runtime.steps import Steps
from gamma_training.data import Distortion, Sample
from gamma_training.data.distortions import STRENGTHS
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


def opened(
    out: Path,
    samples: list[Sample],
    of: Gamma | None = None,
    blocks: int = 1,
    dtype: Literal["float32", "float16"] = "float32",
) -> Cache:
    return open_cache(
        out,
        CacheSpec(crops=2, dtype=dtype),
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


def test_distortions_of_another_strength_make_another_file(
    out: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    distorted = [dataclasses.replace(sample, distortion=Distortion("gaussian-blur", 3)) for sample in samples]
    opened(out, distorted)
    opened(out, samples)
    before = files(out)
    assert len(before) == 2
    stronger = {**STRENGTHS, "gaussian-blur": tuple(value * 1.5 for value in STRENGTHS["gaussian-blur"])}
    monkeypatch.setattr("gamma_training.data.distortions.STRENGTHS", stronger)
    monkeypatch.setattr("gamma_training.train.cache.STRENGTHS", stronger)
    opened(out, samples)
    assert files(out) == before
    opened(out, distorted)
    assert len(files(out)) == 3


def test_all_the_room_is_taken_before_anything_is_computed(out: Path, samples: list[Sample]) -> None:
    taken: list[int] = []

    def short_side(_: Sample) -> None:
        for path in out.iterdir():
            taken.append(path.stat().st_blocks * 512 - path.stat().st_size)

    cache = open_cache(
        out,
        CacheSpec(crops=4, dtype="float32"),
        model(),
        1,
        samples,
        short_side,
        seed=1,
        workers=0,
        group=ALONE,
        steps=Steps(),
    )
    assert cache.crops == 4
    assert len(taken) == 2
    assert min(taken) >= 0  # a file with holes takes less than its size


def test_a_full_disk_is_told_and_leaves_nothing(
    out: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"views-.*\.npy: cannot be written \(.*No space left"):
        opened(out, samples)
    assert files(out) == []


def test_what_a_killed_run_left_is_gone_before_the_room_is_looked_at(
    out: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(out, samples)
    [name] = files(out)
    (out / name).rename(out / f"{TEMPORARY_PREFIX}{name}")

    def usage(folder: Path) -> SimpleNamespace:
        assert files(folder) == []
        return SimpleNamespace(free=0)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(OutputError, match=r"the cache takes .* and 0\.0 GiB are free"):
        opened(out, samples)


def test_an_activation_beyond_float16_is_refused(out: Path, samples: list[Sample]) -> None:
    huge = model()
    with torch.no_grad():
        huge.clip_model.visual.positional_embedding.fill_(0)
        huge.clip_model.visual.transformer.resblocks[0].mlp.c_proj.bias.fill_(7e4)
    with pytest.raises(InputError, match=r"photo0\.png: an activation of 7.*; float16 ends at 65504") as caught:
        opened(out, samples, huge, dtype="float16")
    assert caught.value.hint == "cache: {dtype: float32}"
    assert files(out) == []
    opened(out, samples, huge)


def test_experts_behind_the_frozen_blocks_do_not_matter(out: Path, samples: list[Sample]) -> None:
    first = views(opened(out, samples))
    without = dataclasses.replace(DIMS, vision=tiny.tower(64, 2, 2))
    assert np.array_equal(views(opened(out, samples, model(without))), first)
    assert len(files(out)) == 1
