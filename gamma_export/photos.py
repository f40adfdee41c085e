"""The free photos that ship with the package, and the two degraded copies of each that a verification scores.

A quality model must be compared where qualities differ: a blurred and a coarsely compressed copy beside each photo
spread the scores, and cost no megabytes because they are made here, the same way every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from gamma_runtime.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    Pixels: TypeAlias = npt.NDArray[np.uint8]

__all__ = ["VERIFICATION_COPIES", "Degradation", "degraded", "packaged_golden", "packaged_photos", "verification_set"]

Degradation = Literal["blur", "jpeg", "noise"]

VERIFICATION_COPIES: tuple[tuple[Degradation, float], ...] = (("blur", 2.0), ("jpeg", 12))
"""The copies that `verification_set` adds to each photo: kind and level."""

_NOISE_SEED = 20240229  # fixed: the same copy on every machine and in every run
_LEVELS: dict[Degradation, tuple[str, float, float]] = {
    "blur": ("standard deviation in pixels", 0.1, 50.0),
    "jpeg": ("JPEG quality", 1, 100),
    "noise": ("standard deviation in grey levels", 0.0, 255.0),
}


def packaged_photos() -> list[Path]:
    """The sixteen free photos, in the order of their names; credits lie beside them in CREDITS.md.

    Example:
        >>> packaged_photos()[0].name
        '01-astronaut.jpg'
    """
    return _packaged("photos", (".jpg",))


def packaged_golden() -> list[Path]:
    """The three small CC0 images that go into every bundle for its self-test: a PNG, a JPEG and a WebP."""
    return _packaged("golden", (".png", ".jpg", ".webp"))


def _packaged(folder: str, suffixes: tuple[str, ...]) -> list[Path]:
    root = Path(str(resources.files("gamma_export"))) / "data" / folder
    return sorted(path for path in root.iterdir() if path.suffix in suffixes)


def degraded(pixels: Pixels, kind: Degradation, level: float) -> Pixels:
    """A worse copy of an image, the same one for the same input.

    Args:
        pixels: RGB, uint8 ``[H, W, 3]``.
        kind: ``blur`` (Gaussian), ``jpeg`` (compressed and decoded again) or ``noise`` (Gaussian, seeded).
        level: standard deviation in pixels, JPEG quality, or standard deviation in grey levels of 0 to 255.

    Returns:
        RGB, uint8 ``[H, W, 3]``; the input is left alone.

    Raises:
        UsageError: an unknown kind, a level outside its range, or pixels that are not uint8 ``[H, W, 3]``.

    Example:
        >>> worse = degraded(pixels, "jpeg", 12)
    """
    if kind not in _LEVELS:
        raise UsageError(f"degradation {kind!r} is unknown", hint=f"use one of: {', '.join(get_args(Degradation))}")
    name, low, high = _LEVELS[kind]
    if not low <= level <= high:
        raise UsageError(f"{kind}: {name} {level:g} is outside {low:g} to {high:g}")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UsageError(f"{kind}: pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, 3]")
    return _MAKERS[kind](pixels, level)


def _blurred(pixels: Pixels, sigma: float) -> Pixels:
    import cv2

    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), dtype=np.uint8)


def _compressed(pixels: Pixels, quality: float) -> Pixels:
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, round(quality)]
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), options)
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(decoded[..., ::-1], dtype=np.uint8)


def _noisy(pixels: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(_NOISE_SEED).normal(0.0, sigma, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


_MAKERS: dict[Degradation, Callable[[Pixels, float], Pixels]] = {
    "blur": _blurred,
    "jpeg": _compressed,
    "noise": _noisy,
}


def verification_set(paths: Iterable[Path]) -> Iterator[tuple[str, Pixels]]:
    """Each photo followed by its degraded copies, decoded as the runtime decodes.

    Args:
        paths: image files; decoded one at a time, so that memory holds one photo.

    Yields:
        The file's name, with ``#blur`` or ``#jpeg`` behind it for a copy, and RGB pixels, uint8 ``[H, W, 3]``.

    Raises:
        InputError: a file that the runtime would not score either.

    Example:
        >>> names = [name for name, _ in verification_set(packaged_photos())]  # 48 of them
    """
    from gamma_runtime.contract import Limits
    from gamma_runtime.decode import decode

    limits = Limits()
    for path in paths:
        pixels = decode(path, limits).pixels
        yield path.name, pixels
        for kind, level in VERIFICATION_COPIES:
            yield f"{path.name}#{kind}", degraded(pixels, kind, level)
