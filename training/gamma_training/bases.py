"""Bases: pretrained image towers to start a Gamma from. A ViT in an ONNX file, or a CLIP in a torch file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gamma_runtime.cli import require
from gamma_runtime.errors import InputError
from gamma_training.dims import HEAD_WIDTH, IMAGE, GammaDims, dims_of
from gamma_training.initialise import Additions, drawn_for_clip, fresh_text, gamma_from_clip
from gamma_training.intake import check_file, clean_tensors, shown
from gamma_training.onnx_vit import Vit, find_vit

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "CLIP_ADDITIONS",
    "FEATURE_TOLERANCE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "VIT_ADDITIONS",
    "Base",
    "TextTower",
    "import_clip",
    "import_vit_onnx",
    "resized_positions",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FEATURE_TOLERANCE = 1e-3  # largest |difference| of a feature between the file and the module made of it
CLIP_ADDITIONS = Additions()
VIT_ADDITIONS = Additions(text_first_moae=2, rounded=False)
_MAX_ONNX = 2**31  # bytes of a protobuf
_PROBES = 2
_FATAL_ONLY = 4  # the library's errors become ours


@dataclasses.dataclass(frozen=True)
class TextTower:
    """The text tower that an image base gets; ``width`` is a multiple of 64, ``embed`` is shared with the images."""

    width: int = 128
    layers: int = 4
    context: int = 77
    embed: int = 256


@dataclasses.dataclass(frozen=True)
class Base:
    """A whole Gamma made of a base, ready for `checkpoint.write_safetensors`.

    Attributes:
        state: float32 tensors in the authors' names.
        dims: its dimensions.
        fresh: the tensors that were drawn, not learned.
        difference: largest |difference| of the features to the file's own, measured; None for a CLIP.
    """

    state: dict[str, Tensor]
    dims: GammaDims
    fresh: frozenset[str]
    difference: float | None = None


def import_vit_onnx(
    path: Path,
    *,
    text: TextTower = TextTower(),
    additions: Additions = VIT_ADDITIONS,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Base:
    """A Gamma on the pretrained ViT of an ONNX file, with a text tower and a projection that have learned nothing.

    The file's position table is taken as the file itself resizes it for 224-pixel images; LayerScale is folded into
    the products before it. What was made is run beside the file and refused if it computes anything else.

    Args:
        path: the ONNX file; what follows the backbone in it is ignored.
        text: the text tower to draw.
        additions: experts, and the seed of everything that is drawn.
        mean: of RGB in [0, 1], that the base was trained with; the file does not say.
        std: likewise.

    Raises:
        InputError: not an ONNX file, not a plain ViT, not of heads of 64, or not for 224-pixel images.
        EnvironmentFault: onnx or onnxruntime is missing.

    Example:
        >>> base = import_vit_onnx(Path("vit_s_focus.onnx"))
        >>> write_safetensors(out, base.state, dims=base.dims, fresh=base.fresh, prompts="sdp", label="untrained")
    """
    import torch

    model = _load(path)
    try:
        vit = find_vit(model)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error
    black = np.zeros((1, 3, IMAGE, IMAGE), dtype=np.float32)
    [positions] = _run(path, model, vit, black, [vit.embedding])
    _check(path, vit, positions, additions)
    width = positions.shape[-1]
    vision = clean_tensors(path, {name: torch.from_numpy(value) for name, value in vit.weights.items()})
    vision["visual.class_embedding"] = torch.zeros(width)  # it is in row 0, which is all that anything reads of it
    vision["visual.positional_embedding"] = torch.from_numpy(positions[0].copy())
    generator = torch.Generator().manual_seed(additions.seed)
    vision["visual.proj"] = torch.randn((width, text.embed), generator=generator) * width**-0.5
    drawn = fresh_text(text.width, text.layers, text.context, text.embed, additions.seed)
    state = gamma_from_clip(path, {**vision, **drawn}, additions)
    said = {
        "vision": {"activation": vit.activation, "epsilon": vit.epsilon},
        "ln_pre": False,
        "mean": list(mean),
        "std": list(std),
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dims = dims_of(shapes, said)
    learned = {f"clip_model.{name}" for name in vision if name != "visual.proj"}
    fresh = frozenset(name for name in state if name not in learned and not _is_copy(name))
    difference = _difference(path, model, vit, state, dims)
    return Base(state, dims, fresh, difference)


def _is_copy(name: str) -> bool:
    """Experts of the image tower start as copies of the base's MLP."""
    return name.startswith("clip_model.visual.") and "experts." in name


def _load(path: Path) -> Any:
    onnx = require("onnx", "export")
    check_file(path, _MAX_ONNX)
    try:
        model = onnx.load(path, load_external_data=False)
        elsewhere = any(tensor.external_data for tensor in _tensors(model.graph))  # the checker would look there
        if not elsewhere:
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf's DecodeError, onnx's ValidationError, ...
        words = " ".join(str(error).split())
        raise InputError(
            f"{path}: not a usable ONNX file ({shown(words, 200)})", hint="fetch the file again"
        ) from error
    if elsewhere:
        raise InputError(f"{path}: its weights are in other files", hint="save it as one file: onnx.save(onnx.load(…))")
    return model


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor that a graph carries, those of its nodes and of graphs inside them too."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            if inner.ByteSize():
                yield from _tensors(inner)


