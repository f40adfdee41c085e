"""Photos made worse on purpose: eighteen kinds of distortion in five levels, the same pixels every time.

The kinds follow what the public sets of synthetic distortions cover (KADID-10k, TID2013): blur, noise, compression,
resampling, tone and colour. Strengths are meant for photos with a short side of about 384 pixels, and chosen so that
the levels of each kind get worse in even steps of `metric.quality`. Whatever is random (a direction, a field of noise)
depends on the seed and the kind and not on the level: level 4 is level 3 with more of the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import require
from gamma_runtime.decode import Pixels
from gamma_runtime.errors import EnvironmentFault, UsageError

__all__ = ["KINDS", "LEVEL_COUNT", "STRENGTHS", "Distortion", "apply"]

LEVEL_COUNT = 5
Kernel: TypeAlias = NDArray[np.float32]
Field: TypeAlias = NDArray[np.float32]
_Maker: TypeAlias = Callable[[Pixels, float, np.random.Generator], Pixels]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B (ITU-R BT.601)
_FOG = np.array([214.0, 220.0, 226.0], np.float32)  # the light that haze scatters, R, G, B
_CASTS = np.array([[1, 0, -1], [-1, 0, 1], [-1, 1, -1], [1, -1, 1]], np.float32)  # warm, cold, green, magenta


@dataclasses.dataclass(frozen=True)
class Distortion:
    """One kind at a level from 1 (slight) to 5 (strong), and the seed of what is random in it.

    Raises:
        UsageError: an unknown kind, a level that does not exist, or a seed that is not a 64-bit number.

    Example:
        >>> Distortion.of_photo("jpeg", 3, content="3fa9c2", seed=123)
    """

    kind: str
    level: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _MAKERS:
            raise UsageError(f"distortion {self.kind!r} is unknown", hint=f"one of {', '.join(KINDS)}")
        if type(self.level) is not int or not 1 <= self.level <= LEVEL_COUNT:
            raise UsageError(f"{self.kind}: level {self.level!r} is not 1 to {LEVEL_COUNT}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**64:
            raise UsageError(f"{self.kind}: seed {self.seed!r} is not a number of 64 bits")

    @classmethod
    def of_photo(cls, kind: str, level: int, *, content: str, seed: int) -> Distortion:
        """The distortion of one photo within a set: ``content`` names the photo, ``seed`` the set."""
        digest = hashlib.sha256(f"{seed}\n{content}".encode()).digest()
        return cls(kind, level, int.from_bytes(digest[:8], "big"))


def apply(pixels: Pixels, distortion: Distortion) -> Pixels:
    """A distorted copy of a photo.

    The same pixels and distortion give the same copy in every process; another version of OpenCV or numpy may round
    or compress differently.

    Args:
        pixels: RGB, uint8 ``[H, W, 3]``; left alone.
        distortion: what to do.

    Returns:
        RGB, uint8 ``[H, W, 3]`` of the same size.

    Raises:
        UsageError: pixels that are not uint8 ``[H, W, 3]``.
        EnvironmentFault: OpenCV is missing, or was built without the codec.

    Example:
        >>> worse = apply(pixels, Distortion("gaussian-blur", 3))
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UsageError(f"{distortion.kind}: pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, 3]")
    # The kind's name is in the seed, so that two noises of one photo are not the same field.
    random = np.random.Generator(np.random.PCG64([distortion.seed, *distortion.kind.encode()]))
    strength = STRENGTHS[distortion.kind][distortion.level - 1]
    return np.ascontiguousarray(_MAKERS[distortion.kind](np.ascontiguousarray(pixels), strength, random))


def _rounded(values: NDArray[Any]) -> Pixels:
    pixels: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


def _noise(pixels: Pixels, random: np.random.Generator) -> Field:
    """Standard normal numbers ``[H, W, 3]``."""
    return random.standard_normal(pixels.shape, dtype=np.float32)


# Blur


def _gaussian_blur(pixels: Pixels, sigma: float, _random: np.random.Generator) -> Pixels:
    blurred: Pixels = require("cv2", "cpu").GaussianBlur(pixels, (0, 0), sigma)
    return blurred


def _offsets(reach: float) -> tuple[Kernel, Kernel]:
    """Distances to the right and downwards from the middle of a kernel that reaches so many pixels."""
    side = np.arange(-math.ceil(reach), math.ceil(reach) + 1, dtype=np.float32)
    return side[None, :], side[:, None]


