"""Where crops are cut, how far photos are reduced, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import cv2
import numpy as np
import pytest
from PIL import Image

from gamma_runtime.contract import Contract, CropPolicy, Limits
from gamma_runtime.crops import positions, prepare, prepare_scenes, splitmix64, working_size
from gamma_runtime.errors import InputError, UsageError
from tests.runtime.images import encode, photo

CONTRACT = Contract(short_sides={"natural-quality": 384, "underwater-quality": 224, "native": None})


def test_splitmix64_gives_its_authors_numbers() -> None:
    """The first numbers of the published reference for seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert list(itertools.islice(splitmix64(1234567), 4)) == expected


def test_centre_and_five() -> None:
    assert positions(CropPolicy("centre"), 300, 401) == [(88, 38)]
    assert positions(CropPolicy("five"), 300, 401) == [(88, 38), (0, 0), (0, 76), (177, 0), (177, 76)]
    assert positions(CropPolicy("five"), 224, 224) == [(0, 0)] * 5


def test_grid_is_spread_edge_to_edge_in_rows() -> None:
    assert positions(CropPolicy.parse("grid2x3"), 325, 300) == [(0, 0), (0, 51), (0, 101), (76, 0), (76, 51), (76, 101)]
    assert positions(CropPolicy.parse("grid1x1"), 325, 300) == [(38, 50)]
    assert positions(CropPolicy.parse("grid1x2"), 325, 300) == [(38, 0), (38, 101)]


def test_random_is_repeatable_and_known() -> None:
    policy = CropPolicy.parse("random10:seed7")
    known = positions(policy, 1000, 500)
    assert known == positions(policy, 1000, 500)
    # From the same eight lines in C: the C++ runtime must give the same.
    assert known[:3] == [(107, 13), (249, 452), (125, 193)]
    assert known != positions(CropPolicy.parse("random10:seed8"), 1000, 500)


def test_random_reaches_every_position_and_no_other() -> None:
    policy = CropPolicy("random", count=4000)
    found = set(positions(policy, 227, 226))
    assert found == {(y, x) for y in range(3) for x in range(4)}
    assert set(positions(policy, 224, 224)) == {(0, 0)}


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((800, 600), 384, (512, 384)),
        ((600, 800), 384, (384, 512)),
        ((385, 385), 384, (384, 384)),
        ((384, 999), 384, (384, 999)),
        ((300, 200), 384, (300, 200)),
        ((1000, 667), 384, (576, 384)),  # 575.71
        ((1001, 768), 384, (501, 384)),  # 500.5 goes up
        ((5000, 4000), None, (5000, 4000)),
    ],
)
def test_working_size(size: tuple[int, int], short: int | None, expected: tuple[int, int]) -> None:
    assert working_size(*size, short) == expected


def test_photos_are_reduced_by_area_before_they_are_cut() -> None:
    picture = photo(768, 1000)
    prepared = prepare(picture, CONTRACT, "natural-quality")
    reduced = cv2.resize(picture, (384, 500), interpolation=cv2.INTER_AREA)
    assert prepared.working_size == (384, 500)
    assert prepared.crops.shape == (5, 224, 224, 3)
    assert prepared.crops.dtype == np.uint8
    np.testing.assert_array_equal(prepared.crops[4], reduced[-224:, -224:])
    assert prepared.flags == ()


