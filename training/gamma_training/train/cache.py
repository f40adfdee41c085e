"""What the frozen blocks answer to a fixed set of views of each photo, computed once and kept in a file of the run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.contract import CROP
from gamma_runtime.errors import OutputError
from gamma_runtime.files import TEMPORARY_PREFIX, sweep_temporaries
from gamma_runtime.prefetch import prefetched
from gamma_runtime.steps import Steps
from gamma_training.data import Sample
from gamma_training.train.config import CacheSpec
from gamma_training.train.objective import to_tokens
from gamma_training.train.views import cut, fixed_views

if TYPE_CHECKING:
    from gamma_training.model import Gamma
    from gamma_training.train.distributed import Group

__all__ = ["Cache", "open_cache"]

ShortSide = Callable[[Sample], "int | None"]


class Cache:
    """Views of all photos: ``[samples, crops, …]``, tokens in the cache's dtype, or crops in uint8."""

    def __init__(self, views: NDArray[Any]) -> None:
        self._views = views
        self.crops = views.shape[1]

    def __call__(self, index: int, view: int) -> NDArray[Any]:
        """One view of one photo."""
        return np.asarray(self._views[index, view])


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

    Raises:
        InputError: a photo cannot be used. OutputError: no room, or the folder cannot be written.
    """
    tail = (model.dims.tokens, model.dims.vision.width) if blocks else (CROP, CROP, 3)
    dtype = np.dtype(spec.dtype if blocks else "uint8")
    shape = (len(samples), spec.crops, *tail)
    path = folder / f"views-{_key(spec, model, blocks, samples, short_side, seed)}.npy"
    if group.leads and not path.is_file():
        _room(folder, int(np.prod(shape)) * dtype.itemsize)
        _make(path, shape, dtype, model, blocks, samples, short_side, spec, seed, workers, group, steps)
    group.wait()
    return Cache(np.load(path, mmap_mode="r", allow_pickle=False))


def _key(
    spec: CacheSpec, model: Gamma, blocks: int, samples: Sequence[Sample], short_side: ShortSide, seed: int
) -> str:
    """Digest of everything that decides the content."""
    digest = hashlib.sha256()
    names = [n for n, _ in model.clip_model.visual.named_parameters() if _is_frozen(n, blocks)] if blocks else []
    for name in names:
        digest.update(name.encode())
        digest.update(model.clip_model.visual.get_parameter(name).detach().cpu().numpy().tobytes())
    photos = [(str(s.path), repr(s.distortion), s.short_side, short_side(s)) for s in samples]
    digest.update(json.dumps([spec.crops, spec.dtype if blocks else "uint8", blocks, seed, photos]).encode())
    return digest.hexdigest()[:16]


def _is_frozen(name: str, blocks: int) -> bool:
    """Whether the vision tower's tensor is used before the block."""
    parts = name.split(".")
    if parts[0] == "transformer":
        return int(parts[2]) < blocks
    return parts[0] not in ("ln_post", "proj")


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

    sweep_temporaries(path.parent)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")

    def crops_of(index: int) -> NDArray[np.uint8]:
        return cut(samples[index], fixed_views(seed, index, spec.crops), short_side(samples[index]))

    what = f"activations of {len(samples)} photos, {spec.crops} views each"
    try:
        views = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        with steps.step(what, len(samples)) as tick:
            for index, crops in prefetched(crops_of, iter(range(len(samples))), workers, 2 * workers + 1):
                if blocks:
                    tokens = to_tokens(model, torch.from_numpy(crops).to(group.device), blocks)
                    views[index] = tokens.cpu().numpy().astype(dtype)
                else:
                    views[index] = crops
                tick(1)
        views.flush()
        del views
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error})", hint="check the free space") from error
    finally:
        temporary.unlink(missing_ok=True)
