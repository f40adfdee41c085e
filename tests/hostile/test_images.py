"""Rows 33 to 41 of the hostile list: refused with a typed error, or the defined result; never a crash."""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from gamma_runtime.contract import Limits
from gamma_runtime.decode import decode
from gamma_runtime.errors import InputError
from tests.runtime.images import bmp, encode, exif, photo, png, png_chunk, riff, tiff, webp_chunk, with_exif

LIMITS = Limits()


def refused(source: bytes | str | Path, message: str = ".", limits: Limits = LIMITS) -> None:
    with pytest.raises(InputError, match=message) as caught:
        decode(source, limits)
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.message


WHOLE: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(photo(), "JPEG", quality=90),
    "jpeg-progressive": lambda: encode(photo(), "JPEG", quality=90, progressive=True),
    "jpeg-grey": lambda: encode(photo()[:, :, 0].copy(), "JPEG"),
    "png": lambda: encode(photo(), "PNG"),
    "webp": lambda: encode(photo(), "WEBP", quality=90),
    "webp-lossless": lambda: encode(photo(), "WEBP", lossless=True),
    "bmp": lambda: encode(photo(), "BMP"),
    "tiff": lambda: encode(photo(), "TIFF"),
    "tiff-lzw": lambda: encode(photo(), "TIFF", compression="tiff_lzw"),
    "tiff-deflate": lambda: encode(photo(), "TIFF", compression="tiff_deflate"),
}


# Row 33: what is no whole picture


SHARES = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999]


def cut(data: bytes, share: float) -> bytes:
    """The first part of a file, at least eight bytes of content short."""
    content = data.removesuffix(b"\xff\xd9")
    return content[: min(int(len(content) * share), len(content) - 8)]


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", SHARES)
def test_a_cut_file_is_never_scored(kind: str, share: float) -> None:
    refused(cut(WHOLE[kind](), share))