def _filtered(pixels: Pixels, kernel: Kernel) -> Pixels:
    filtered: Pixels = require("cv2", "cpu").filter2D(pixels, -1, kernel / kernel.sum())
    return filtered


def _lens_blur(pixels: Pixels, radius: float, _random: np.random.Generator) -> Pixels:
    right, down = _offsets(radius + 0.5)
    return _filtered(pixels, np.clip(radius + 0.5 - np.hypot(right, down), 0, 1))


def _motion_blur(pixels: Pixels, length: float, random: np.random.Generator) -> Pixels:
    angle = random.uniform(0, math.pi)
    right, down = _offsets(length / 2 + 1)
    along = right * math.cos(angle) + down * math.sin(angle)
    across = down * math.cos(angle) - right * math.sin(angle)
    line = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    return _filtered(pixels, line.astype(np.float32))


# Noise


def _gaussian_noise(pixels: Pixels, sigma: float, random: np.random.Generator) -> Pixels:
    return _rounded(pixels + np.float32(sigma) * _noise(pixels, random))


def _chroma_noise(pixels: Pixels, sigma: float, random: np.random.Generator) -> Pixels:
    """Blotches of colour as a phone leaves them in the dark: half as fine as the pixels, and no luma in them."""
    blotches = require("cv2", "cpu").GaussianBlur(_noise(pixels, random), (0, 0), 1.0)
    blotches -= (blotches @ _LUMA)[:, :, None]
    return _rounded(pixels + np.float32(sigma) * blotches / blotches.std())


def _impulse_noise(pixels: Pixels, share: float, random: np.random.Generator) -> Pixels:
    """A share of the pixels becomes black or white."""
    hit = random.random(pixels.shape[:2], dtype=np.float32)[:, :, None]
    return np.where(hit < share / 2, 0, np.where(hit > 1 - share / 2, 255, pixels)).astype(np.uint8)


def _multiplicative_noise(pixels: Pixels, sigma: float, random: np.random.Generator) -> Pixels:
    return _rounded(pixels * (1 + np.float32(sigma) * _noise(pixels, random)))


# Compression and resampling


def _coded(pixels: Pixels, suffix: str, options: list[int]) -> Pixels:
    cv2 = require("cv2", "cpu")
    try:
        done, data = cv2.imencode(suffix, pixels[:, :, ::-1], options)
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if done else None
    except cv2.error as error:
        raise EnvironmentFault(f"OpenCV {cv2.__version__} cannot write {suffix} here ({error.err})") from error
    if decoded is None:
        raise EnvironmentFault(f"OpenCV {cv2.__version__} cannot write or read {suffix} here")
    rgb: Pixels = decoded[:, :, ::-1]
    return rgb


def _jpeg(pixels: Pixels, quality: float, _random: np.random.Generator) -> Pixels:
    return _coded(pixels, ".jpg", [require("cv2", "cpu").IMWRITE_JPEG_QUALITY, round(quality)])


def _jpeg2000(pixels: Pixels, share: float, _random: np.random.Generator) -> Pixels:
    return _coded(pixels, ".jp2", [require("cv2", "cpu").IMWRITE_JPEG2000_COMPRESSION_X1000, round(share)])


def _small(pixels: Pixels, factor: float) -> Pixels:
    size = tuple(max(1, round(side / factor)) for side in (pixels.shape[1], pixels.shape[0]))
    cv2 = require("cv2", "cpu")
    small: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return small


def _resampling(pixels: Pixels, factor: float, _random: np.random.Generator) -> Pixels:
    cv2 = require("cv2", "cpu")
    size = (pixels.shape[1], pixels.shape[0])
    grown: Pixels = cv2.resize(_small(pixels, factor), size, interpolation=cv2.INTER_CUBIC)
    return grown


