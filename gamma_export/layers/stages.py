"""The stages of a Gamma graph, in order: where each is tapped, and what PyTorch makes of the stage's own inputs.

A stage is judged by itself: PyTorch gets the very tensors that the graph fed into the stage, so an error made earlier
does not count again. ``Kit`` decides whether PyTorch answers exactly (float64) or as a graph of some precision should.
Shapes: B crops, T tokens, D width, E experts, K scenes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gamma_export.fold import PIXEL_CENTRE
from gamma_training.dims import GammaDims

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Kit", "Stage", "gamma_stages"]

VISUAL = "clip_model.visual"


@dataclasses.dataclass(frozen=True)
class Kit:
    """How PyTorch computes a stage.

    Attributes:
        piece: a path of the model (module or parameter) -> its copy in this kit's numbers.
        products: the context in which products and activations run.
        product: a tensor as the products read it.
        stream: a tensor as the residual stream keeps it.
        text: the head's logit matrix, [embed, 5 * K], exp(logit_scale) included.
    """

    piece: Callable[[str], Any]
    products: Callable[[], contextlib.AbstractContextManager[Any]]
    product: Callable[[Tensor], Tensor]
    stream: Callable[[Tensor], Tensor]
    text: Tensor


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the graph.

    Attributes:
        name: for people, such as ``blocks.7 moae``.
        tap: the tensor of the graph that the stage makes; it is named after its node.
        inputs: the stages whose tensors it reads.
        run: the same step in PyTorch, from these inputs.
        hook: the module of the PyTorch model where its tensor is seen, and whether it goes ``in`` or comes ``out``.
        adds_to: the input that the stage only adds to: its error is measured against what it adds.
    """

    name: str
    tap: str
    inputs: tuple[str, ...]
    run: Callable[..., Tensor]
    hook: tuple[str, str] | None = None
    adds_to: int | None = None


def gamma_stages(dims: GammaDims) -> list[Stage]:
    """Every stage of a graph of these dimensions, pixels first, scores last."""
    stages = [
        Stage("pixels", "patch/mul", (), _unchanged),
        Stage("patch embedding", "tokens/add", ("pixels",), _tokens(dims), (f"{VISUAL}.ln_pre", "in")),
    ]
    if dims.ln_pre:
        norm = _norm(f"{VISUAL}.ln_pre")
        stages.append(Stage("ln_pre", "ln_pre", ("patch embedding",), norm, (f"{VISUAL}.ln_pre", "out")))
    for index in range(dims.vision.layers):
        stages += _block(index, stages[-1].name, moae=index >= dims.vision.first_moae)
    return stages + _head(stages[-1].name, dims)


def _block(index: int, stream: str, moae: bool) -> list[Stage]:
    name, path = f"blocks.{index}", f"{VISUAL}.transformer.resblocks.{index}"
    mlp = "moae" if moae else "mlp"
    stages = [
        Stage(f"{name} ln_1", f"{name}/ln_1", (stream,), _norm(f"{path}.ln_1"), (f"{path}.ln_1", "out")),
        Stage(
            f"{name} attn",
            f"{name}/attn/add",
            (stream, f"{name} ln_1"),
            _attention(f"{path}.attn"),
            (f"{path}.ln_2", "in"),
            adds_to=0,
        ),
        Stage(f"{name} ln_2", f"{name}/ln_2", (f"{name} attn",), _norm(f"{path}.ln_2"), (f"{path}.ln_2", "out")),
    ]
    inputs = [f"{name} attn", f"{name} ln_2"]
    if moae:
        gating = f"{path}.mlp.gating"
        stages.append(Stage(f"{name} gates", f"{name}/moae/gates", (inputs[1],), _gates(gating), (gating, "out")))
        inputs.append(f"{name} gates")
    run = (_moae if moae else _mlp)(f"{path}.mlp")
    return [*stages, Stage(f"{name} {mlp}", f"{name}/{mlp}/add", tuple(inputs), run, (path, "out"), adds_to=0)]


def _head(stream: str, dims: GammaDims) -> list[Stage]:
    post = f"{VISUAL}.ln_post"
    return [
        Stage("ln_post", "head/ln_post", (stream,), _class_token(post), (post, "out")),
        Stage("projection", "head/proj", ("ln_post",), _projection, (VISUAL, "out")),
        Stage("adapter", "head/adapter_add", ("projection",), _adapter, ("adapter", "out")),
        Stage("unit feature", "head/unit", ("adapter",), _unit),
        Stage("logits", "head/logits", ("unit feature",), _logits),
        Stage("scores", "head/scores", ("logits",), _scores(dims.levels)),
    ]