@pytest.mark.parametrize("kind", ["jpeg", "jpeg-progressive", "jpeg-grey"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("after", [b"", bytes(64)], ids=["eoi", "eoi-and-more"])
def test_a_cut_jpeg_with_an_eoi_is_never_scored(kind: str, share: float, after: bytes) -> None:
    refused(cut(WHOLE[kind](), share) + b"\xff\xd9" + after)


@pytest.mark.parametrize("kind", WHOLE)
def test_the_whole_files_are_scored(kind: str) -> None:
    """The control of the test above."""
    assert decode(WHOLE[kind](), LIMITS).pixels.shape == (240, 320, 3)


def scan_starts(data: bytes) -> list[int]:
    return [match.start() for match in re.finditer(rb"\xff\xda", data)]


@pytest.mark.parametrize("scan", range(1, 10))
def test_a_progressive_jpeg_cut_between_scans_with_an_eoi_is_never_scored(scan: int) -> None:
    data = WHOLE["jpeg-progressive"]()
    cut = data[: scan_starts(data)[scan]] + b"\xff\xd9"
    assert cv2.imdecode(np.frombuffer(cut, np.uint8), cv2.IMREAD_COLOR) is not None, "the fault that others score"
    refused(cut, "last scans are missing")


def test_a_sequential_jpeg_that_lacks_a_colour_scan_is_never_scored() -> None:
    """Its only scan claims one component of three; the other two never come."""
    data = WHOLE["jpeg"]()
    start = scan_starts(data)[0]
    first_only = data[:start] + b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0) + data[start + 14 :]
    refused(first_only)


def webp_with_true_sizes(data: bytes, length: int) -> bytes:
    body = bytearray(data[:length])
    struct.pack_into("<I", body, 4, length - 8)
    struct.pack_into("<I", body, 16, length - 20)
    return bytes(body)


@pytest.mark.parametrize("kind", ["webp", "webp-lossless"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_cut_webp_with_repaired_sizes_is_never_scored(kind: str, share: float) -> None:
    data = WHOLE[kind]()
    refused(webp_with_true_sizes(data, int(len(data) * share) & ~1))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_png_with_repaired_crcs_is_never_scored(share: float) -> None:
    data = WHOLE["png"]()
    start = data.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", data[start - 8 : start - 4])
    refused(data[: start - 8] + png_chunk(b"IDAT", data[start : start + int(length * share)]) + png_chunk(b"IEND", b""))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_tiff_strip_declared_shorter_is_never_scored(compression: str, share: float) -> None:
    data = bytearray(encode(photo(), "TIFF", compression=compression, tiffinfo={278: 240}))
    (ifd,) = struct.unpack_from("<I", data, 4)
    entries = {struct.unpack_from("<H", data, at)[0]: at for at in range(ifd + 2, ifd + 2 + 12 * data[ifd], 12)}
    (number, length) = struct.unpack_from("<II", data, entries[279] + 4)
    assert number == 1
    decode(bytes(data), LIMITS)
    struct.pack_into("<I", data, entries[279] + 8, int(length * share))
    refused(bytes(data), "strip|cut off")


def test_one_changed_bit_in_png_data_is_refused() -> None:
    data = bytearray(WHOLE["png"]())
    data[len(data) // 2] ^= 1
    refused(bytes(data), "CRC")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, world", "not an image"),
        (bytes(1000), "not an image"),
        (np.random.default_rng(0).bytes(5000), "not an image"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"\xff\xd8\xff", "cut off"),
        (b"\x89PNG\r\n\x1a\n", "cut off"),
        (b"RIFF\xff\xff\xff\xffWEBP", "cut off"),
        (b"II*\0\xff\xff\xff\xff", "cut off"),
    ],
)
def test_what_is_no_picture(data: bytes, message: str) -> None:
    refused(data, message)


def test_no_such_file_folder_and_nul(tmp_path: Path) -> None:
    refused(tmp_path / "missing.jpg", "No such file")
    refused(tmp_path, "not a regular file|directory")
    refused("a\0b.jpg", "null|NUL")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", "symbolic links")


def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    done = threading.Event()

    def attempt() -> None:
        refused(tmp_path / "pipe.jpg", "not a regular file")
        refused("/dev/zero", "not a regular file")
        done.set()

    threading.Thread(target=attempt, daemon=True).start()
    assert done.wait(5), "opening a pipe waits for a writer"


def test_what_is_not_a_path_or_bytes() -> None:
    with pytest.raises(InputError, match="int"):
        decode(7, LIMITS)  # type: ignore[arg-type]


# Row 34: the extension lies


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"GIF89a", "GIF"),
        (b"8BPS\0\1", "PSD"),
        (b"%!PS-Adobe-3.0 EPSF", "PostScript"),
        (b"%PDF-1.7", "PDF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\0\0\0\x20ftypheic", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"II+\0\x08\0", "BigTIFF"),
    ],
)
def test_other_formats_are_named_and_refused(tmp_path: Path, magic: bytes, name: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(magic + bytes(500))
    refused(path, name)


# Row 35: bombs


def bomb(width: int, height: int) -> bytes:
    return png(width, height, 8, 0, [bytes(min(width, 70_000))] * min(height, 4))


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (20_000, 20_000, "16384 pixels a side"),
        (16_384, 16_384, "limit is 64000000"),
        (8_001, 8_000, "limit is 64000000"),
        (2**31 - 1, 2**31 - 1, "a side"),
        (65_535, 1, "a side"),
        (1, 65_535, "a side"),
        (4_481, 224, "20:1"),
        (0, 5, "size 0x5"),
    ],
)
def test_size_is_refused_from_the_header(width: int, height: int, message: str) -> None:
    refused(bomb(width, height), message)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF"])
def test_size_is_refused_in_every_format(kind: str) -> None:
    refused(encode(np.zeros((300, 400, 3), np.uint8), kind), "400x300", Limits(max_side=399))
    refused(encode(np.zeros((300, 400, 3), np.uint8), kind), "120000 pixels", Limits(max_pixels=119_999))
    refused(encode(np.zeros((300, 400, 3), np.uint8), kind), "aspect", Limits(max_aspect=1.3))


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as stream:
        stream.truncate(LIMITS.max_bytes + 1)
    refused(path, "67108865 bytes; the limit is 67108864")
    refused(bytes(11), "11 bytes; the limit is 10", Limits(max_bytes=10))


