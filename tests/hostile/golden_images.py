"""Small pictures of every kind that the contract reads, kept as files with the pixels that they must give.

    python -m tests.hostile.golden_images     write tests/data/images anew: files and golden.json

Encoders change between versions, so the encoded bytes are kept, not made anew: only a decoder or a rule of ours can
change a digest. Whoever runs this script must explain every digest that changed: C++ has to give the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms

from gamma_runtime.contract import Contract, CropPolicy, Limits
from gamma_runtime.crops import prepare
from gamma_runtime.decode import decode
from tests.runtime.images import bmp, encode, exif, photo, png, png_chunk, tiff, with_exif

FOLDER = Path(__file__).parent.parent / "data" / "images"
GOLDEN = FOLDER / "golden.json"
SOURCE = "rgb.png"  # what the contract's rules are shown on
WIDTH, HEIGHT = 44, 36
CONTRACTS: dict[str, Contract] = {
    **{f"native {policy}": Contract({"s": None}, crop=CropPolicy.parse(policy)) for policy in ("cover", "grid2x3")},
    "native random10:seed7": Contract({"s": None}, crop=CropPolicy.parse("random10:seed7")),
    "384 five": Contract({"s": 384}),
    "224 centre": Contract({"s": 224}, crop=CropPolicy("centre")),
    "384 cover": Contract({"s": 384}, crop=CropPolicy("cover")),
    "frame640x480:five": Contract({"s": None}, crop=CropPolicy.parse("frame640x480")),
    "small resize": Contract({"s": None}, small="resize"),
    "small pad": Contract({"s": None}, small="pad"),
}


def _picture() -> np.ndarray:
    return photo(WIDTH, HEIGHT, seed=41)


def _wide() -> np.ndarray:
    return np.random.default_rng(42).integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)


def _cmyk(adobe: bool) -> bytes:
    inks = np.stack([photo(WIDTH, HEIGHT, seed)[:, :, 0] for seed in range(43, 47)], axis=2)
    data = encode(Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()), "JPEG", quality=90)
    start = data.index(b"\xff\xee")
    (length,) = struct.unpack(">H", data[start + 2 : start + 4])
    return data if adobe else data[:start] + data[start + 2 + length :]


def _rgba() -> np.ndarray:
    return np.concatenate([_picture(), photo(WIDTH, HEIGHT, seed=47)[:, :, :1]], axis=2)


def _opencv(suffix: str, pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(suffix, pixels)[1].tobytes())


def _animation(kind: str, **options: Any) -> bytes:
    more = [Image.fromarray(photo(WIDTH, HEIGHT, seed)) for seed in (48, 49)]
    return encode(_picture(), kind, save_all=True, append_images=more, **options)


def _profile() -> bytes:
    """An ICC profile that a decoder which obeys it would show: Lab, not sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def _turned(data: bytes, orientation: int) -> bytes:
    return with_exif(data, exif(orientation))