# The steps. Each takes the kit and the tensors of the stage's inputs.


def _unchanged(kit: Kit, pixels: Tensor) -> Tensor:
    """Pixels have nothing before them: the caller gives what they should be, [B, H, W, 3] in -1 to 1."""
    return pixels


def _tokens(dims: GammaDims) -> Callable[[Kit, Tensor], Tensor]:
    def run(kit: Kit, pixels: Tensor) -> Tensor:
        """[B, H, W, 3] in -1 to 1 -> [B, T, D]."""
        import torch

        mean, std = (torch.tensor(v, dtype=pixels.dtype) for v in (dims.mean, dims.std))
        images = ((pixels + 1) * (PIXEL_CENTRE / 255) - mean) / std
        with kit.products():
            patches = kit.piece(f"{VISUAL}.conv1")(kit.product(images.permute(0, 3, 1, 2)))
        patches = patches.flatten(2).transpose(1, 2)
        classes = kit.piece(f"{VISUAL}.class_embedding").expand(len(pixels), 1, -1)
        made: Tensor = torch.cat([classes, patches], dim=1) + kit.piece(f"{VISUAL}.positional_embedding")
        return made

    return run


def _norm(path: str) -> Callable[[Kit, Tensor], Tensor]:
    def run(kit: Kit, x: Tensor) -> Tensor:
        normed: Tensor = kit.piece(path)(x)
        return normed

    return run


def _attention(path: str) -> Callable[[Kit, Tensor, Tensor], Tensor]:
    def run(kit: Kit, x: Tensor, z: Tensor) -> Tensor:
        with kit.products():
            update = kit.piece(path)(kit.product(z), False)
        return kit.stream(x + update)

    return run


def _mlp(path: str) -> Callable[[Kit, Tensor, Tensor], Tensor]:
    def run(kit: Kit, x: Tensor, z: Tensor) -> Tensor:
        with kit.products():
            update = kit.piece(path)(kit.product(z))
        return kit.stream(x + update)

    return run


def _gates(path: str) -> Callable[[Kit, Tensor], Tensor]:
    def run(kit: Kit, z: Tensor) -> Tensor:
        """The shared expert's gate, always 1, comes first: [B, T, 1 + E]."""
        import torch

        with kit.products():
            logits = kit.piece(f"{path}.layer1")(kit.product(z))
        return torch.nn.functional.pad(torch.softmax(logits, dim=-1), (1, 0), value=1.0)

    return run


def _moae(path: str) -> Callable[[Kit, Tensor, Tensor, Tensor], Tensor]:
    def run(kit: Kit, x: Tensor, z: Tensor, gates: Tensor) -> Tensor:
        moae = kit.piece(path)
        given = kit.product(gates)[..., 1:]
        moae.gating.register_forward_hook(lambda *_: given)  # the graph's own gates are judged one stage earlier
        with kit.products():
            update = moae(kit.product(z))
        return kit.stream(x + update)

    return run


def _class_token(path: str) -> Callable[[Kit, Tensor], Tensor]:
    def run(kit: Kit, x: Tensor) -> Tensor:
        normed: Tensor = kit.piece(path)(x[:, 0])
        return normed

    return run


def _projection(kit: Kit, x: Tensor) -> Tensor:
    made: Tensor = x @ kit.piece(f"{VISUAL}.proj")
    return made


def _adapter(kit: Kit, v: Tensor) -> Tensor:
    made: Tensor = kit.piece("adapter")(v)
    return made


def _unit(kit: Kit, v: Tensor) -> Tensor:
    made: Tensor = v / v.norm(dim=-1, keepdim=True)
    return made


def _logits(kit: Kit, v: Tensor) -> Tensor:
    made: Tensor = v @ kit.text
    return made


def _scores(levels: int) -> Callable[[Kit, Tensor], Tensor]:
    def run(kit: Kit, logits: Tensor) -> Tensor:
        import torch

        shares = torch.softmax(logits.view(len(logits), -1, levels), dim=-1)
        made: Tensor = shares @ kit.piece("score_level")
        return made

    return run
