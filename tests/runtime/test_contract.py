"""The contract's own text and hash: what was written before still loads, what is not known is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gamma_runtime.contract import CROP, MAX_COVER, MAX_CROPS, MAX_FRAME, Contract, CropPolicy, Limits
from gamma_runtime.crops import mirrored, positions, prepare
from gamma_runtime.errors import InputError, UsageError
from tests.runtime.images import encode, photo, png

# As a bundle of the first version carries it, byte for byte.
VERSION_1 = (
    '{"alpha":"composite on white","crop":{"cols":0,"count":0,"kind":"five","rows":0,"seed":0},'
    '"exif_orientation":"apply","formats":["jpeg","png","webp","bmp","tiff"],"grey":"repeat to three channels",'
    '"jpeg_decoder":"libjpeg-turbo, warnings are errors","limits":{"max_aspect":20.0,"max_bytes":67108864,'
    '"max_pixels":64000000,"max_side":16384},"resize_kernel":"INTER_AREA","short_sides":{"native":null,'
    '"natural-quality":384,"underwater-quality":224},"sixteen_bit":"divide by 257, rounded","small":"refuse",'
    '"version":1}'
)
SIDES = {"natural-quality": 384, "underwater-quality": 224, "native": None}
COVER = Contract({"native": None, "natural": 384}, crop=CropPolicy("cover"))
FRAME = Contract({"native": None}, crop=CropPolicy.parse("frame640x480"))


def test_a_contract_of_version_1_loads_and_keeps_its_hash() -> None:
    contract = Contract.from_json(json.loads(VERSION_1))
    assert contract == Contract(dict(SIDES))
    assert contract.version == 1
    assert contract.sha256() == "105919162f7adf529dfb8cff26b520cbebcdc36284312354923fe3948f43e3c5"


@pytest.mark.parametrize(
    "contract",
    [COVER, FRAME, dataclasses.replace(COVER, small="pad"), Contract(dict(SIDES), frames="refuse", small="resize")],
    ids=["cover", "frame", "pad", "strict"],
)
def test_what_version_1_cannot_say_is_version_2(contract: Contract) -> None:
    data = contract.to_json()
    assert data["version"] == 2
    assert Contract.from_json(json.loads(json.dumps(data))) == contract


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"version": 1},
        {"frames": "last"},
        {"frames": None},
        {"crop": {"kind": "frame", "rows": 0, "cols": 0, "count": 0, "seed": 0, "width": 640, "height": 480}},
        {"crop": {"kind": "five", "rows": 0, "cols": 0, "count": 0, "seed": 0, "width": 640.0, "height": 480}},
        {"crop": {"kind": "five", "rows": 0, "cols": 0, "count": 0, "seed": 0, "width": 640, "height": 0}},
        {"crop": {"kind": "five", "rows": 0, "cols": 0, "count": 0, "seed": 0, "width": 640, "height": 100}},
        {"crop": {"kind": "five", "rows": 0, "cols": 0, "count": 0, "seed": 0, "width": 10**6, "height": 480}},
        {"crop": {"kind": "five", "rows": 0, "cols": 0, "count": 0, "seed": 0}},
        {"short_sides": {"native": 384}},
    ],
)
def test_a_version_2_that_is_not_understood_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, KeyError, ValueError, UsageError)):
        Contract.from_json(FRAME.to_json() | change)


@pytest.mark.parametrize(
    ("text", "crops"),
    [
        ("cover", 1),
        ("frame1280x720:five", 5),
        ("frame1280x720:cover", 24),
        ("frame1280x720:grid2x3", 6),
        ("frame224x224:centre", 1),
        ("frame640x480:random10:seed7", 10),
    ],
)
def test_policies_are_read_as_they_are_written(text: str, crops: int) -> None:
    policy = CropPolicy.parse(text)
    assert (str(policy), policy.crops) == (text, crops)
    assert policy.varies == (text == "cover")


def test_five_is_what_a_frame_gets_unless_told() -> None:
    assert CropPolicy.parse("frame1280x720") == CropPolicy.parse("frame1280x720:five")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frame", "unknown"),
        ("frame640x480:", "unknown"),
        ("frame640x480five", "unknown"),
        ("frame640x480:frame640x480", "unknown"),
        ("frame640x223", "224 to 7680"),
        ("frame7681x500", "224 to 7680"),
        ("frame7680x224", "20:1"),
        ("frame3840x2160:cover", "180 crops; the limit is 1 to 64"),
        ("cover2x2", "unknown"),
    ],
)
def test_policies_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CropPolicy.parse(text)


def test_cover_sees_every_pixel_with_the_fewest_crops() -> None:
    """Each axis on its own: the crops of a row start where the last one ended, or before."""
    for side in range(224, 3000):
        lefts = [left for _, left in positions(CropPolicy("cover"), side, 224)]
        assert lefts[0] == 0
        assert lefts[-1] + 224 == side
        assert all(0 < right - left <= 224 for left, right in itertools.pairwise(lefts))
        assert 224 * (len(lefts) - 1) < side, "one crop fewer would not do"


def test_cover_in_two_dimensions() -> None:
    assert positions(CropPolicy("cover"), 449, 225) == [(0, 0), (0, 113), (0, 225), (1, 0), (1, 113), (1, 225)]
    seen = np.zeros((387, 640), bool)
    for top, left in positions(CropPolicy("cover"), 640, 387):
        seen[top : top + 224, left : left + 224] = True
    assert seen.all()
    assert prepare(photo(800, 600), COVER, "natural").crops.shape == (6, 224, 224, 3)


def test_too_many_crops_are_refused_before_a_pixel_is_decoded() -> None:
    """16 x 17 crops; the file's pixels are missing, which only a decoder would notice."""
    data = png(16 * 224, 17 * 224, 8, 0, [bytes(16 * 224)])
    with pytest.raises(InputError, match=f"272 crops to cover; the limit is {MAX_COVER}"):
        prepare(data, COVER, "native")
    with pytest.raises(InputError, match="png"):
        prepare(data, dataclasses.replace(COVER, crop=CropPolicy()), "native")
    assert len(positions(COVER.crop, 16 * 224, 16 * 224)) == MAX_COVER