# Name -> row of the hostile list, and the encoded bytes.
KINDS: dict[str, tuple[int, Callable[[], bytes]]] = {
    SOURCE: (37, lambda: encode(photo(640, 480, seed=40), "PNG", compress_level=9)),
    "lies.jpg": (34, lambda: encode(_picture(), "PNG")),
    "jpeg-444.jpg": (37, lambda: encode(_picture(), "JPEG", quality=90, subsampling=0)),
    "jpeg-420.jpg": (37, lambda: encode(_picture(), "JPEG", quality=75, subsampling=2)),
    "jpeg-progressive.jpg": (37, lambda: encode(_picture(), "JPEG", quality=75, progressive=True)),
    "jpeg-grey.jpg": (37, lambda: encode(_picture()[:, :, 0].copy(), "JPEG", quality=75)),
    "jpeg-cmyk-adobe.jpg": (37, lambda: _cmyk(adobe=True)),
    "jpeg-cmyk-plain.jpg": (37, lambda: _cmyk(adobe=False)),
    "webp-lossy.webp": (37, lambda: encode(_picture(), "WEBP", quality=75)),
    "webp-lossless.webp": (37, lambda: encode(_picture(), "WEBP", lossless=True)),
    "bmp-24.bmp": (37, lambda: encode(_picture(), "BMP")),
    "bmp-palette.bmp": (37, lambda: encode(Image.fromarray(_picture()).quantize(17), "BMP")),
    "bmp-32.bmp": (37, lambda: bmp(_rgba().tobytes(), WIDTH, HEIGHT, header=108, compression=3)),
    "png-grey.png": (37, lambda: encode(_picture()[:, :, 1].copy(), "PNG")),
    "png-1-bit.png": (37, lambda: encode(Image.fromarray(_picture()[:, :, 0] > 127), "PNG")),
    "png-palette.png": (37, lambda: encode(Image.fromarray(_picture()).quantize(17), "PNG")),
    "png-16-bit-grey.png": (37, lambda: _opencv(".png", _wide()[:, :, 0].copy())),
    "png-16-bit-rgba.png": (37, lambda: _opencv(".png", _wide())),
    "tiff-lzw.tif": (37, lambda: encode(_picture(), "TIFF", compression="tiff_lzw")),
    "tiff-deflate.tif": (37, lambda: encode(_picture(), "TIFF", compression="tiff_deflate")),
    "tiff-16-bit.tif": (37, lambda: tiff(WIDTH, HEIGHT, 16, 1, 1, _wide()[:, :, 1].tobytes())),
    "tiff-white-is-zero.tif": (37, lambda: tiff(WIDTH, HEIGHT, 8, 0, 1, _picture()[:, :, 0].tobytes())),
    "png-alpha.png": (38, lambda: encode(_rgba(), "PNG")),
    "webp-alpha.webp": (38, lambda: encode(_rgba(), "WEBP", quality=75)),
    "tiff-premultiplied.tif": (38, lambda: tiff(WIDTH, HEIGHT, 8, 2, 4, _rgba().tobytes(), t338=[1])),
    "png-trns.png": (
        38,
        lambda: png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6])], [(b"tRNS", struct.pack(">HHH", 1, 2, 3))]),
    ),
    **{
        f"exif-{value}.jpg": (39, lambda value=value: _turned(encode(_picture(), "JPEG", quality=90), value))  # type: ignore[misc]
        for value in range(1, 9)
    },
    "exif-6.png": (39, lambda: _turned(encode(_picture(), "PNG"), 6)),
    "exif-6.webp": (39, lambda: encode(_picture(), "WEBP", lossless=True, exif=exif(6))),
    "exif-broken.jpg": (39, lambda: with_exif(encode(_picture(), "JPEG", quality=90), b"nonsense")),
    "apng.png": (40, lambda: _animation("PNG")),
    "animated.webp": (40, lambda: _animation("WEBP", lossless=True)),
    "pages.tif": (40, lambda: _animation("TIFF")),
    "mpo.jpg": (40, lambda: _animation("MPO")),
    "icc.jpg": (41, lambda: encode(_picture(), "JPEG", quality=90, icc_profile=_profile())),
    "icc.png": (41, lambda: encode(_picture(), "PNG", icc_profile=_profile())),
    "chunks.png": (41, lambda: _with_chunks(encode(_picture(), "PNG"))),
}


def _with_chunks(data: bytes) -> bytes:
    extra = png_chunk(b"gAMA", struct.pack(">I", 100_000)) + png_chunk(b"tEXt", b"k\0v") * 500
    return data[:33] + extra + data[33:]


def pixels_of(data: bytes) -> dict[str, Any]:
    """What an encoded picture gives: size, flags, channel means, and the digest of its row-major RGB bytes."""
    decoded = decode(data, Limits())
    return {
        "size": [decoded.pixels.shape[1], decoded.pixels.shape[0]],
        "flags": list(decoded.flags),
        "mean": [round(float(v), 4) for v in decoded.pixels.mean(axis=(0, 1), dtype=np.float64)],
        "sha256": hashlib.sha256(decoded.pixels.tobytes()).hexdigest(),
    }


def crops_of(data: bytes, name: str) -> dict[str, Any]:
    """What one of `CONTRACTS` makes of a picture."""
    made = prepare(data, CONTRACTS[name], "s")
    return {"size": list(made.working_size), "flags": list(made.flags), "sha256": made.sha256()}


def source_of(name: str) -> str:
    """The file that a contract is shown on."""
    return "lies.jpg" if name.startswith("small") else SOURCE


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    images = {}
    for name, (row, make) in KINDS.items():
        data = make()
        with Image.open(io.BytesIO(data)) as opened:  # an independent reader knows it too
            opened.load()
        (FOLDER / name).write_bytes(data)
        images[name] = {"row": row, **pixels_of(data)}
    contracts = {name: crops_of((FOLDER / source_of(name)).read_bytes(), name) for name in CONTRACTS}
    GOLDEN.write_text(json.dumps({"images": images, "contracts": contracts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
