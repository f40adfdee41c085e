"""Which photos a run learns from and is judged by, and what it refuses before the first step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gamma_runtime.errors import InputError
from gamma_runtime.steps import Steps
from gamma_training.data import DataSpec
from gamma_training.train import CacheSpec, TrainConfig
from gamma_training.train.cache import Cache
from gamma_training.train.photos import Photos, batches, open_photos
from tests.training import photos


def table(folder: Path, name: str, *rows: str) -> DataSpec:
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["path,mos,split", *rows]) + "\n")
    return DataSpec(table=path, range=(0.0, 1.0))


def opened(*specs: DataSpec) -> Photos:
    config = TrainConfig(out=Path("out"), base=Path("base"), data=specs, batch=1, validation=0.0)
    return open_photos(config, "sdp", Steps())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos.folder_of(tmp_path, 3)


def test_a_photo_in_train_of_one_set_and_in_test_of_another_is_refused(folder: Path) -> None:
    one = table(folder, "one", "photo0.png,0.5,train", "photo1.png,0.5,test")
    message = r"photo1\.png is in split test of one and in split train of two"
    with pytest.raises(InputError, match=message):
        opened(one, table(folder, "two", "photo1.png,0.5,train"))
    assert len(opened(one, table(folder, "two", "photo1.png,0.5,test")).test) == 2
    assert len(opened(one, table(folder, "two", "photo0.png,0.5,train")).train) == 2


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_link_is_the_photo_that_it_leads_to(folder: Path, split: str) -> None:
    (folder / "link.png").symlink_to("photo0.png")
    with pytest.raises(InputError, match=rf"link\.png is in split {split} of one and in split train of one"):
        opened(table(folder, "one", "photo0.png,0.5,train", f"link.png,0.5,{split}"))


@pytest.mark.parametrize("spelling", ["./photo0.png", "photo0.png/", ".//photo0.png", "x/../photo0.png"])
def test_another_spelling_is_the_same_row(folder: Path, spelling: str) -> None:
    with pytest.raises(InputError, match=r"one\.csv:3: photo0\.png is also on line 2"):
        opened(table(folder, "one", "photo0.png,0.5,train", f"{spelling},0.5,test"))


def test_two_entries_of_one_name_are_refused(folder: Path) -> None:
    (folder / "more").mkdir()
    one = table(folder, "one", "photo0.png,0.5,train")
    again = dataclasses.replace(table(folder / "more", "one", "photo1.png,0.5,train"), root=folder)
    with pytest.raises(InputError, match="two entries are called one") as caught:
        opened(one, again)
    assert caught.value.hint == "give one of them another name:"
    named = opened(one, dataclasses.replace(again, name="two"))
    assert {sample.dataset for sample in named.train} == {"one", "two"}


FIRST_THREE = np.array([[0, 0], [1, 0], [2, 0]])  # none of them shown before


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(out=Path("run"), base=Path("base"), data=(DataSpec(table=Path("mos.csv")),), **changes)


def test_a_share_of_the_patches_is_shown_and_always_the_class_token(folder: Path) -> None:
    one = opened(table(folder, "one", "photo0.png,0.5,train"))
    cached = Cache(np.arange(3 * 2 * 17.0).reshape(3, 2, 17, 1))
    chosen = settings(keep_tokens=0.5, cache=CacheSpec(crops=2), workers=0)

    def shown(epoch: int) -> NDArray[Any]:
        with contextlib.closing(batches(one, cached, [FIRST_THREE], chosen, epoch)) as made:  # type: ignore[type-var]
            return next(made)[1]

    first = shown(0)
    assert first.shape == (3, 9, 1)
    assert {float(row) for row in first[:, 0, 0] % 17} == {0}
    assert all(len(set(photo[:, 0])) == 9 for photo in first)
    assert len({tuple(photo[:, 0] % 17) for photo in first}) > 1  # each photo its own
    assert np.array_equal(first, shown(0))
    assert not np.array_equal(first % 17, shown(1) % 17)


def test_a_photo_that_an_epoch_repeats_is_shown_otherwise(folder: Path) -> None:
    one = opened(table(folder, "one", "photo0.png,0.5,train"))
    again = np.array([[0, repeat] for repeat in range(8)])
    cached = Cache(np.arange(8 * 17.0).reshape(1, 8, 17, 1))
    for chosen, different in ((settings(cache=CacheSpec(crops=8)), 8), (settings(workers=0), 8)):
        cache = cached if chosen.cache else None
        with contextlib.closing(batches(one, cache, [again], chosen, 3)) as made:  # type: ignore[type-var]
            indices, values = next(made)
        assert indices.tolist() == [0] * 8
        assert len({value.tobytes() for value in values}) == different


def test_two_batches_are_made_ready_ahead(folder: Path) -> None:
    seen: list[int] = []

    class Recorded(Cache):
        def __call__(self, index: int, view: int) -> NDArray[Any]:
            seen.append(index)
            return super().__call__(index, view)

    one = opened(table(folder, "one", "photo0.png,0.5,train"))
    steps = list(np.stack([np.arange(4 * 64), np.zeros(4 * 64, int)], axis=1).reshape(4, 64, 2))
    made = batches(one, Recorded(np.arange(512.0).reshape(256, 2)), steps, settings(workers=1), 0)
    with contextlib.closing(made):  # type: ignore[type-var]
        indices, values = next(made)
        end = time.monotonic() + 20
        while len(seen) < 3 * 64 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(seen) >= 3 * 64
    assert np.array_equal(values // 2, indices)