def test_a_frame_of_another_size_is_refused_before_a_pixel_is_decoded() -> None:
    data = png(641, 480, 8, 0, [bytes(641)])
    with pytest.raises(InputError, match="641x480; this bundle's graph takes frames of 640x480"):
        prepare(data, FRAME, "native")


def test_a_frame_is_kept_and_cut() -> None:
    frame = photo(640, 480)
    prepared = prepare(encode(frame, "PNG"), FRAME, "native")
    np.testing.assert_array_equal(prepared.graph_input, frame)
    np.testing.assert_array_equal(prepared.crops[4], frame[-224:, -224:])
    assert (prepared.working_size, prepared.flags) == ((640, 480), ("native",))


def test_pad_mirrors_the_short_sides_only() -> None:
    contract = Contract({"native": None}, small="pad", crop=CropPolicy("centre"))
    picture = photo(300, 221)
    prepared = prepare(picture, contract, "native")
    assert (prepared.working_size, prepared.flags) == ((300, 224), ("native", "padded"))
    expected = np.concatenate([picture[:1], picture, picture[-1:-3:-1]])  # one row above, two below
    np.testing.assert_array_equal(prepared.crops[0], expected[:, 38:262])
    assert prepare(np.full((1, 1, 3), 77, np.uint8), contract, "native").crops.mean() == 77


@pytest.mark.parametrize("size", [(3, 2), (224, 500), (700, 300), (300, 90)])
def test_mirrored_is_what_numpy_calls_symmetric(size: tuple[int, int]) -> None:
    picture = photo(*size)
    rows, columns = max(0, 240 - size[1]), max(0, 310 - size[0])
    padded = np.pad(
        picture, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)), "symmetric"
    )
    top, left = ((have - want + 1) // 2 for have, want in zip(padded.shape[:2], (240, 310), strict=True))
    np.testing.assert_array_equal(mirrored(picture, 310, 240), padded[top : top + 240, left : left + 310])


def test_the_amplified_size_is_computed_before_anything_is_made() -> None:
    """A wide limit lets long and thin pictures in: what they would grow to must still obey the limits."""
    contract = Contract({"native": None}, limits=Limits(max_aspect=20_000), small="resize")
    thin = np.zeros((16_384, 1, 3), np.uint8)
    with pytest.raises(InputError, match="1x16384 would become 224x3670016, over the limits"):
        prepare(thin, contract, "native")
    padded = prepare(thin, dataclasses.replace(contract, small="pad"), "native")
    assert padded.working_size == (224, 16_384)


def test_strict_refuses_several_pictures_before_a_pixel_is_decoded() -> None:
    frames = [photo(300, 260, seed=seed) for seed in range(3)]
    from PIL import Image

    more = [Image.fromarray(frame) for frame in frames[1:]]
    strict = Contract({"native": None}, frames="refuse")
    for kind in ("PNG", "WEBP", "TIFF", "MPO"):
        data = encode(frames[0], kind, save_all=True, append_images=more)
        assert "frames" in prepare(data, dataclasses.replace(strict, frames="first"), "native").flags
        with pytest.raises(InputError, match="more than one picture") as caught:
            prepare(data, strict, "native")
        assert "--strict" in (caught.value.hint or "")
        assert prepare(encode(frames[0], "PNG"), strict, "native").flags == ("native",)


def test_the_written_rules_have_the_codes_numbers() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "contract.md").read_text().split())
    limits = Limits()
    for words in (
        f"at most {MAX_COVER} crops",
        f"Sides are {CROP} to {MAX_FRAME} pixels, crops at most {MAX_CROPS}",
        f"{limits.max_bytes >> 20} MiB, {limits.max_pixels // 10**6} megapixels, {limits.max_side} pixels a side or "
        f"{limits.max_aspect:g}:1",
    ):
        assert words in text
    for policy in ("centre", "five", "cover"):
        assert f"| `{policy}`" in text
