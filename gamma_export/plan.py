"""What to export: the options, checked, and what follows from them and the checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gamma_runtime.cli import option
from gamma_runtime.errors import UsageError

if TYPE_CHECKING:
    from gamma_runtime.contract import Contract
    from gamma_training.checkpoint import Checkpoint
    from gamma_training.scenes import Scene

__all__ = ["EIGHT_BITS", "ExportOptions", "Plan", "check_gate", "check_options", "make_plan"]

EIGHT_BITS = ("int8", "fp8")
_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint becomes a bundle; all of it is recorded in the manifest."""

    precision: tuple[str, ...] = option(
        ("fp16",),
        "fp32, fp16, bf16, int8, fp8 (these need --calib); several (with commas) make graphs of each",
        repeat=True,
    )
    scene: tuple[str, ...] = option(
        (), "scenes, with commas; those of the checkpoint's own prompt kind when left out", repeat=True
    )
    scene_file: Path | None = option(None, "YAML with scenes of your own: name and five prompts, bad to perfect")
    prompts: Literal["sdp", "plain"] | None = option(
        None, "prompts that the checkpoint was trained with; the authors' files do not say (assumed: sdp)"
    )
    crops: str = option(
        "five", "crop policy: centre, five, gridRxC, cover, randomN or randomN:seedS; frameWxH:POLICY for camera frames"
    )
    native: bool = option(False, "keep the photos' own pixels instead of the scenes' working sizes")
    batch: str = option("1", "images (for --crops cover: crops) in one call: a number, or LEAST:OPTIMAL:MOST")
    joint: bool = option(False, "only the graph of all scenes in one pass, no graph for each scene")
    attention: Literal["decomposed", "op", "both"] = option(
        "decomposed", "op: ONNX opset-23 Attention (fp16, bf16; TensorRT 10.16 and later, RTX); both: graphs of each"
    )
    residual: Literal["fp32", "fp16", "bf16"] = option("fp32", "precision of the residual stream in fp16, bf16 graphs")
    calib: tuple[Path, ...] = option(
        (), "int8: photos to calibrate with: folders, images, or .txt/.csv lists of them", repeat=True
    )
    calib_count: int = option(256, "int8: most photos to calibrate with")
    calib_min: int = option(16, "int8: fewer usable ones are refused")
    calib_method: Literal["auto", "max", "percentile", "entropy", "mse"] = option(
        "auto", "int8: how ranges follow from histograms; auto: what shifts the scores least"
    )
    smooth: float | None = option(
        None, "8 bits: SmoothQuant, the share of a LayerNorm's outliers that its products' weights take, such as 0.5"
    )
    experts: Literal["int8", "int4"] = option(
        "int8", "int8: adaptive experts in 8 bits; int4 (an experiment): only their weights, in 4 bits"
    )
    calib_cache: Path | None = option(
        None, "int8: folder of the calibration record and the trials; the bundle's name with .calib when left out"
    )
    skip_speed: bool = option(False, "int8: do not measure whether it is faster here")
    recipe: Path | None = option(None, "int8: a bundle whose recipe is replayed, instead of --calib")
    photos: Path | None = option(None, "folder of photos to verify with; the 16 packaged ones when left out")
    labels: Path | None = option(
        None,
        "YAML with a list `data:` of labelled photos, as for gamma-eval: how much SRCC and PLCC drop on its test split",
    )
    backend: str = option("auto", "runtime that proves parity: auto, onnxruntime or openvino")
    gate: float | None = option(
        None, "largest allowed |score difference|; 1e-4, 5e-3, 2e-2, 2e-2 for fp32, fp16, bf16, 8 bits"
    )
    gate_srcc: float | None = option(None, "with --labels: largest allowed drop of SRCC; 0.003 for 8 bits, else 0.001")
    licence: str | None = option(None, "licence of the checkpoint, recorded in the manifest")
    expect_sha256: str | None = option(None, "refuse a checkpoint with any other digest")
    threads: int | None = option(None, "CPU threads of the verification")
    lock_timeout: float = option(60.0, "seconds to wait for another gamma-export into the same folder")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Options after checking."""

    scenes: list[Scene]
    contract: Contract
    precisions: tuple[str, ...]
    batch: tuple[int, int, int]
    graphs: list[tuple[str, list[int]]]  # name, indices of its scenes

    def attentions(self, options: ExportOptions, precision: str) -> tuple[str, ...]:
        """Spellings of attention to write graphs for; TensorRT-RTX has no fp32 kernel for the op."""
        if precision == "fp32":
            return ("decomposed",)
        return ("decomposed", "op") if options.attention == "both" else (options.attention,)


def check_options(options: ExportOptions) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """Precisions, each once, and the batch's (least, optimal, most); before anything heavy happens.

    Raises:
        UsageError: options that do not exist or do not fit together. EnvironmentFault: no backend to verify with.
        InputError: the named backend cannot run the precision.
    """
    from gamma_runtime import backends

    precisions = tuple(dict.fromkeys(p for part in options.precision for p in part.split(",") if p))
    if not precisions or set(precisions) - set(_PRECISIONS):
        raise UsageError(
            f"--precision {' '.join(options.precision)!r}", hint=f"one or more of {', '.join(_PRECISIONS)}"
        )
    if options.attention == "op" and "fp32" in precisions:
        raise UsageError("--attention op is for fp16 and bf16: TensorRT-RTX has no fp32 kernel for it")
    halves = {"fp16" if precision in EIGHT_BITS else precision for precision in precisions}
    if options.residual != "fp32" and halves - {"fp32", options.residual}:
        raise UsageError(f"--residual {options.residual} does not go with --precision {','.join(precisions)}")
    for precision in precisions:
        backends.choose(options.backend, precision)
    check_gate(options.gate)
    if options.gate_srcc is not None and not (options.labels and 0 < options.gate_srcc < 1):
        raise UsageError(f"--gate-srcc {options.gate_srcc} is a number between 0 and 1, for --labels")
    _check_eight_bits(options, precisions)
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads {options.threads} is below 1")
    if not 0 <= options.lock_timeout < float("inf"):
        raise UsageError(f"--lock-timeout {options.lock_timeout} is not a number of seconds")
    try:
        numbers = [int(part) for part in options.batch.split(":")]
        least, optimal, most = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError as error:
        raise UsageError(f"--batch {options.batch!r}", hint="a number such as 1, or a range such as 1:4:8") from error
    if not 1 <= least <= optimal <= most <= 256:
        raise UsageError(f"--batch {options.batch!r}: needs 1 <= LEAST <= OPTIMAL <= MOST <= 256")
    return precisions, (least, optimal, most)


def _check_eight_bits(options: ExportOptions, precisions: tuple[str, ...]) -> None:
    wanted = bool(options.calib) + (options.recipe is not None)
    kinds = [precision for precision in precisions if precision in EIGHT_BITS]
    if len(kinds) > 1:
        raise UsageError("--precision int8 and fp8 each have a recipe, and a bundle has one", hint="export twice")
    if kinds and wanted != 1:
        raise UsageError(
            f"--precision {kinds[0]} takes its ranges from photos or from an earlier bundle",
            hint="either --calib FOLDER or --recipe BUNDLE",
        )
    if options.experts == "int4" and "int8" not in kinds:
        raise UsageError("--experts int4 is for --precision int8")
    if "fp8" in kinds and options.attention != "decomposed":
        raise UsageError("--precision fp8 needs --attention decomposed: the softmax has to be 8 bits too")
    for name, number in (("--calib-count", options.calib_count), ("--calib-min", options.calib_min)):
        if number < 1:
            raise UsageError(f"{name} {number} is below 1")
    if options.smooth is not None and not (kinds and options.calib and 0 <= options.smooth <= 1):
        raise UsageError(f"--smooth {options.smooth} is a number from 0 to 1, for 8 bits with --calib")
    if not kinds and wanted:
        raise UsageError("--calib and --recipe are for --precision int8 or fp8")


def check_gate(gate: float | None) -> None:
    """A gate is a score difference.

    Raises:
        UsageError: not a number between 0 and 1.
    """
    if gate is not None and not 0 < gate < 1:
        raise UsageError(f"--gate {gate} is not between 0 and 1")


def make_plan(
    options: ExportOptions, checkpoint: Checkpoint, precisions: tuple[str, ...], batch: tuple[int, int, int]
) -> Plan:
    """Scenes, contract and graphs.

    Raises:
        UsageError: an unknown scene or crop policy. InputError: a scene file, or a checkpoint for other crops.
    """
    from gamma_runtime.contract import CROP, Contract, CropPolicy
    from gamma_runtime.errors import InputError
    from gamma_training.scenes import find_scenes, load_scenes, scenes_of

    if checkpoint.dims.image != CROP:
        raise InputError(f"{checkpoint.path}: takes {checkpoint.dims.image}-pixel crops; the runtime cuts {CROP}")
    user = load_scenes(options.scene_file) if options.scene_file else []
    scenes = find_scenes(options.scene, user) if options.scene else (user or scenes_of(checkpoint.prompts))
    crop = CropPolicy.parse(options.crops)
    native = options.native or crop.frame is not None
    names = {scene.name: None if native else scene.short_side for scene in scenes}
    everything = list(range(len(scenes)))
    graphs = [] if options.joint else [(scene.name, [i]) for i, scene in enumerate(scenes)]
    if options.joint or len(scenes) > 1:
        graphs.insert(0, ("joint", everything))
    return Plan(scenes, Contract(names, crop=crop), precisions, batch, graphs)
