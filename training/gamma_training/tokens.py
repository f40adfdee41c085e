"""CLIP's byte-pair tokeniser, from the vocabulary that the `instant-clip-tokenizer` wheel carries (a pure look-up)."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gamma_runtime.cli import require
from gamma_runtime.errors import InputError
from gamma_training.dims import START, STOP, GammaDims

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["START", "STOP", "compact_tokens", "tokenize"]

TABLE = "clip_model.token_embedding.weight"
_WORD = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_+")  # what the tokeniser never joins: letters, one digit, signs
_SHOWN = 40  # words of a list
_LONGEST = 40  # characters of a word


@functools.cache
def _tokenizer() -> Any:
    return require("instant_clip_tokenizer", "export").Tokenizer()


def tokenize(
    prompts: Sequence[str], context: int, *, full_length: bool = False, kept: Sequence[int] | None = None
) -> Tensor:
    """Token ids of the prompts, int64 (P, L), zero-padded after end-of-text.

    L is the longest prompt; with ``full_length`` it is ``context``, as the authors run the text tower.

    Args:
        prompts: texts of 1 to ``context`` - 2 tokens.
        context: the model's.
        full_length: see above.
        kept: `GammaDims.kept_tokens` of a model whose token table holds only these; the ids are then rows of it.

    Raises:
        InputError: a prompt is empty, longer than ``context`` - 2 tokens, or has a word that is not kept.

    Example:
        >>> tokenize(["bad image"], 77).tolist()
        [[49406, 2103, 2867, 49407]]
    """
    import torch

    try:
        rows = [[START, *_tokenizer().encode(prompt), STOP] for prompt in prompts]
    except UnicodeEncodeError as error:
        raise InputError(f"a prompt is not valid Unicode ({error})") from error
    for prompt, row in zip(prompts, rows, strict=True):
        if not 2 < len(row) <= context:
            raise InputError(f"prompt {prompt[:60]!r} has {len(row) - 2} tokens; the limit is 1 to {context - 2}")
    if kept is not None:
        places = {token: place for place, token in enumerate(kept)}
        for prompt, row in zip(prompts, rows, strict=True):
            if not places.keys() >= set(row):
                raise _never_learned(prompt, places)
        rows = [[places[token] for token in row] for row in rows]
    length = context if full_length else max(len(row) for row in rows)
    return torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64)


def _never_learned(prompt: str, places: Mapping[int, int]) -> InputError:
    unknown = (word for word in _WORD.findall(prompt) if not places.keys() >= set(_tokenizer().encode(word)))
    word = next(unknown, prompt)
    known = [_tokenizer().decode([token]).strip() for token in places if token not in (START, STOP)]
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return InputError(
        f"prompt {prompt[:60]!r}: this checkpoint never learned the word {word[:_LONGEST]!r};"
        f" it knows: {', '.join(known[:_SHOWN])}{more}",
        hint="use these words, or train a checkpoint with your own",
    )


def compact_tokens(
    state: Mapping[str, Tensor], dims: GammaDims, prompts: Sequence[str]
) -> tuple[dict[str, Tensor], GammaDims]:
    """The same model with only those rows of the token table that the prompts use; other words are refused thereafter.

    The rows keep the order of their ids, so a prompt's end remains its largest.

    Args:
        state: tensors in the authors' names; not changed.
        dims: the model's dimensions; its table may be a compact one already.
        prompts: all texts that the smaller model shall know.

    Raises:
        InputError: a prompt that the model itself does not know.

    Example:
        >>> state, dims = compact_tokens(state, dims, [prompt for scene in SCENES.values() for prompt in scene.prompts])
        >>> write_safetensors(path, state, dims=dims, prompts="sdp", dtype="float16")
    """
    whole = dims.kept_tokens or range(dims.vocabulary)
    used = {row for prompt in prompts for row in tokenize([prompt], dims.context, kept=dims.kept_tokens)[0].tolist()}
    rows = sorted(used | {len(whole) - 2, len(whole) - 1})
    kept = tuple(whole[row] for row in rows)
    smaller = dataclasses.replace(dims, vocabulary=len(kept), kept_tokens=kept)
    return {**state, TABLE: state[TABLE][rows].clone()}, smaller
