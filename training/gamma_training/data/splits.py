"""Who learns and who judges: splits that no photo, and no copy of one, straddles.

Everything is decided by SHA-256 of a seed and the content's name, so it is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from gamma_training.data.samples import Split

__all__ = ["TEST_SHARE", "VAL_SHARE", "place", "split_exactly", "split_of"]

TEST_SHARE = 0.2  # as the authors have it (model.md section 3: 80/20)
VAL_SHARE = 0.1  # of all, taken from the authors' 80: early stopping must not look at the test split


def place(seed: int, content: str) -> float:
    """A number from 0 to below 1 that a content keeps for ever."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{content}".encode()).digest()[:6], "big") / 2**48


def split_of(seed: int, content: str) -> Split:
    """Test below 0.2, val below 0.3, else train: a photo stays where it is when others join or leave."""
    here = place(seed, content)
    return "test" if here < TEST_SHARE else "val" if here < TEST_SHARE + VAL_SHARE else "train"


def split_exactly(seed: int, contents: Iterable[str]) -> dict[str, Split]:
    """The split of each content of a closed set, with exact shares; at least one in each where there are three.

    Chance would be too rough where the contents are 25 reference photos.
    """
    ordered = sorted(set(contents), key=lambda content: (place(seed, content), content))
    few = 1 if len(ordered) >= 3 else 0
    tests = max(few, round(TEST_SHARE * len(ordered)))
    vals = max(few, round(VAL_SHARE * len(ordered)))
    return {
        content: "test" if number < tests else "val" if number < tests + vals else "train"
        for number, content in enumerate(ordered)
    }