def _run(path: Path, model: Any, vit: Vit, images: NDArray[np.float32], wanted: list[str]) -> list[NDArray[np.float32]]:
    """Tensors inside the graph, by ONNX Runtime on the CPU; images are normalised float32 [N, 3, 224, 224]."""
    import onnx

    ort = require("onnxruntime", "cpu")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    try:
        session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = [session.run(wanted, {vit.image: image[None]}) for image in images]
    except Exception as error:  # the library's exceptions share no base class
        words = " ".join(str(error).split())
        raise InputError(
            f"{path}: does not run on a {IMAGE}x{IMAGE} image ({shown(words, 200)})",
            hint=f"Gamma's crops have {IMAGE} pixels: export the ViT for that size",
        ) from error
    return [np.concatenate(parts) for parts in zip(*made, strict=True)]


def _check(path: Path, vit: Vit, positions: NDArray[np.float32], additions: Additions) -> None:
    """What the later steps rely on: one class token before a square of patches, whole heads, room for experts."""
    width, patch = len(vit.weights["visual.conv1.weight"]), vit.weights["visual.conv1.weight"].shape[-1]
    expected = (1, 1 + (IMAGE // patch) ** 2, width)
    if positions.shape != expected or IMAGE % patch:
        raise InputError(
            f"{path}: its first block reads {list(positions.shape)}, expected {list(expected)}: a class token and"
            f" patches of {patch} pixels",
            hint="a ViT with register tokens or pooling is of another kind",
        )
    if width % HEAD_WIDTH:
        raise InputError(f"{path}: width {width} is not a multiple of {HEAD_WIDTH}, the width of Gamma's heads")
    blocks = sum(name.endswith("ln_1.weight") for name in vit.weights)
    if blocks <= additions.first_moae:
        raise InputError(f"{path}: {blocks} blocks leave none for experts from block {additions.first_moae} on")


def _difference(path: Path, model: Any, vit: Vit, state: dict[str, Tensor], dims: GammaDims) -> float:
    """Largest |difference| of the last norm's tokens on random images, file against module.

    Raises:
        InputError: over the tolerance: the graph computes something else than its structure says.
    """
    import torch

    from gamma_training.model import Gamma

    images = np.random.default_rng(0).standard_normal((_PROBES, 3, IMAGE, IMAGE)).astype(np.float32)
    [wanted] = _run(path, model, vit, images, [vit.features])
    with torch.device("meta"):
        gamma = Gamma(dims)
    gamma.load_state_dict(state, assign=True)
    visual = gamma.requires_grad_(False).eval().clip_model.visual
    with torch.inference_mode():
        found = visual.ln_post(visual.tokens(torch.from_numpy(images))).numpy()
    difference = float(np.abs(found - wanted).max())
    if not difference <= FEATURE_TOLERANCE:
        raise InputError(
            f"{path}: read as a ViT its features are {difference:.2g} off the file's own; the limit is"
            f" {FEATURE_TOLERANCE:g}",
            hint="it computes something that a plain ViT does not",
        )
    return difference


def import_clip(path: Path, *, additions: Additions = CLIP_ADDITIONS) -> Base:
    """A Gamma on a base CLIP or UniQA state dict, as `read_checkpoint` reads one; tables of other grids are resized.

    Raises:
        InputError: not a CLIP's state dict, or one whose patches do not fit 224 pixels. IntegrityError: holds code.
    """
    from gamma_training.checkpoint import read_tensors

    clip = read_tensors(path)
    if "visual.conv1.weight" not in clip:
        raise InputError(f"{path}: not a base CLIP's state dict (no visual.conv1.weight)", hint="gamma-export takes it")
    patches, table = clip["visual.conv1.weight"], clip.get("visual.positional_embedding")
    if table is not None and table.dim() == 2 and patches.dim() == 4 and IMAGE % patches.shape[-1] == 0:
        clip["visual.positional_embedding"] = resized_positions(table, IMAGE // patches.shape[-1])
    state = gamma_from_clip(path, clip, additions)
    dims = dims_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    return Base(state, dims, drawn_for_clip(state))


def resized_positions(table: Tensor, grid: int) -> Tensor:
    """A position table [1 + n*n, D] for another grid, [1 + grid*grid, D]: the class token's row stays, the rest is
    resized bicubically (a = -0.75, half-pixel centres, no antialiasing), as DINOv2 does.
    """  # noqa: D205
    import torch

    side = math.isqrt(max(len(table) - 1, 0))
    if side * side != len(table) - 1 or side in (0, grid):
        return table  # not a square: the shapes' check says so
    square = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], resized.permute(0, 2, 3, 1).reshape(grid * grid, -1)])
