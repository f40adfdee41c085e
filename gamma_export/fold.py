"""Folding: everything that is constant at inference becomes a weight of the deployed graph (design.md section 3).

Exact up to rounding, and computed in float64: pixel scaling, mean and std go into the patch product; the class token,
the position table and the patch bias into one constant; 1/sqrt(64) into the query; a MoAE block's shared and adaptive
experts into one product in and one product out, the block's scale into the adaptive rows; the text tower, its L2 norm
and exp(logit_scale) into one matrix of 5 columns a scene.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gamma_training.dims import HEAD_WIDTH, GammaDims

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    Array: TypeAlias = npt.NDArray[np.float64]

__all__ = ["PIXEL_CENTRE", "Folded", "fold_text", "fold_vision"]

# The graph's first step is (pixel - 128) / 128: exact in fp16 and bf16, it keeps the folded patch weights out of
# fp16's subnormal range (W / 255 is about 1e-4) and takes the large constant part out of the fp16 product.
PIXEL_CENTRE = 128.0


@dataclasses.dataclass(frozen=True)
class Folded:
    """One weight of the deployed graph, made when asked for, so that only one is in memory at a time.

    ``role`` decides its precision: ``product`` is stored in the graph's precision, ``exact`` in fp32.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    make: Callable[[], Array]


def _f64(tensor: Tensor) -> Array:
    return tensor.numpy().astype(np.float64)


def fold_vision(state: Mapping[str, Tensor], dims: GammaDims) -> list[Folded]:
    """The vision tower's and the head's weights for the deployed graph, in graph order.

    Args:
        state: float32 tensors in the authors' names.
        dims: the model's dimensions.
    """
    width, visual = dims.vision.width, "clip_model.visual."
    pixels = dims.patch * dims.patch * 3
    weights = [
        Folded("patch.weight", "product", (pixels, width), lambda: _patch(state, dims)[0]),
        Folded("tokens.constant", "exact", (dims.tokens, width), lambda: _tokens(state, dims)),
    ]
    if dims.ln_pre:
        weights += _norm(state, f"{visual}ln_pre", "ln_pre", width)
    for index in range(dims.vision.layers):
        weights += _block(state, dims, index)
    weights += _norm(state, f"{visual}ln_post", "ln_post", width)
    head = {
        "head.proj": "clip_model.visual.proj",
        "head.adapter_in": "adapter.fc.0.weight",
        "head.adapter_out": "adapter.fc.2.weight",
    }
    for name, source in head.items():
        value = state[source] if name == "head.proj" else state[source].T  # proj is stored (in, out) already
        weights.append(Folded(name, "exact", tuple(value.shape), lambda v=value: _f64(v)))  # type: ignore[misc]
    weights.append(Folded("head.levels", "exact", (dims.levels,), lambda: _f64(state["score_level"])))
    return weights


def _patch(state: Mapping[str, Tensor], dims: GammaDims) -> tuple[Array, Array]:
    """Patch weights [p*p*3, D] for (pixel - 128) / 128, rows in pixel order (y, x, channel), and the bias [D]."""
    weight = _f64(state["clip_model.visual.conv1.weight"])  # [D, 3, p, p]
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (dims.mean, dims.std))
    bias = (weight * (PIXEL_CENTRE / 255 - mean) / std).sum((1, 2, 3))
    scaled = weight * PIXEL_CENTRE / (255 * std)
    return scaled.transpose(2, 3, 1, 0).reshape(-1, len(weight)), bias


def _tokens(state: Mapping[str, Tensor], dims: GammaDims) -> Array:
    """What is added to the patch products [T, D]: class token and position in row 0, bias and positions below."""
    tokens = _f64(state["clip_model.visual.positional_embedding"])
    tokens[0] += _f64(state["clip_model.visual.class_embedding"])
    tokens[1:] += _patch(state, dims)[1]
    return tokens


def _norm(state: Mapping[str, Tensor], source: str, name: str, width: int) -> list[Folded]:
    return [
        Folded(f"{name}.{part}", "exact", (width,), lambda part=part: _f64(state[f"{source}.{part}"]))  # type: ignore[misc]
        for part in ("weight", "bias")
    ]


def _block(state: Mapping[str, Tensor], dims: GammaDims, index: int) -> list[Folded]:
    tower = dims.vision
    source, name = f"clip_model.visual.transformer.resblocks.{index}.", f"blocks.{index}."
    width = tower.width

    def linear(target: str, module: str, shape: tuple[int, int]) -> list[Folded]:
        return [
            Folded(f"{name}{target}.weight", "product", shape, lambda: _f64(state[f"{source}{module}weight"]).T),
            Folded(f"{name}{target}.bias", "product", shape[1:], lambda: _f64(state[f"{source}{module}bias"])),
        ]

    def query_scaled(part: str) -> Array:
        value = _f64(state[f"{source}attn.in_proj_{part}"])
        value[:width] /= math.sqrt(HEAD_WIDTH)
        return value.T

    weights = [
        *_norm(state, f"{source}ln_1", f"{name}ln_1", width),
        Folded(f"{name}attn.qkv.weight", "product", (width, 3 * width), lambda: query_scaled("weight")),
        Folded(f"{name}attn.qkv.bias", "product", (3 * width,), lambda: query_scaled("bias")),
        *linear("attn.out", "attn.out_proj.", (width, width)),
        *_norm(state, f"{source}ln_2", f"{name}ln_2", width),
    ]
    if index < tower.first_moae:
        weights += linear("mlp.in", "mlp.c_fc.", (width, tower.hidden))
        return weights + linear("mlp.out", "mlp.c_proj.", (tower.hidden, width))
    return weights + _moae(state, dims, index) + linear("moae.gate", "mlp.gating.layer1.", (width, tower.experts))


def _moae(state: Mapping[str, Tensor], dims: GammaDims, index: int) -> list[Folded]:
    """Shared expert first, then the adaptive ones; scale in the adaptive rows and biases of the second product."""
    tower = dims.vision
    source = f"clip_model.visual.transformer.resblocks.{index}.mlp."
    homes = [f"{source}useful_experts.", *(f"{source}experts.expert_{e}." for e in range(tower.experts))]
    scale = float(state[f"{source}scale"])
    factors = [1.0] + [scale] * tower.experts
    hidden, width, name = tower.hidden * len(homes), tower.width, f"blocks.{index}.moae."

    def stack(module: str, scaled: bool) -> list[Array]:
        return [_f64(state[f"{home}{module}"]) * (f if scaled else 1.0) for home, f in zip(homes, factors, strict=True)]

    return [
        Folded(f"{name}in.weight", "product", (width, hidden), lambda: np.concatenate(stack("c_fc.weight", False)).T),
        Folded(f"{name}in.bias", "product", (hidden,), lambda: np.concatenate(stack("c_fc.bias", False))),
        Folded(
            f"{name}out.weight",
            "product",
            (hidden, width),
            lambda: np.concatenate([w.T for w in stack("c_proj.weight", True)]),
        ),
        Folded(f"{name}out.bias", "product", (len(homes), width), lambda: np.stack(stack("c_proj.bias", True))),
    ]


def fold_text(text: Tensor, logit_scale: Tensor) -> Array:
    """L2-normalised text features [P, embed] -> the head's logit matrix [embed, P], exp(logit_scale) folded in."""
    return (_f64(text) * math.exp(float(logit_scale))).T
