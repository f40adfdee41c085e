"""Token ids against the table of the authors' prompts (model.md 1.7), made with OpenAI's own tokeniser."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from gamma_runtime.errors import InputError
from gamma_training.checkpoint import build_model, read_checkpoint, write_safetensors
from gamma_training.scenes import LEVELS, SCENES
from gamma_training.tokens import START, STOP, compact_tokens, rows_of, tokenize
from tests.training.tiny import TINY, state

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


# A token table of the rows in use only

PROMPTS = [prompt for scene in SCENES.values() for prompt in scene.prompts]
TABLE = "clip_model.token_embedding.weight"


def test_a_compact_table_gives_the_same_features(tmp_path: Path) -> None:
    small, dims = compact_tokens(state(), TINY, PROMPTS)
    assert dims.vocabulary == len(small[TABLE]) == len(dims.kept_tokens or ()) == 16
    used = {token for row in tokenize(PROMPTS, 77).tolist() for token in row} - {0}  # without the padding
    assert set(dims.kept_tokens or ()) == used
    path = tmp_path / "g.safetensors"
    write_safetensors(path, small, dims=dims, prompts="sdp")
    assert path.stat().st_size < 2e6 < 4 * state()[TABLE].numel()
    found = read_checkpoint(path)
    assert found.dims == dims
    whole = build_model(dataclasses.replace(found, state=state(), dims=TINY))
    for full_length in (False, True):
        ids = tokenize(PROMPTS, TINY.context, full_length=full_length)
        torch.testing.assert_close(build_model(found).text_features(ids), whole.text_features(ids), rtol=0, atol=1e-6)


def test_a_compact_table_can_be_made_smaller_but_not_larger() -> None:
    small, dims = compact_tokens(state(), TINY, PROMPTS)
    smaller, of_smaller = compact_tokens(small, dims, ["bad image"])
    assert of_smaller.kept_tokens == (2103, 2867, START, STOP)
    assert torch.equal(smaller[TABLE], state()[TABLE][list(of_smaller.kept_tokens)])
    with pytest.raises(InputError, match="never learned the word 'good' of the prompt 'good image'"):
        compact_tokens(smaller, of_smaller, ["bad image", "good image"])


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("bad product photo", "product"),
        ("natural bad-quality bokehlicious image", "bokehlicious"),
        ("Bad Image 2", "2"),
        ("naïve image", "naïve"),
        ("image!", "!"),
    ],
)
def test_the_unknown_word_is_named_whole(prompt: str, word: str) -> None:
    _, dims = compact_tokens(state(), TINY, PROMPTS)
    with pytest.raises(InputError) as caught:
        rows_of(tokenize(["bad image", prompt], 77), dims.kept_tokens or ())
    assert f"this checkpoint never learned the word {word!r} of the prompt" in caught.value.message
    assert (
        "it knows: aesthetics, ai, bad, face, fair, generated, good, image, natural, perfect, poor, quality, underwater"
        in caught.value.message
    )


def test_padding_needs_no_row_and_a_long_list_is_cut() -> None:
    kept = (*range(1000, 1095), 2103, 2867, START, STOP)
    ids = tokenize(["bad image", "bad bad bad image"], 77)
    assert rows_of(ids, kept).max() == len(kept) - 1
    assert rows_of(ids, kept)[1].tolist() == [97, 95, 95, 95, 96, 98]
    with pytest.raises(InputError, match=r"(?m) and 53 more$") as caught:
        rows_of(tokenize(["poor image"], 77), kept)
    assert caught.value.message.count(", ") < 45
