"""CLIP's byte-pair tokeniser, from the vocabulary that the `instant-clip-tokenizer` wheel carries (a pure look-up)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gamma_runtime.cli import require
from gamma_runtime.errors import InputError
from gamma_training.dims import START, STOP, GammaDims

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["START", "STOP", "compact_tokens", "rows_of", "tokenize"]

TABLE = "clip_model.token_embedding.weight"
_SHOWN = 40  # words of a list
_LONGEST = 40  # characters of a word


@functools.cache
def _tokenizer() -> Any:
    return require("instant_clip_tokenizer", "export").Tokenizer()


def tokenize(prompts: Sequence[str], context: int, *, full_length: bool = False) -> Tensor:
    """Token ids of the prompts, int64 (P, L), zero-padded after end-of-text.

    L is the longest prompt; with ``full_length`` it is ``context``, as the authors run the text tower.

    Raises:
        InputError: a prompt is empty or longer than ``context`` - 2 tokens.

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
    length = context if full_length else max(len(row) for row in rows)
    return torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64)


def rows_of(ids: Tensor, kept: Sequence[int]) -> Tensor:
    """Rows of a token table that holds only the ids ``kept`` (rising), for token ids (P, L); padding gives any row.

    Raises:
        InputError: a prompt has a token without a row, so a word that the model never learned.
    """
    import torch

    table = torch.tensor(kept, device=ids.device)
    rows = torch.searchsorted(table, ids.contiguous()).clamp(max=len(kept) - 1)
    within = torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(dim=-1, keepdim=True)
    missing = (within & (table[rows] != ids)).nonzero().tolist()
    if missing:
        prompt, place = missing[0]
        raise _never_learned(ids[prompt].tolist(), place, kept)
    return rows


def _never_learned(ids: list[int], place: int, kept: Sequence[int]) -> InputError:
    """The whole word around a token: only a word's last token ends with a space."""
    decode = _tokenizer().decode
    parts = [decode([token]) for token in ids[1 : ids.index(max(ids))]]
    first = last = place - 1
    while first > 0 and not parts[first - 1].endswith(" "):
        first -= 1
    while last < len(parts) - 1 and not parts[last].endswith(" "):
        last += 1
    word, prompt = ("".join(some).strip() for some in (parts[first : last + 1], parts))
    known = sorted({decode([token]).strip() for token in kept if token not in (START, STOP)})
    known = [text for text in known if any(letter.isalnum() for letter in text)]
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return InputError(
        f"this checkpoint never learned the word {word[:_LONGEST]!r} of the prompt {prompt[:60]!r};"
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
        prompts: all texts that the smaller model shall know, at least one.

    Raises:
        InputError: a prompt that the model itself does not know.

    Example:
        >>> state, dims = compact_tokens(state, dims, [prompt for scene in SCENES.values() for prompt in scene.prompts])
        >>> write_safetensors(path, state, dims=dims, prompts="sdp", dtype="float16")
    """
    import torch

    whole = dims.kept_tokens or range(dims.vocabulary)
    each = [tokenize([prompt], dims.context) for prompt in prompts]
    for ids in each:
        rows_of(ids, whole)  # refuses what the model itself does not know, and names it
    kept = tuple(sorted({token for ids in each for token in ids[0].tolist()}))
    rows = rows_of(torch.tensor([kept]), whole)
    smaller = dataclasses.replace(dims, vocabulary=len(kept), kept_tokens=kept)
    return {**state, TABLE: state[TABLE][rows[0]]}, smaller
