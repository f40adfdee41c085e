"""Two ways for PyTorch to compute a stage: exactly, in float64, and as a faultless graph of some precision would.

The difference between the two is the floor: what rounding alone does to that stage on these very inputs.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gamma_export.layers.stages import Kit

if TYPE_CHECKING:
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    from gamma_training.model import Gamma

__all__ = ["Peak", "exact_kit", "rounded_kit"]


class Peak:
    """The largest magnitude seen inside the products of a stage."""

    def __init__(self) -> None:
        self.value = 0.0

    def see(self, tensor: Tensor) -> None:
        """Take a tensor into account."""
        self.value = max(self.value, float(tensor.abs().max()))


def exact_kit(model: Gamma, text: np.ndarray[Any, Any]) -> Kit:
    """Everything in float64."""
    import torch

    return Kit(
        piece=_pieces(model, lambda p: p.double()),
        products=contextlib.nullcontext,
        product=_same,
        stream=_same,
        text=torch.from_numpy(text),
    )


def rounded_kit(model: Gamma, text: np.ndarray[Any, Any], precision: str, residual: str, peak: Peak) -> Kit:
    """Products in ``precision``, the stream in ``residual``, everything else (norms, head) in float32.

    Weights of products are rounded, and so is every result inside them; the sums run in float32, as they do on a CPU
    and in a GPU's tensor cores.

    Args:
        model: float32.
        text: float64 [embed, 5 * K].
        precision: ``fp32``, ``fp16`` or ``bf16``.
        residual: likewise.
        peak: sees every result inside the products before it is rounded.
    """
    import torch

    half = rounding(precision)
    inside = [False]

    @contextlib.contextmanager
    def products() -> Any:
        inside[0] = True
        with _rounded_results(half, peak):
            yield
        inside[0] = False

    def convert(parameter: Tensor) -> Tensor:
        return half(parameter) if inside[0] else parameter

    return Kit(
        piece=_pieces(model, convert),
        products=products,
        product=half,
        stream=rounding(residual),
        text=torch.from_numpy(text).float(),
    )


def rounding(precision: str) -> Callable[[Tensor], Tensor]:
    """Round float32 to the numbers of a precision."""
    import torch

    if precision == "fp32":
        return _same
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    return lambda tensor: tensor.to(dtype).float()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _pieces(model: Gamma, convert: Callable[[Tensor], Tensor]) -> Callable[[str], Any]:
    from torch import nn

    def piece(path: str) -> Any:
        parent, _, name = path.rpartition(".")
        found = getattr(model.get_submodule(parent), name)
        if isinstance(found, nn.Parameter):
            return convert(found.data)
        made = copy.deepcopy(found)
        for parameter in made.parameters():
            parameter.data = convert(parameter.data)
        return made

    return piece


def _rounded_results(half: Callable[[Tensor], Tensor], peak: Peak) -> TorchFunctionMode:
    """A mode in which every result of a PyTorch function is noted, then rounded."""
    import torch
    import torch.nn.functional as F  # noqa: N812 - the usual name
    from torch.overrides import TorchFunctionMode

    class Rounded(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.scaled_dot_product_attention:
                return attention(*args)
            if func is F.gelu:
                return gelu(*args)
            return note(func(*args, **(kwargs or {})))

    def note(result: Any) -> Any:
        if not isinstance(result, torch.Tensor) or not result.is_floating_point() or not result.numel():
            return result
        peak.see(result)
        return half(result)

    def gelu(x: Tensor) -> Tensor:
        """As the graph spells it."""
        gate = note(note(torch.special.erf(note(x / half(torch.tensor(2**0.5))))) + 1)
        made: Tensor = note(note(x * gate) * 0.5)
        return made

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As the graph spells it: the scale in the query, the softmax in float32 (model.md: heads are 64 wide)."""
        logits = note(half(q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1))
        mixed: Tensor = note(half(torch.softmax(logits, dim=-1)) @ v)
        return mixed

    return Rounded()
