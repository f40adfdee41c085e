"""CLIP's byte-pair tokeniser, from the vocabulary that the `instant-clip-tokenizer` wheel carries (a pure look-up)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gamma_runtime.cli import require
from gamma_runtime.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["START", "STOP", "tokenize"]

START = 49406
STOP = 49407  # the largest id: the model finds the end of a prompt by argmax


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
