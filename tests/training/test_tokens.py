"""Token ids against the table of the authors' prompts (model.md 1.7), made with OpenAI's own tokeniser."""

from __future__ import annotations

import pytest
import torch

from gamma_runtime.errors import InputError
from gamma_training.scenes import LEVELS, SCENES
from gamma_training.tokens import START, STOP, tokenize

LEVEL_IDS = {"bad": 2103, "poor": 3665, "fair": 2849, "good": 886, "perfect": 1878}
BETWEEN = {  # None stands for the level
    "plain": (None, 2867),
    "natural-quality": (3288, None, 268, 3027, 2867),
    "aigc-quality": (2215, 268, 19450, None, 268, 3027, 2867),
    "underwater-quality": (14760, None, 268, 3027, 2867),
    "face-quality": (1710, None, 268, 3027, 2867),
    "natural-aesthetics": (3288, None, 268, 29295, 2867),
}


@pytest.mark.parametrize("scene", SCENES)
def test_ids_of_the_built_in_prompts(scene: str) -> None:
    expected = [[START, *(i or LEVEL_IDS[level] for i in BETWEEN[scene]), STOP] for level in LEVELS]
    assert tokenize(SCENES[scene].prompts, 77).tolist() == expected


def test_padding_to_the_full_length() -> None:
    ids = tokenize(["bad image", "AI-generated bad-quality image"], 77, full_length=True)
    assert ids.dtype == torch.int64
    assert ids.shape == (2, 77)
    assert ids[0].tolist() == [START, 2103, 2867, STOP] + [0] * 73
    assert int(ids[1].argmax()) == 8


def test_case_and_spaces_do_not_matter() -> None:
    assert torch.equal(tokenize(["BAD   Image"], 77), tokenize(["bad image"], 77))


def test_end_of_text_written_in_a_prompt_stays_text() -> None:
    ids = tokenize(["a <|endoftext|> b"], 77)[0]
    assert ids.tolist().count(STOP) == 1
    assert int(ids[-1]) == STOP


def test_the_longest_prompt_that_fits() -> None:
    assert tokenize(["word " * 75], 77).shape == (1, 77)
    with pytest.raises(InputError, match=r"has 76 tokens; the limit is 1 to 75"):
        tokenize(["word " * 76], 77)


@pytest.mark.parametrize("prompt", ["", "   ", "\ud800"], ids=["empty", "spaces", "surrogate"])
def test_prompts_without_tokens_are_refused(prompt: str) -> None:
    with pytest.raises(InputError):
        tokenize(["bad image", prompt], 77)


def test_a_huge_prompt_makes_a_short_message() -> None:
    with pytest.raises(InputError) as caught:
        tokenize(["word " * 20_000], 77)
    assert len(caught.value.message) < 200