def test_halving_is_the_rounded_mean_of_four() -> None:
    """INTER_AREA's exact case, computed by hand: what other languages must give."""
    picture = np.random.default_rng(0).integers(0, 256, (768, 768, 3), dtype=np.uint8)
    contract = dataclasses.replace(CONTRACT, crop=CropPolicy("centre"))
    four = picture.reshape(384, 2, 384, 2, 3).astype(int).sum(axis=(1, 3))
    expected = ((four + 2) // 4)[80:304, 80:304]
    np.testing.assert_array_equal(prepare(picture, contract, "natural-quality").crops[0], expected)


def test_photos_are_never_enlarged() -> None:
    picture = photo(300, 250)
    prepared = prepare(picture, CONTRACT, "natural-quality")
    assert prepared.working_size == (300, 250)
    np.testing.assert_array_equal(prepared.crops[1], picture[:224, :224])


def test_native_keeps_the_pixels_and_says_so() -> None:
    prepared = prepare(photo(900, 700), CONTRACT, "native")
    assert prepared.working_size == (900, 700)
    assert prepared.flags == ("native",)


def test_small_is_refused_unless_asked() -> None:
    picture = photo(400, 223)
    with pytest.raises(InputError, match="400x223") as caught:
        prepare(picture, CONTRACT, "natural-quality")
    assert "--small resize" in (caught.value.hint or "")
    prepared = prepare(picture, dataclasses.replace(CONTRACT, small="resize"), "natural-quality")
    assert prepared.working_size == (402, 224)
    assert prepared.flags == ("enlarged",)
    enlarged = cv2.resize(picture, (402, 224), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(prepared.crops[1], enlarged[:224, :224])


def test_one_pixel_enlarges_too() -> None:
    contract = dataclasses.replace(CONTRACT, small="resize")
    assert prepare(photo(1, 1), contract, "natural-quality").working_size == (224, 224)
    with pytest.raises(InputError, match="20:1"):
        prepare(np.zeros((1, 65_000 // 4, 3), np.uint8), contract, "natural-quality")


def test_encoded_and_array_give_the_same_crops() -> None:
    picture = photo(500, 400)
    assert prepare(encode(picture, "PNG"), CONTRACT, "native").sha256() == prepare(picture, CONTRACT, "native").sha256()


def test_arrays_need_not_be_contiguous() -> None:
    picture = photo(600, 500)
    turned = picture[::-1, ::2]
    np.testing.assert_array_equal(
        prepare(turned, CONTRACT, "native").crops, prepare(turned.copy(), CONTRACT, "native").crops
    )


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((300, 300), np.uint8),
        np.zeros((300, 300, 4), np.uint8),
        np.zeros((3, 300, 300), np.uint8),
        np.zeros((300, 300, 3), np.float32),
        np.zeros((300, 300, 3), np.uint16),
        np.zeros((0, 300, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused_with_what_was_found(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=str(array.dtype)) as caught:
        prepare(array, CONTRACT, "native")
    assert str(list(array.shape)) in caught.value.message


def test_arrays_obey_the_limits() -> None:
    contract = dataclasses.replace(CONTRACT, limits=Limits(max_pixels=90_000))
    with pytest.raises(InputError, match="90000"):
        prepare(np.zeros((301, 300, 3), np.uint8), contract, "native")


def test_scenes_with_one_working_size_share_the_crops() -> None:
    contract = dataclasses.replace(CONTRACT, short_sides={"a": 384, "b": 384, "c": 224})
    large = prepare_scenes(photo(800, 600), contract, ("a", "b", "c"))
    assert large["a"] is large["b"]
    assert large["c"].working_size == (299, 224)
    small = prepare_scenes(photo(224, 224), contract, ("a", "c"))
    assert small["a"] is small["c"]


def test_unknown_scene_and_policy() -> None:
    with pytest.raises(UsageError, match="nonsense"):
        prepare(photo(), CONTRACT, "nonsense")
    with pytest.raises(UsageError, match="spiral"):
        positions(CropPolicy("spiral"), 300, 300)


def test_digest_is_of_the_row_major_bytes() -> None:
    prepared = prepare(photo(), CONTRACT, "native")
    assert prepared.sha256() == hashlib.sha256(prepared.crops.tobytes()).hexdigest()


def test_an_upside_down_photo_with_its_tag_gives_the_same_crops() -> None:
    picture = photo(480, 360)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encode(np.ascontiguousarray(picture[::-1, ::-1]), "PNG", exif=exif)
    assert (
        prepare(turned, CONTRACT, "natural-quality").sha256()
        == prepare(encode(picture, "PNG"), CONTRACT, "natural-quality").sha256()
    )