def test_a_jpeg_with_thousands_of_scans_is_refused() -> None:
    data = WHOLE["jpeg-progressive"]()
    starts = scan_starts(data)
    refused(data[: starts[1]] + data[starts[1] : starts[2]] * 200 + data[starts[1] :], "more than 100 scans")


def test_counts_are_capped() -> None:
    refused(b"\xff\xd8" + b"\xff\xe5\0\2" * 20_000, "10000 markers")
    refused(WHOLE["png"]()[:33] + png_chunk(b"tEXt", b"") * 70_000, "65536 chunks")
    refused(riff(webp_chunk(b"XMP ", b"") * 20_000), "10000 chunks")


# Row 37: kinds that are not on the list


@pytest.mark.parametrize(
    "data",
    [
        cv2.imencode(".tiff", np.zeros((4, 4), np.float32))[1].tobytes(),
        tiff(2, 1, 16, 1, 1, bytes(4), t339=[2]),
        tiff(2, 1, 32, 1, 1, bytes(8)),
        tiff(2, 1, 16, 0, 1, bytes(4)),
        tiff(2, 1, 4, 1, 1, bytes(1)),
        tiff(2, 1, 8, 5, 4, bytes(8)),
        tiff(2, 1, 8, 2, 4, bytes(8)),
        tiff(2, 1, 8, 2, 3, bytes(6), t284=[2]),
        tiff(2, 1, 8, 2, 3, bytes(6), t322=[16]),
        tiff(2, 1, 8, 2, 3, bytes(6), t259=[7]),
        bmp(bytes(4), 2, 1, bits=16),
        bmp(bytes(8), 2, 1, compression=1, bits=8),
        bmp(bytes(8), 2, 1, header=12),
        bmp(bytes(8), -2, 1),
    ],
)
def test_kinds_that_decoders_disagree_about_are_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC9, 0xCA, 0xCF])
def test_other_jpeg_processes_are_refused(marker: int) -> None:
    data = WHOLE["jpeg"]()
    refused(data.replace(b"\xff\xc0", bytes([0xFF, marker]), 1), "lossless, hierarchical or arithmetic")


def test_twelve_bit_jpeg_is_refused() -> None:
    data = WHOLE["jpeg"]()
    at = data.index(b"\xff\xc0")
    refused(data[: at + 4] + b"\x0c" + data[at + 5 :], "12 bits")


# Rows 39 and 41: metadata


def test_hostile_exif_never_stops_a_good_picture() -> None:
    endless = b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(65_000)
    for block in (endless[:65_000], exif(6)[:9], b"MM\0*\xff\xff\xff\xf0"):
        assert decode(with_exif(WHOLE["jpeg"](), block), LIMITS).flags == ("exif-broken",)


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\n\x1b[31mb.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        decode(path, LIMITS)
    assert "\x1b" not in str(caught.value)
    assert r"a\n\x1b[31mb.jpg" in str(caught.value)


def test_decoders_write_nothing_to_stderr_about_a_damaged_tiff(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(WHOLE["tiff-lzw"]())
    data[1000:2000] = bytes(1000)
    with pytest.raises(InputError):
        decode(bytes(data), LIMITS)
    assert capfd.readouterr().err == ""


# Every row: mutated files give a picture of the declared size or an InputError


@pytest.mark.parametrize("kind", WHOLE)
def test_mutated_files_raise_nothing_but_our_errors(kind: str) -> None:
    whole = WHOLE[kind]()
    draw = np.random.default_rng(len(kind))
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(int(draw.integers(1, 6))):
            # Headers are short and most interesting: half of the changes go there.
            end = 200 if draw.random() < 0.5 else len(data)
            data[int(draw.integers(0, end))] = int(draw.integers(0, 256))
        try:
            decoded = decode(bytes(data), Limits(max_pixels=200_000))
        except InputError:
            continue
        else:
            assert decoded.pixels.dtype == np.uint8
            assert decoded.pixels.ndim == 3
