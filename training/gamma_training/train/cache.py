"""What the frozen blocks answer to a fixed set of views of each photo, computed once and kept in a file of the run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.contract import CROP
from gamma_runtime.errors import InputError, OutputError
from gamma_runtime.files import LOCK, TEMPORARY_PREFIX, lock_file, sweep_temporaries, sync_directory
from gamma_runtime.prefetch import prefetched
from gamma_runtime.steps import Steps
from gamma_training.data import Sample
from gamma_training.data.distortions import STRENGTHS
from gamma_training.train.config import CacheSpec, TrainConfig
from gamma_training.train.objective import to_tokens
from gamma_training.train.views import cut, fixed_views

if TYPE_CHECKING:
    from gamma_training.dims import GammaDims
    from gamma_training.model import Gamma
    from gamma_training.train.distributed import Group

__all__ = ["Cache", "folder_of", "open_cache"]

_LOCK_TIMEOUT = 2.0  # seconds: a killed run's lock ends with its last process

ShortSide = Callable[[Sample], "int | None"]


@contextlib.contextmanager
def folder_of(config: TrainConfig, group: Group) -> Iterator[Path]:
    """Where a run's cache lies; in a folder that runs share nobody else makes one meanwhile.

    Raises:
        OutputError: somebody does, or the folder cannot be made.
    """
    folder = config.cache_folder
    if folder is None:
        yield config.out  # the run holds it already
        return
    with contextlib.ExitStack() as stack:
        if group.leads:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cache_folder: {folder} cannot be made ({error.strerror})") from error
            busy = f"{folder}: another run is making its cache there"
            stack.enter_context(lock_file(folder / LOCK, _LOCK_TIMEOUT, busy, "wait, or another cache_folder"))
        yield folder


class Cache:
    """Views of all photos: ``[samples, crops, …]``, tokens in the cache's dtype, or crops in uint8."""

    def __init__(self, views: NDArray[Any]) -> None:
        self._views = views
        self.crops = views.shape[1]

    def __call__(self, index: int, view: int) -> NDArray[Any]:
        """One view of one photo, read from the disk here and now: a view of the map would be read where it is used."""
        return np.array(self._views[index, view])


def open_cache(
    folder: Path,
    spec: CacheSpec,
    model: Gamma,
    blocks: int,
    samples: Sequence[Sample],
    short_side: ShortSide,
    *,
    seed: int,
    workers: int,
    group: Group,
    steps: Steps,
) -> Cache:
    """Open the file of these photos, views and weights, or make it; with no frozen block it holds the crops themselves.

    A damaged file is made anew.

    Raises:
        InputError: a photo cannot be used. OutputError: no room, or the folder cannot be written.
    """
    tail = (_tokens(model, blocks), model.dims.vision.width) if blocks else (CROP, CROP, 3)
    dtype = np.dtype(spec.dtype if blocks else "uint8")
    shape = (len(samples), spec.crops, *tail)
    # The first process says which: copies of the photos on other machines have other times.
    key = _key(spec, model, blocks, samples, short_side, seed) if group.leads else ""
    path = folder / f"views-{group.gather(key)[0]}.npy"
    if group.leads and path.is_file() and not _is_whole(path, shape, dtype):
        steps.say(f"{path}: damaged, and made anew")
        path.unlink()
    if group.leads and not path.is_file():
        sweep_temporaries(folder)
        _temporary(path).unlink(missing_ok=True)  # of a killed run: its room is needed
        _room(folder, _bytes(shape, dtype))
        _make(path, shape, dtype, model, blocks, samples, short_side, spec, seed, workers, group, steps)
    group.wait()
    return Cache(np.load(path, mmap_mode="r", allow_pickle=False))


def _tokens(model: Gamma, blocks: int) -> int:
    """Behind the last block only the class token is read."""
    return 1 if blocks == model.dims.vision.layers else model.dims.tokens