def _pixelation(pixels: Pixels, factor: float, _random: np.random.Generator) -> Pixels:
    cv2 = require("cv2", "cpu")
    size = (pixels.shape[1], pixels.shape[0])
    grown: Pixels = cv2.resize(_small(pixels, factor), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return grown


def _banding(pixels: Pixels, steps: float, _random: np.random.Generator) -> Pixels:
    """So many values a channel, evenly spread from 0 to 255."""
    return _rounded(np.rint(pixels * np.float32((steps - 1) / 255)) * np.float32(255 / (steps - 1)))


# Tone and colour


def _gain(pixels: Pixels, gain: float, _random: np.random.Generator) -> Pixels:
    """Under 1 too little light, over 1 too much: the bright parts are cut off."""
    return _rounded(pixels * np.float32(gain))


def _low_contrast(pixels: Pixels, kept: float, _random: np.random.Generator) -> Pixels:
    middle = pixels.mean(dtype=np.float64)
    return _rounded(middle + kept * (pixels - middle))


def _desaturation(pixels: Pixels, kept: float, _random: np.random.Generator) -> Pixels:
    grey = (pixels @ _LUMA)[:, :, None]
    return _rounded(grey + np.float32(kept) * (pixels - grey))


def _colour_cast(pixels: Pixels, shift: float, random: np.random.Generator) -> Pixels:
    """A wrong white balance: channels gain or lose a share of their light."""
    return _rounded(pixels * (1 + np.float32(shift) * _CASTS[random.integers(len(_CASTS))]))


def _haze(pixels: Pixels, depth: float, random: np.random.Generator) -> Pixels:
    """Light from the air instead of from the scene: densest at the top, in soft clouds."""
    height, width = pixels.shape[:2]
    cv2 = require("cv2", "cpu")
    clouds = cv2.resize(random.uniform(0.8, 1.2, (4, 4)).astype(np.float32), (width, height))
    far = np.linspace(1.0, 0.55, height, dtype=np.float32)[:, None] * np.clip(clouds, 0.8, 1.2)
    seen = np.exp(-np.float32(depth) * far)[:, :, None]
    return _rounded(pixels * seen + _FOG * (1 - seen))


_MAKERS: dict[str, _Maker] = {
    "gaussian-blur": _gaussian_blur,
    "lens-blur": _lens_blur,
    "motion-blur": _motion_blur,
    "gaussian-noise": _gaussian_noise,
    "chroma-noise": _chroma_noise,
    "impulse-noise": _impulse_noise,
    "multiplicative-noise": _multiplicative_noise,
    "jpeg": _jpeg,
    "jpeg2000": _jpeg2000,
    "resampling": _resampling,
    "pixelation": _pixelation,
    "banding": _banding,
    "underexposure": _gain,
    "overexposure": _gain,
    "low-contrast": _low_contrast,
    "desaturation": _desaturation,
    "colour-cast": _colour_cast,
    "haze": _haze,
}
KINDS: tuple[str, ...] = tuple(_MAKERS)

STRENGTHS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "gaussian-blur": (0.8, 1.4, 2.2, 3.6, 5.8),  # standard deviation, pixels
        "lens-blur": (1.4, 2.5, 3.9, 5.9, 8.6),  # radius, pixels
        "motion-blur": (2.8, 5.3, 8.5, 14.0, 25.0),  # length, pixels
        "gaussian-noise": (6.0, 11.0, 17.5, 26.0, 39.0),  # standard deviation, of 255
        "chroma-noise": (8.0, 15.0, 25.0, 38.0, 57.0),  # standard deviation, of 255
        "impulse-noise": (0.001, 0.0025, 0.007, 0.018, 0.045),  # share of the pixels
        "multiplicative-noise": (0.04, 0.07, 0.11, 0.17, 0.27),  # standard deviation, share of the value
        "jpeg": (35, 15, 9, 5, 3),  # quality
        "jpeg2000": (55, 22, 10, 5, 3),  # thousandths of the plain size
        "resampling": (1.8, 3.0, 4.5, 7.3, 11.5),  # times smaller and back
        "pixelation": (1.3, 2.2, 3.3, 4.7, 6.5),  # pixels a block
        "banding": (22, 13, 9, 6, 4),  # values a channel
        "underexposure": (0.77, 0.63, 0.5, 0.4, 0.29),  # gain
        "overexposure": (1.12, 1.24, 1.39, 1.6, 1.95),  # gain
        "low-contrast": (0.76, 0.61, 0.47, 0.36, 0.25),  # share kept
        "desaturation": (0.7, 0.5, 0.32, 0.16, 0.0),  # share kept
        "colour-cast": (0.06, 0.12, 0.2, 0.3, 0.44),  # share gained or lost
        "haze": (0.3, 0.52, 0.8, 1.1, 1.5),  # optical depth at the top
    }
)
