"""Starting weights: Gamma from a base CLIP as the authors initialise it, and seeded random ones."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.errors import InputError
from gamma_training.dims import VOCABULARY, GammaDims, is_trained

if TYPE_CHECKING:
    import numpy as np
    from torch import Generator, Tensor

    from gamma_training.model import Gamma

__all__ = [
    "Additions",
    "condition",
    "drawn_for_clip",
    "fresh_text",
    "gamma_from_clip",
    "random_state",
    "scratch_state",
    "smaller",
]

FIRST_MOAE, EXPERTS, ADAPTER, SEED = 6, 3, 256, 123  # the authors' settings (model.md 1.2 and 3)
_MLP = re.compile(r"((?:visual\.)?transformer\.resblocks\.([0-9]{1,6})\.mlp\.)(c_(?:fc|proj)\.(?:weight|bias))$")
_ROUNDED = re.compile(r"(conv1|c_fc|c_proj|out_proj|in_proj)[._](weight|bias)$|(^|\.)(proj|text_projection)$")


@dataclasses.dataclass(frozen=True)
class Additions:
    """What a base gets to become a Gamma; the authors' settings. ``rounded``: Linear weights go through fp16."""

    first_moae: int = FIRST_MOAE
    text_first_moae: int = FIRST_MOAE
    experts: int = EXPERTS
    seed: int = SEED
    rounded: bool = True


def gamma_from_clip(path: Path, clip: dict[str, Tensor], additions: Additions = Additions()) -> dict[str, Tensor]:
    """Gamma's tensors from a base CLIP/UniQA state dict (OpenAI names, no prefix).

    As the authors do it (model.md 1.6): Linear, Conv, attention and projection tensors are rounded to fp16 and back,
    shared and adaptive experts are copies of the block's MLP, scale is 0, gates, adapter and score levels are fresh.

    Raises:
        InputError: no ViT, fewer blocks than the first MoAE block needs, or a weight that float16 cannot hold.
    """
    import torch

    _check_clip(path, clip, additions)
    experts = additions.experts
    generator = torch.Generator().manual_seed(additions.seed)
    state: dict[str, Tensor] = {"score_level": torch.tensor((0.2, 0.4, 0.6, 0.8, 1.0))}
    for name, tensor in clip.items():
        value = tensor.half().float() if additions.rounded and _ROUNDED.search(name) else tensor
        if value is not tensor and not bool(torch.isfinite(value).all()):
            raise InputError(f"{path}: {name} has values beyond float16's 65504, to which CLIP's weights are rounded")
        match = _MLP.match(name)
        if match is None or int(match[2]) < _first(name, additions):
            state[f"clip_model.{name}"] = value
            continue
        for home in ("useful_experts", *(f"experts.expert_{e}" for e in range(experts))):
            state[f"clip_model.{match[1]}{home}.{match[3]}"] = value.clone()
        if match[3] == "c_fc.weight":
            width = value.shape[1]
            state[f"clip_model.{match[1]}scale"] = torch.zeros(())
            state[f"clip_model.{match[1]}gating.layer1.weight"] = _uniform((experts, width), width, generator)
            state[f"clip_model.{match[1]}gating.layer1.bias"] = _uniform((experts,), width, generator)
    embed = clip["visual.proj"].shape[1]
    state["adapter.fc.0.weight"] = _uniform((ADAPTER, embed), embed, generator)
    state["adapter.fc.2.weight"] = _uniform((embed, ADAPTER), ADAPTER, generator)
    return state


def drawn_for_clip(names: Iterable[str]) -> frozenset[str]:
    """What `gamma_from_clip` does not copy: gates, scales (0), adapter and score levels."""
    return frozenset(name for name in names if is_trained(name) and "experts." not in name)


def _first(name: str, additions: Additions) -> int:
    return additions.first_moae if name.startswith("visual.") else additions.text_first_moae


