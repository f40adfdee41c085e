"""Distortions: the same pixels every time, worse with every level, and a label that sees each of them."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from gamma_export.photos import packaged_photos
from gamma_runtime.errors import UsageError
from gamma_training.data.distortions import KINDS, LEVEL_COUNT, STRENGTHS, Distortion, apply
from gamma_training.data.metric import quality
from gamma_training.data.pixels import read_photo
from tests.training.photos import picture

LEVELS = range(1, LEVEL_COUNT + 1)
# The digest of every kind at level 3, as the child process prints it too.
DIGESTS = """
import hashlib
from tests.training.photos import picture
from gamma_training.data.distortions import KINDS, Distortion, apply
photo = picture(3)
for kind in KINDS:
    print(kind, hashlib.sha256(apply(photo, Distortion.of_photo(kind, 3, content="a", seed=5)).tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def labels() -> dict[str, list[list[float]]]:
    """Labels of the five levels of each kind on two real photos in colour."""
    coffee, pagoda = packaged_photos()[1], packaged_photos()[6]
    photos = {coffee.name: read_photo(coffee, 384), pagoda.name: read_photo(pagoda, 224)}
    return {
        kind: [
            [quality(one, apply(one, Distortion.of_photo(kind, level, content=name, seed=1))) for level in LEVELS]
            for name, one in photos.items()
        ]
        for kind in KINDS
    }


def test_there_are_enough_kinds() -> None:
    assert len(KINDS) >= 12
    assert set(STRENGTHS) == set(KINDS)
    assert all(len(values) == LEVEL_COUNT for values in STRENGTHS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_shape_and_leaves_the_photo_alone(kind: str) -> None:
    photo = picture(1, 101, 75)  # odd sides
    before = photo.copy()
    photo.flags.writeable = False
    copy = apply(photo, Distortion(kind, 5, 9))
    assert copy.shape == photo.shape
    assert copy.dtype == np.uint8
    assert copy.flags.c_contiguous
    assert np.array_equal(photo, before)
    assert not np.array_equal(copy, photo)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_get_worse_on_real_photos(labels: dict[str, list[list[float]]], kind: str) -> None:
    for found in labels[kind]:
        assert all(np.diff([1.0, *found]) < 0), found


def test_two_processes_make_the_same_bytes() -> None:
    done = subprocess.run([sys.executable, "-c", DIGESTS], capture_output=True, text=True, check=True)
    photo = picture(3)
    copies = {kind: apply(photo, Distortion.of_photo(kind, 3, content="a", seed=5)) for kind in KINDS}
    here = [f"{kind} {hashlib.sha256(copy.tobytes()).hexdigest()}" for kind, copy in copies.items()]
    assert done.stdout.splitlines() == here


def test_seed_and_content_decide_what_is_random() -> None:
    photo = picture()
    one = Distortion.of_photo("gaussian-noise", 2, content="a", seed=1)
    assert one == Distortion.of_photo("gaussian-noise", 2, content="a", seed=1)
    others = [
        Distortion.of_photo("gaussian-noise", 2, content="b", seed=1),
        Distortion.of_photo("gaussian-noise", 2, content="a", seed=2),
    ]
    assert all(not np.array_equal(apply(photo, one), apply(photo, other)) for other in others)


def test_kinds_of_noise_are_different_fields() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    fields = [apply(grey, Distortion(kind, 3, 7)).astype(float) for kind in ("gaussian-noise", "multiplicative-noise")]
    assert abs(np.corrcoef(fields[0].ravel(), fields[1].ravel())[0, 1]) < 0.1


def test_threads_of_opencv_do_not_matter() -> None:
    photo, before = picture(2, 512, 400), cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = apply(photo, Distortion("lens-blur", 4))
        cv2.setNumThreads(4)
        assert np.array_equal(apply(photo, Distortion("lens-blur", 4)), one)
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize(
    ("kind", "level", "seed"), [("smear", 1, 0), ("jpeg", 0, 0), ("jpeg", 6, 0), ("jpeg", True, 0), ("jpeg", 1, -1)]
)
def test_what_does_not_exist_is_refused(kind: str, level: int, seed: int) -> None:
    with pytest.raises(UsageError):
        Distortion(kind, level, seed)


def test_other_pixels_are_refused() -> None:
    for pixels in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(UsageError, match="not uint8"):
            apply(pixels, Distortion("jpeg", 1))  # type: ignore[arg-type]


def test_the_label_of_the_photo_itself_is_one_and_symmetric() -> None:
    photo = picture()
    copy = apply(photo, Distortion("gaussian-blur", 3))
    assert quality(photo, photo) == pytest.approx(1.0, abs=1e-6)
    assert quality(photo, copy) == pytest.approx(quality(copy, photo), abs=1e-6)
    assert quality(photo, picture(99)) < 0.2  # nothing in common


def test_levels_of_all_kinds_mean_about_the_same(labels: dict[str, list[list[float]]]) -> None:
    """Pooled over kinds, the label orders copies by how bad they are, not by what was done to them."""
    colour = ("desaturation", "colour-cast", "chroma-noise")  # these depend on how colourful a photo is
    at_384 = {kind: found[0] for kind, found in labels.items() if kind not in colour}
    for level, (low, high) in enumerate(((0.75, 0.97), (0.6, 0.92), (0.4, 0.82), (0.25, 0.68), (0.1, 0.52))):
        odd = {kind: found[level] for kind, found in at_384.items() if not low < found[level] < high}
        assert not odd, f"level {level + 1}: not within {low} to {high}"


def test_colour_alone_changes_the_label() -> None:
    photo = picture()
    luma = photo.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    grey = np.repeat(np.clip(np.rint(luma), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    assert quality(photo, grey) < 0.9


def test_the_label_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(UsageError, match="compared with"):
        quality(picture(), picture(0, 250, 240))
    with pytest.raises(UsageError, match="of 64 or more"):
        quality(picture(0, 40, 40), picture(0, 40, 40))