def _key(
    spec: CacheSpec, model: Gamma, blocks: int, samples: Sequence[Sample], short_side: ShortSide, seed: int
) -> str:
    """Digest of everything that decides the content."""
    digest = hashlib.sha256()
    names = [n for n, _ in model.clip_model.visual.named_parameters() if _is_frozen(n, blocks)] if blocks else []
    for name in names:
        digest.update(name.encode())
        digest.update(model.clip_model.visual.get_parameter(name).detach().cpu().numpy().tobytes())
    how = _frozen_dims(model.dims, blocks) if blocks else []
    stamps = {path: _stamp(path) for path in dict.fromkeys(s.path for s in samples)}
    photos = [(str(s.path), stamps[s.path], repr(s.distortion), s.short_side, short_side(s)) for s in samples]
    strengths = dict(STRENGTHS) if any(s.distortion for s in samples) else {}
    said = [spec.crops, spec.dtype if blocks else "uint8", blocks, how, seed, photos, strengths]
    digest.update(json.dumps(said).encode())
    return digest.hexdigest()[:16]


def _frozen_dims(dims: GammaDims, blocks: int) -> list[Any]:
    """What shapes and weights of the frozen part cannot say; experts behind it make no difference."""
    tower = dims.vision
    if tower.first_moae >= blocks:
        tower = dataclasses.replace(tower, first_moae=blocks, experts=0)
    return [dims.image, dims.patch, dims.ln_pre, dims.mean, dims.std, dataclasses.asdict(tower)]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Bytes and time of change: another photo under the same name. One that is not there is told when it is read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _is_whole(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether the file begins as NumPy writes this shape and dtype, and is as long as they need."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    begin = header.getvalue()
    try:
        with path.open("rb") as stream:
            return stream.read(len(begin)) == begin and path.stat().st_size == len(begin) + _bytes(shape, dtype)
    except OSError:
        return False


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize


def _is_frozen(name: str, blocks: int) -> bool:
    """Whether the vision tower's tensor is used before the block."""
    parts = name.split(".")
    if parts[0] == "transformer":
        return int(parts[2]) < blocks
    return parts[0] not in ("ln_post", "proj")


def _stored(values: NDArray[np.float32], dtype: np.dtype[Any], sample: Sample) -> NDArray[Any]:
    """Activations in the cache's dtype.

    Raises:
        InputError: one is beyond it.
    """
    with np.errstate(over="ignore"):
        made = values.astype(dtype)
    if np.isinf(made).any():
        raise InputError(
            f"{sample.path}: an activation of {np.abs(values).max():.3g}; {dtype} ends at {np.finfo(dtype).max:g}",
            hint="cache: {dtype: float32}",
        )
    return made


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}")


def _room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: the cache takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free",
            hint="fewer crops, dtype float16, another out, or no cache",
        )


def _make(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    model: Gamma,
    blocks: int,
    samples: Sequence[Sample],
    short_side: ShortSide,
    spec: CacheSpec,
    seed: int,
    workers: int,
    group: Group,
    steps: Steps,
) -> None:
    """Fill a temporary file, and rename it when it is whole."""
    import torch

    temporary = _temporary(path)

    def crops_of(index: int) -> NDArray[np.uint8]:
        return cut(samples[index], fixed_views(seed, index, spec.crops), short_side(samples[index]))

    what = f"activations of {len(samples)} photos, {spec.crops} views each"
    try:
        views = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        with temporary.open("rb+") as stream:  # a disk that is full while a map is written to kills the process
            os.posix_fallocate(stream.fileno(), 0, temporary.stat().st_size)
        with steps.step(what, len(samples)) as tick:
            for index, crops in prefetched(crops_of, iter(range(len(samples))), workers, 2 * workers + 1):
                if blocks:
                    tokens = to_tokens(model, torch.from_numpy(crops).to(group.device), blocks)[:, : shape[2]]
                    views[index] = _stored(tokens.cpu().numpy(), dtype, samples[index])
                else:
                    views[index] = crops
                tick(1)
        views.flush()
        del views
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error})", hint="check the free space") from error
    finally:
        temporary.unlink(missing_ok=True)