def _check_clip(path: Path, clip: dict[str, Tensor], additions: Additions) -> None:
    """What `gamma_from_clip` itself relies on; every name and shape is checked afterwards, on the whole Gamma."""
    hint = "expected a ViT-B/16 state dict"
    for prefix in ("visual.", ""):
        blocks = {m[2] for name in clip if (m := _MLP.match(name)) and m[1].startswith(f"{prefix}transformer")}
        first = _first(prefix, additions)
        if len(blocks) <= first or "visual.proj" not in clip:
            raise InputError(
                f"{path}: a CLIP with {len(blocks)} blocks and no room for MoAE from block {first} on", hint=hint
            )
    for name, tensor in clip.items():
        if tensor.dim() != 2 and (name == "visual.proj" or name.endswith("mlp.c_fc.weight")):
            raise InputError(f"{path}: {name} has shape {list(tensor.shape)}, expected 2 dimensions", hint=hint)


def fresh_text(width: int, layers: int, context: int, embed: int, seed: int) -> dict[str, Tensor]:
    """A text tower that has learned nothing, in OpenAI's names, with CLIP's own initial spreads and temperature 0.07.

    Args:
        width: a multiple of 64; the MLP is four times as wide.
        layers: number of blocks.
        context: longest prompt in tokens, the two ends included.
        embed: width of the space that it shares with the images.
        seed: of the weights.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, spread: float) -> Tensor:
        return torch.randn(shape, generator=generator) * spread

    inner, out = width**-0.5, (2 * layers * width) ** -0.5
    state = {
        "positional_embedding": normal(context, width, spread=0.01),
        "token_embedding.weight": normal(VOCABULARY, width, spread=0.02),
        "text_projection": normal(width, embed, spread=inner),
        "logit_scale": torch.tensor(math.log(1 / 0.07)),
        "ln_final.weight": torch.ones(width),
        "ln_final.bias": torch.zeros(width),
    }
    for index in range(layers):
        block = {
            "attn.in_proj_weight": normal(3 * width, width, spread=inner),
            "attn.in_proj_bias": torch.zeros(3 * width),
            "attn.out_proj.weight": normal(width, width, spread=out),
            "attn.out_proj.bias": torch.zeros(width),
            "mlp.c_fc.weight": normal(4 * width, width, spread=(2 * width) ** -0.5),
            "mlp.c_fc.bias": torch.zeros(4 * width),
            "mlp.c_proj.weight": normal(width, 4 * width, spread=out),
            "mlp.c_proj.bias": torch.zeros(width),
            **{
                f"ln_{i}.{part}": torch.full((width,), v)
                for i in (1, 2)
                for part, v in (("weight", 1.0), ("bias", 0.0))
            },
        }
        state.update({f"transformer.resblocks.{index}.{name}": tensor for name, tensor in block.items()})
    return state


def _uniform(shape: tuple[int, ...], fan_in: int, generator: Generator) -> Tensor:
    """torch.nn.Linear's default initialisation."""
    import torch

    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)


def random_state(dims: GammaDims, seed: int) -> dict[str, Tensor]:
    """Seeded random weights of a Gamma model, in the authors' names, with nothing left at a value that hides an error.

    CLIP's own initial spreads; LayerNorms off 1 and 0, biases off 0; shared and adaptive experts all different, scale
    -0.5 to 0.5 and never small, gates far from uniform, score levels uneven. The result is untrained: its scores mean
    nothing about images.
    """
    import torch

    from gamma_training.model import expected_shapes

    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in expected_shapes(dims).items():
        noise = torch.randn(shape, generator=generator)
        state[name] = noise * _spread(name, shape, dims) + _centre(name)
    for name in [n for n in state if n.endswith("mlp.scale")]:
        size = 0.3 + 0.2 * torch.rand((), generator=generator)
        state[name] = -size if ".visual." in name else size
    state["score_level"] = torch.linspace(0.17, 0.97, dims.levels) + 0.01 * torch.randn(
        dims.levels, generator=generator
    )
    state["clip_model.logit_scale"] = torch.tensor(math.log(100.0))
    return state


def _centre(name: str) -> float:
    return 1.0 if re.search(r"ln_\w+\.weight$", name) else 0.0


