"""Golden pixels for every kind of image: one rule each, computed here a second time."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gamma_runtime.contract import Limits
from gamma_runtime.decode import decode
from gamma_runtime.errors import InputError
from tests.runtime.images import bmp, encode, exif, photo, png, png_chunk, riff, tiff, webp_chunk, with_exif

LIMITS = Limits(max_aspect=1000)


def pixels(data: bytes) -> NDArray[np.uint8]:
    return decode(data, LIMITS).pixels


def flags(data: bytes) -> tuple[str, ...]:
    return decode(data, LIMITS).flags


def on_white(colour: int, alpha: int) -> int:
    return round((colour * alpha + 255 * (255 - alpha)) / 255)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_return_the_pixels(kind: str) -> None:
    picture = photo()
    decoded = decode(encode(picture, kind), LIMITS)
    np.testing.assert_array_equal(decoded.pixels, picture)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags["C_CONTIGUOUS"]
    assert decoded.flags == ()


def test_lossless_webp() -> None:
    np.testing.assert_array_equal(pixels(encode(photo(), "WEBP", lossless=True)), photo())


def test_lossy_webp_equals_pillow() -> None:
    data = encode(photo(), "WEBP", quality=80)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("rows", [7, 240])
def test_tiff_compressions(compression: str, predictor: int, rows: int) -> None:
    data = encode(photo(), "TIFF", compression=compression, tiffinfo={317: predictor, 278: rows})
    np.testing.assert_array_equal(pixels(data), photo())


@pytest.mark.parametrize("kind", ["flat", "noise", "photo"])
def test_lzw_lengths_for_short_and_long_codes(kind: str) -> None:
    """Flat pictures make the longest strings, noise the most clear codes."""
    flat = np.full((600, 500, 3), 7, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (600, 500, 3), dtype=np.uint8)
    picture = {"flat": flat, "noise": noise, "photo": photo(500, 600)}[kind]
    np.testing.assert_array_equal(pixels(encode(picture, "TIFF", compression="tiff_lzw")), picture)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_libjpeg_with_its_default_idct_and_upsampling(subsampling: int, progressive: bool) -> None:
    data = encode(photo(321, 243), "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_jpeg_followed_by_other_bytes_is_fine() -> None:
    data = encode(photo(), "JPEG")
    np.testing.assert_array_equal(pixels(data + b"appended by a camera"), pixels(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_grey_is_repeated(kind: str) -> None:
    grey = photo()[:, :, 1].copy()
    data = encode(grey, kind)
    decoded = decode(data, LIMITS)
    assert decoded.flags == ("grey",)
    np.testing.assert_array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit(kind: str) -> None:
    bits = photo()[:, :, 0] > 127
    expected = np.repeat(bits[:, :, None] * np.uint8(255), 3, axis=2)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(bits), kind)), expected)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_palette(kind: str) -> None:
    picture = Image.fromarray(photo()).quantize(17)
    np.testing.assert_array_equal(pixels(encode(picture, kind)), np.asarray(picture.convert("RGB")))


def test_palette_with_transparency() -> None:
    data = png(2, 1, 8, 3, [bytes([0, 1])], [(b"PLTE", bytes([1, 2, 3, 40, 50, 60])), (b"tRNS", b"\x05")])
    assert pixels(data).tolist() == [[[on_white(c, 5) for c in (1, 2, 3)], [40, 50, 60]]]
    assert flags(data) == ("alpha",)


def test_alpha_lies_on_white() -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    expected = np.vectorize(on_white)(rgba[:, :, :3].astype(int), rgba[:, :, 3:].astype(int))
    for data in (encode(rgba, "PNG"), encode(rgba, "WEBP", lossless=True, exact=True), encode(rgba, "TIFF")):
        np.testing.assert_array_equal(pixels(data), expected)
        assert flags(data) == ("alpha",)


def test_colour_hidden_under_full_transparency_never_shows() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :, 0] = 200
    assert pixels(encode(rgba, "PNG")).min() == 255


def test_grey_with_alpha() -> None:
    data = png(2, 1, 8, 4, [bytes([10, 100, 20, 255])])
    assert pixels(data)[0, :, 0].tolist() == [on_white(10, 100), 20]


@pytest.mark.parametrize(
    ("depth", "row", "key", "expected"),
    [
        (1, b"\x40", 1, [0, 255]),
        (1, b"\x40", 0, [255, 255]),
        (2, b"\x10", 0, [255, 85]),
        (4, b"\x2f", 2, [255, 255]),
        (8, bytes([7, 9]), 7, [255, 9]),
        (16, struct.pack(">HH", 0x1234, 0x1235), 0x1234, [255, 18]),
    ],
)
def test_grey_png_with_a_transparent_value(depth: int, row: bytes, key: int, expected: list[int]) -> None:
    data = png(2, 1, depth, 0, [row], [(b"tRNS", struct.pack(">H", key))])
    assert pixels(data)[0, :, 2].tolist() == expected
    assert flags(data)[:2] == ("alpha", "grey")


def test_rgb_png_with_a_transparent_colour() -> None:
    data = png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6])], [(b"tRNS", struct.pack(">HHH", 1, 2, 3))])
    assert pixels(data).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_sixteen_bits_are_divided_by_257_and_rounded() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    for kind in (".png", ".tiff"):
        data = cv2.imencode(kind, values)[1].tobytes()
        np.testing.assert_array_equal(pixels(data)[:, :, 0], expected)
        assert flags(data) == ("grey", "16-bit")


def test_sixteen_bit_colour_and_alpha() -> None:
    data = png(1, 1, 16, 6, [struct.pack(">4H", 257 * 10, 257 * 20, 257 * 30, 257 * 40)])
    assert pixels(data).tolist() == [[[on_white(c, 40) for c in (10, 20, 30)]]]
    assert flags(data) == ("alpha", "16-bit")


def test_tiff_alpha_straight_and_premultiplied() -> None:
    straight = tiff(1, 1, 8, 2, 4, bytes([200, 100, 50, 100]), t338=[2])
    assert pixels(straight).tolist() == [[[on_white(c, 100) for c in (200, 100, 50)]]]
    premultiplied = tiff(1, 1, 8, 2, 4, bytes([90, 80, 70, 100]), t338=[1])
    assert pixels(premultiplied).tolist() == [[[90 + 155, 80 + 155, 70 + 155]]]
    wide = struct.pack("<4H", *(257 * v for v in (90, 80, 70, 100)))
    assert pixels(tiff(1, 1, 16, 2, 4, wide, t338=[1])).tolist() == [[[245, 235, 225]]]
    assert pixels(tiff(1, 1, 16, 2, 4, wide, t338=[2])).tolist() == [[[on_white(c, 100) for c in (90, 80, 70)]]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_byte_orders(order: str) -> None:
    data = tiff(2, 1, 16, 1, 1, struct.pack(order + "HH", 257 * 3, 257 * 200), order=order)
    assert pixels(data)[0, :, 0].tolist() == [3, 200]


def test_white_is_zero_tiff() -> None:
    assert pixels(tiff(2, 1, 8, 0, 1, bytes([10, 20])))[0, :, 0].tolist() == [245, 235]


def cmyk_jpeg() -> tuple[bytes, NDArray[np.uint8]]:
    """An Adobe CMYK JPEG, and the bytes it stores (255 is no ink)."""
    inks = np.stack([photo(64, 48, seed)[:, :, 0] for seed in range(4)], axis=2)
    data = encode(Image.frombytes("CMYK", (64, 48), inks.tobytes()), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        return data, 255 - np.asarray(opened)


def test_cmyk_jpeg_without_profile_is_what_the_inks_leave_of_white() -> None:
    data, stored = cmyk_jpeg()
    light = stored.astype(int)
    expected = np.rint(light[:, :, :3] * light[:, :, 3:] / 255)
    assert flags(data) == ("cmyk",)
    np.testing.assert_array_equal(pixels(data), expected)


def test_cmyk_jpeg_without_the_adobe_marker_is_not_inverted() -> None:
    data, stored = cmyk_jpeg()
    start = data.index(b"\xff\xee")
    (length,) = struct.unpack(">H", data[start + 2 : start + 4])
    light = 255 - stored.astype(int)
    expected = np.rint(light[:, :, :3] * light[:, :, 3:] / 255)
    np.testing.assert_array_equal(pixels(data[:start] + data[start + 2 + length :]), expected)


UPRIGHT = photo(48, 32)
STORED = {  # how a camera stores the upright picture for each EXIF orientation
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_rotated_copies_equal_the_upright_picture(orientation: int, order: str) -> None:
    stored = np.ascontiguousarray(STORED[orientation])
    block = exif(orientation, order)
    lossless = [
        with_exif(encode(stored, "PNG"), block),
        encode(stored, "WEBP", lossless=True, exif=block),
        encode(stored, "WEBP", lossless=True, exif=b"Exif\0\0" + block),
        tiff(stored.shape[1], stored.shape[0], 8, 2, 3, stored.tobytes(), order, t274=[orientation]),
    ]
    for data in lossless:
        np.testing.assert_array_equal(pixels(data), UPRIGHT)
        assert flags(data) == ()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_orientation(orientation: int) -> None:
    plain = encode(UPRIGHT, "JPEG", quality=95)
    expected = Image.open(io.BytesIO(with_exif(plain, exif(orientation))))
    transposed = np.asarray(ImageOps.exif_transpose(expected))
    np.testing.assert_array_equal(pixels(with_exif(plain, exif(orientation))), transposed)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_orientation_does_not_depend_on_the_sample_type(dtype: type) -> None:
    bits = np.dtype(dtype).itemsize * 8
    data = tiff(2, 1, bits, 1, 1, np.array([1, 255], dtype).tobytes(), t274=[6])
    assert pixels(data).shape == (2, 1, 3)


@pytest.mark.parametrize(
    "block", [b"", b"II*\0", b"nonsense", exif(0), exif(9), exif(6)[:-8], b"II*\0\xff\xff\xff\xff"]
)
def test_broken_exif_is_ignored_and_flagged(block: bytes) -> None:
    for data in (encode(UPRIGHT, "JPEG"), encode(UPRIGHT, "PNG")):
        broken = with_exif(data, block)
        assert flags(broken) == ("exif-broken",)
        np.testing.assert_array_equal(pixels(broken), pixels(data))


FRAMES = [Image.fromarray(np.full((30, 40, 3), value, np.uint8)) for value in (50, 100, 200)]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_first_frame_of_many(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **options)
    assert flags(data) == ("frames",)
    assert set(pixels(data).ravel().tolist()) == {50}


def test_webp_frame_that_covers_a_part_lies_on_white() -> None:
    still = encode(np.full((4, 6, 3), 50, np.uint8), "WEBP", lossless=True)
    place = struct.pack("<HBHB", 2, 0, 1, 0) + struct.pack("<HBHB", 5, 0, 3, 0) + b"\x64\0\0\0"
    body = webp_chunk(b"VP8X", struct.pack("<I", 2) + struct.pack("<HBHB", 19, 0, 9, 0))
    data = riff(body + webp_chunk(b"ANIM", bytes(6)) + webp_chunk(b"ANMF", place + still[12:]))
    expected = np.full((10, 20, 3), 255, np.uint8)
    expected[2:6, 4:10] = 50
    np.testing.assert_array_equal(pixels(data), expected)
    assert flags(data) == ("alpha", "frames")


def test_mpo_is_a_jpeg_with_frames() -> None:
    data = encode(photo(), "MPO", save_all=True, append_images=[Image.fromarray(photo(seed=1))])
    assert flags(data) == ("frames",)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_bmp_padding_byte_is_not_alpha_unless_a_mask_says_so() -> None:
    row = bytes([1, 2, 3, 0, 4, 5, 6, 100])
    plain = [[[3, 2, 1], [6, 5, 4]]]
    assert pixels(bmp(row, 2, 1)).tolist() == plain
    assert pixels(bmp(row, 2, 1, compression=3)).tolist() == plain
    assert pixels(bmp(row, 2, 1, header=108)).tolist() == plain
    declared = bmp(row, 2, 1, header=108, compression=3)
    assert pixels(declared).tolist() == [[[255] * 3, [on_white(c, 100) for c in (6, 5, 4)]]]
    assert flags(declared) == ("alpha",)


def test_bmp_top_down() -> None:
    rows = bytes([1, 1, 1, 0]) + bytes([9, 9, 9, 0])
    assert pixels(bmp(rows, 1, -2))[:, 0, 0].tolist() == [1, 9]
    assert pixels(bmp(rows, 1, 2))[:, 0, 0].tolist() == [9, 1]


def test_metadata_chunks_do_not_change_pixels() -> None:
    plain = encode(photo(), "PNG")
    extra = png_chunk(b"gAMA", struct.pack(">I", 100000)) + png_chunk(b"tEXt", b"k\0v") * 10_000
    np.testing.assert_array_equal(pixels(plain[:33] + extra + plain[33:]), photo())


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encode(photo(), "PNG"))
    np.testing.assert_array_equal(decode(path, LIMITS).pixels, photo())
    np.testing.assert_array_equal(decode(str(path), LIMITS).pixels, photo())
    np.testing.assert_array_equal(decode(bytearray(path.read_bytes()), LIMITS).pixels, photo())


def test_a_link_to_a_photo_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(photo(), "PNG"))
    os.symlink(tmp_path / "a.png", tmp_path / "b.png")
    np.testing.assert_array_equal(decode(tmp_path / "b.png", LIMITS).pixels, photo())


def test_the_allow_list_is_the_contracts() -> None:
    with pytest.raises(InputError, match="png"):
        decode(encode(photo(), "PNG"), LIMITS, formats=("jpeg",))
