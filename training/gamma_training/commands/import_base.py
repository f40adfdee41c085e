"""gamma-train import-base: a pretrained image tower becomes a Gamma checkpoint to train."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gamma_runtime.cli import CommonOptions, log, option, out, printable, quoted
from gamma_runtime.errors import EXIT_OK, UsageError
from gamma_training.bases import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from gamma_training.bases import Base

__all__ = ["ImportBaseOptions", "import_base_command"]

_ZIP = b"PK"
_LABEL = "untrained experts, adapter, projection and text tower"
_CLIP_LABEL = "untrained experts and adapter"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportBaseOptions(CommonOptions):
    """Flags of gamma-train import-base; a CLIP brings its own text tower, mean and std."""

    source: Path = option(help="ONNX file of a plain ViT, or a base CLIP state dict (.pt)", positional=True)
    out: Path = option(Path("base.safetensors"), "the checkpoint; a .json is written beside it", alias="-o")
    first_moae: int = option(6, "first block of the image tower with experts")
    experts: int = option(3, "adaptive experts a block")
    embed: int | None = option(None, "width of the space of images and texts; 256")
    text_width: int | None = option(None, "width of the text tower, a multiple of 64; 128")
    text_layers: int | None = option(None, "blocks of the text tower; 4")
    text_first_moae: int | None = option(None, "its first block with experts; 2, of a CLIP 6")
    context: int | None = option(None, "longest prompt in tokens, its two ends included; 77")
    mean: tuple[float, float, float] = option(IMAGENET_MEAN, "of RGB in 0 to 1 in the base's training")
    std: tuple[float, float, float] = option(IMAGENET_STD, "likewise")
    compact: bool = option(False, "a token table of the built-in scenes' words only: no other word can be learned")
    prompts: Literal["sdp", "plain"] = option("sdp", "prompts that it shall be trained with")
    licence: str | None = option(None, "licence of the base, recorded in the config")
    seed: int = option(123, "of everything that is drawn")


def import_base_command(options: ImportBaseOptions) -> int:
    """Make a Gamma checkpoint of a pretrained ViT: experts from its MLPs, the rest drawn, ready to be trained."""
    from gamma_training.checkpoint import write_safetensors
    from gamma_training.intake import check_file
    from gamma_training.scenes import SCENES
    from gamma_training.tokens import compact_tokens

    _check(options)
    clip = check_file(options.source).startswith(_ZIP)
    base = _of_clip(options) if clip else _of_onnx(options)
    state, dims = base.state, base.dims
    if options.compact:
        state, dims = compact_tokens(state, dims, [prompt for s in SCENES.values() for prompt in s.prompts])
    write_safetensors(
        options.out,
        state,
        dims=dims,
        fresh=base.fresh,
        prompts=options.prompts,
        label=_CLIP_LABEL if clip else _LABEL,
        licence=options.licence,
    )
    if options.json:
        facts = {"checkpoint": str(options.out), "dims": dims.to_json(), "fresh": sorted(base.fresh)}
        out(json.dumps({**facts, "feature_difference": base.difference}))
    else:
        out(_as_text(options, base, sum(tensor.numel() for tensor in state.values())))
    if not options.quiet:
        log(f"next: train it; it has learned nothing about quality yet ({quoted(options.out)})")
    return EXIT_OK


def _check(options: ImportBaseOptions) -> None:
    """What would only show after a minute of work, or never.

    Raises:
        UsageError: a flag outside its range.
    """
    if options.out.suffix != ".safetensors":
        raise UsageError(f"--out {printable(str(options.out))}: the name must end with .safetensors")
    if options.text_width is not None and (options.text_width % 64 or not 64 <= options.text_width <= 1024):
        raise UsageError(f"--text-width {options.text_width}: a multiple of 64 from 64 to 1024")
    ranges = {
        "experts": (1, 64),
        "first_moae": (0, 127),
        "embed": (8, 4096),
        "text_layers": (1, 64),
        "text_first_moae": (0, 63),
        "context": (16, 1024),
    }
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name.replace('_', '-')} {value}: {least} to {most}")
    for name, lowest in (("mean", 0.0), ("std", 0.01)):
        if not all(lowest <= value <= 1 for value in getattr(options, name)):
            raise UsageError(f"--{name} {getattr(options, name)}: three numbers from {lowest:g} to 1")


def _given(options: ImportBaseOptions, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _of_onnx(options: ImportBaseOptions) -> Base:
    from gamma_training.bases import VIT_ADDITIONS, TextTower, import_vit_onnx

    tower = {name.removeprefix("text_"): v for name, v in _given(options, "text_width", "text_layers").items()}
    text = TextTower(**tower, **_given(options, "context", "embed"))
    additions = dataclasses.replace(
        VIT_ADDITIONS, **_given(options, "first_moae", "text_first_moae", "experts", "seed")
    )
    if additions.text_first_moae >= text.layers:
        raise UsageError(f"--text-first-moae {additions.text_first_moae} of {text.layers} blocks leaves no experts")
    return import_vit_onnx(options.source, text=text, additions=additions, mean=options.mean, std=options.std)


def _of_clip(options: ImportBaseOptions) -> Base:
    from gamma_training.bases import CLIP_ADDITIONS, import_clip

    mine = [*_given(options, "embed", "text_width", "text_layers", "context")]
    if mine or (options.mean, options.std) != (IMAGENET_MEAN, IMAGENET_STD):
        name = mine[0].replace("_", "-") if mine else "mean, --std"
        raise UsageError(f"--{name}: a CLIP brings its own", hint="leave it out")
    given = _given(options, "first_moae", "text_first_moae", "experts", "seed")
    return import_clip(options.source, additions=dataclasses.replace(CLIP_ADDITIONS, **given))


def _as_text(options: ImportBaseOptions, base: Base, parameters: int) -> str:
    vision, text = base.dims.vision, base.dims.text
    proof = "" if base.difference is None else f", features {base.difference:.1e} from ONNX Runtime's"
    return (
        f"{printable(str(options.out))}: image tower {vision.width}x{vision.layers}, {vision.activation}, patches of"
        f" {base.dims.patch}{proof}; text tower {text.width}x{text.layers}; {vision.experts} experts from block"
        f" {vision.first_moae} on; {parameters / 1e6:.1f} million parameters, {len(base.fresh)} tensors drawn"
    )