def _spread(name: str, shape: tuple[int, ...], dims: GammaDims) -> float:
    tower = dims.vision if ".visual." in name else dims.text
    if re.search(r"ln_\w+\.(weight|bias)$", name):
        return 0.1
    if name.endswith("bias"):
        return 0.02
    if name.endswith("gating.layer1.weight"):
        return 2.0 / math.sqrt(shape[-1])  # gates between 0.05 and 0.9 rather than a third each
    if name.endswith(("c_proj.weight", "out_proj.weight")):
        return 2 / math.sqrt(shape[-1] * 2 * tower.layers)
    if name.endswith("conv1.weight"):
        return 1 / math.sqrt(math.prod(shape[1:]))
    if name.endswith("token_embedding.weight"):
        return 0.5
    if not shape or name.endswith("positional_embedding"):
        return 0.1
    return 1 / math.sqrt(shape[-1] if name.endswith("weight") else shape[0])


def condition(model: Gamma, crops: np.ndarray, text: Tensor) -> float:
    """Make random weights tell photos apart, so that parity on them can fail; changes the model in place.

    As drawn, all scores lie within 0.03. ``ln_post``'s bias is moved so that the class token is centred over the
    crops, and ``visual.proj`` is rotated so that the features' first principal axis points from the "bad" to the
    "perfect" text feature.

    Args:
        model: a Gamma module in eval mode.
        crops: uint8 [B, 224, 224, 3], real photos, B >= 8.
        text: L2-normalised text features [levels, embed] of one scene, bad to perfect.

    Returns:
        The standard deviation of the scores over the crops, in score units.
    """
    import torch

    visual = model.clip_model.visual
    with torch.inference_mode():
        tokens = torch.cat(
            [visual.class_token(model.normalise(torch.from_numpy(crops[i : i + 8]))) for i in range(0, len(crops), 8)]
        )
        centred = visual.ln_post(tokens)
        visual.ln_post.bias.sub_(centred.mean(0))
        features = (centred - centred.mean(0)) @ visual.proj
        axis = torch.linalg.svd(features, full_matrices=False).Vh[0]
        along = features @ axis
        axis = axis * along[along.abs().argmax()].sign()  # the sign of an axis is LAPACK's whim; the same everywhere
        wanted = text[-1] - text[0]
        visual.proj.copy_(_rotate(visual.proj, axis, wanted / wanted.norm()))
        scores = model.head(model.adapter(visual.ln_post(tokens) @ visual.proj), text)
    return float(scores.std())


def _rotate(matrix: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Right-multiply by the rotation, in their common plane, that takes unit vector ``start`` to ``end``."""
    for mirror in (start + end, end):  # a rotation is two reflections
        mirror = mirror / mirror.norm()
        matrix = matrix - 2 * (matrix @ mirror)[:, None] * mirror[None, :]
    return matrix


def smaller(dims: GammaDims, *, width: int, layers: int, first_moae: int, text_width: int = 64) -> GammaDims:
    """The same architecture with other widths and depth, for tests and the demo."""
    vision = dataclasses.replace(
        dims.vision, width=width, hidden=4 * width, layers=layers, heads=width // 64, first_moae=first_moae
    )
    text = dataclasses.replace(
        dims.text, width=text_width, hidden=4 * text_width, layers=layers, heads=text_width // 64, first_moae=first_moae
    )
    return dataclasses.replace(dims, vision=vision, text=text)


def scratch_state(dims: GammaDims, seed: int) -> dict[str, Tensor]:
    """Weights to train a small Gamma from, with no base: CLIP's initial spreads, LayerNorms 1 and 0, biases 0.

    Unlike in a Gamma made from a base, the experts all start differently, and scale starts at 0.1.
    """
    import torch

    from gamma_training.model import expected_shapes

    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in expected_shapes(dims).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("mlp.scale"):
            state[name] = torch.tensor(0.1)
        elif name.endswith("bias") or re.search(r"ln_\w+\.weight$", name):
            state[name] = torch.full(shape, _centre(name))
        else:
            state[name] = noise * _spread(name, shape, dims)
    state["score_level"] = torch.tensor((0.2, 0.4, 0.6, 0.8, 1.0))
    state["clip_model.logit_scale"] = torch.tensor(math.log(1 / 0.07))  # CLIP's own start
    return state
