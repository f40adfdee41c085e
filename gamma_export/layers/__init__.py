"""`gamma-verify --layers`: stage by stage, the first place where a graph does something else than its checkpoint.

An example of its use:

    report = verify_layers(open_bundle("photo.gamma"), "gamma_weight.pth", LayerOptions(scene="face-quality"))
    print(report.verdict)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gamma_export.layers.drift import StageMeter
from gamma_export.layers.report import LayerReport, layer_table
from gamma_runtime.errors import InputError, UsageError
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_export.layers.stages import Kit, Stage
    from gamma_export.layers.taps import Floats, TappedGraph
    from gamma_export.parity import Pixels
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.manifest import GraphEntry

__all__ = ["LayerOptions", "LayerReport", "compare_stages", "layer_table", "verify_layers"]

_STREAM = ("ln_pre", " attn", " mlp", " moae")  # the stages whose tensor is the residual stream
_HALF_STEP = {"fp16": 2.0**-11, "bf16": 2.0**-8}  # relative: how far rounding moves a number at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Which graph to look at, and with what; None takes the bundle's first (the joint graph where there is one)."""

    scene: str | None = None
    precision: str | None = None
    attention: str | None = None
    backend: str = "auto"
    photos: Path | None = None
    crops: int = 4
    gate: float | None = None
    threads: int | None = None


def verify_layers(
    bundle: Bundle, against: Path | str, options: LayerOptions = LayerOptions(), steps: Steps | None = None
) -> LayerReport:
    """Compare one graph of a bundle with its checkpoint, stage by stage, on crops of real photos.

    The published files are only read; the graph with taps is a copy in memory.

    Args:
        bundle: an opened bundle.
        against: the checkpoint it was exported from, or ``"demo"``.
        options: which graph, backend and photos.
        steps: progress; silent when None.

    Raises:
        UsageError: less than one crop, or a backend that cannot be tapped. InputError: no such graph.
        IntegrityError: a file of the bundle changed, or the checkpoint is another one.
    """
    from gamma_export.fold import fold_text
    from gamma_export.layers.stages import gamma_stages
    from gamma_export.layers.taps import open_tapped
    from gamma_export.parity import torch_threads
    from gamma_export.plan import check_gate
    from gamma_export.verify import bundle_scenes, gates, same_checkpoint
    from gamma_runtime import backends
    from gamma_training.checkpoint import build_model
    from gamma_training.scenes import encode_scenes

    check_gate(options.gate)
    steps = steps or Steps()
    entry = _pick(bundle, options)
    backend = backends.choose(options.backend, entry.precision)
    inputs, crops = _subjects(bundle, entry, options, steps)
    path = bundle.graph_file(entry)
    with steps.step("checkpoint"):
        model = build_model(same_checkpoint(bundle, against))
        text = encode_scenes(model, [s for name in entry.scenes for s in bundle_scenes(bundle) if s.name == name])
    stages = gamma_stages(model.dims)
    published, version = _published_scores(backend, path, entry, inputs, steps, options.threads)
    with open_tapped(backend, path, [s.tap for s in stages], options.threads) as tapped, torch_threads(options.threads):
        logits = fold_text(text, model.clip_model.logit_scale)
        found = compare_stages(model, text, logits, stages, entry, tapped, inputs, crops, steps)
    return LayerReport(
        graph=entry.name,
        scenes=tuple(entry.scenes),
        precision=entry.precision,
        residual=_residual(stages, tapped),
        attention=entry.attention,
        backend=backend,
        backend_version=version,
        crops=len(crops),
        stages=found.stages,
        score_max_abs=_largest(published - found.wanted),
        gate_max=gates(bundle, options.gate)[entry.precision],
        taps_max_abs=_largest(published - found.tapped),
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Every stage, and the scores [P, K] of PyTorch and of the tapped graph."""

    stages: tuple[Any, ...]
    wanted: np.ndarray[Any, Any]
    tapped: np.ndarray[Any, Any]


def compare_stages(
    model: Any,
    text: Tensor,
    logits: np.ndarray[Any, Any],
    stages: list[Stage],
    entry: GraphEntry,
    tapped: TappedGraph,
    inputs: Pixels,
    crops: Pixels,
    steps: Steps,
) -> Comparison:
    """One call of the graph at a time, so memory holds the tensors of one call only.

    Args:
        model: the PyTorch module, float32.
        text: L2-normalised text features [5 * K, embed].
        logits: the head's matrix, float64 [embed, 5 * K].
        stages: in order, pixels first.
        entry: the graph's entry in the manifest.
        tapped: the graph, compiled with the stages' taps.
        inputs: what the graph is fed: the crops, or uint8 frames [F, H, W, 3].
        crops: uint8 [P, 224, 224, 3]: of frames all crops, in order.
        steps: progress.
    """
    import torch

    from gamma_export.layers.kits import Peak, exact_kit, rounded_kit
    from gamma_export.layers.reference import reference_taps

    peak, residual = Peak(), _residual(stages, tapped)
    kits = exact_kit(model, logits), rounded_kit(model, logits, entry.precision, residual, peak)
    meters = {stage.name: StageMeter() for stage in stages}
    wanted_scores, tapped_scores = [], []
    each = entry.crops if _takes_frames(entry) else 1
    with steps.step(f"{len(stages)} stages, {len(crops)} crops", len(crops)) as tick, torch.inference_mode():
        for start in range(0, len(inputs), _per_call(entry)):
            end = start + _per_call(entry)
            part = crops[start * each : end * each]
            outputs = tapped.run(_feed(entry, inputs[start:end]))
            wanted = reference_taps(model, text, part, stages)
            found: dict[str, Tensor] = {}
            for stage in stages:
                found[stage.name] = _shaped(outputs.pop(stage.tap), wanted[stage.name])
                meter, mine = meters[stage.name], found[stage.name]
                meter.accumulated(mine, wanted[stage.name])
                read = [found[name] for name in stage.inputs] or [wanted[stage.name]]
                if all(bool(torch.isfinite(tensor).all()) for tensor in read):
                    _judge(stage, kits, read, mine, meter, peak, residual)
            wanted_scores.append(wanted["scores"].numpy())
            tapped_scores.append(found["scores"].numpy())
            tick(len(part))
    drift = tuple(meters[stage.name].result(stage.name, stage.tap) for stage in stages)
    return Comparison(drift, np.concatenate(wanted_scores), np.concatenate(tapped_scores))


def _judge(
    stage: Stage,
    kits: tuple[Kit, Kit],
    inputs: list[Tensor],
    found: Tensor,
    meter: StageMeter,
    peak: Any,
    residual: str,
) -> None:
    """The stage's own error and floor, from the graph's own inputs."""
    peak.value = 0.0
    exact_inputs = [tensor.double() for tensor in inputs]
    exact = stage.run(kits[0], *exact_inputs)
    rounded = stage.run(kits[1], *(_moved(t, n, residual) for t, n in zip(inputs, stage.inputs or ("",), strict=True)))
    adds_to = None if stage.adds_to is None else exact_inputs[stage.adds_to]
    meter.own(found.double(), exact, rounded.double(), peak.value, adds_to)


def _moved(tensor: Tensor, name: str, residual: str) -> Tensor:
    """A stream in half precision may be read before or after it was rounded: libraries drop casts back and forth."""
    import torch

    if residual == "fp32" or not name.endswith(_STREAM):
        return tensor
    noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return tensor * (1 + noise * _HALF_STEP[residual])


def _shaped(array: Floats, wanted: Tensor) -> Tensor:
    """Rows of all crops of a call -> the crops that were asked for, in the shape that PyTorch gives them."""
    import torch

    return torch.from_numpy(array).reshape(-1, *wanted.shape[1:])[: len(wanted)]


def _feed(entry: GraphEntry, inputs: Pixels) -> dict[str, Pixels]:
    """Some inputs as the graph takes them; a short last call is filled up with its last one."""
    ((name, (_, shape)),) = entry.inputs.items()
    filled = np.concatenate([inputs, np.repeat(inputs[-1:], _per_call(entry) - len(inputs), axis=0)])
    return {name: filled.reshape(entry.batch[0], *(int(size) for size in shape[1:]))}


def _takes_frames(entry: GraphEntry) -> bool:
    """Whether one input is a whole picture [H, W, 3], of which the graph cuts all crops, instead of one crop."""
    ((_, (_, shape)),) = entry.inputs.items()
    return len(shape) == 4


def _per_call(entry: GraphEntry) -> int:
    return entry.batch[0] * (1 if _takes_frames(entry) else entry.crops)


def _residual(stages: list[Stage], tapped: TappedGraph) -> str:
    """The stream's precision, read from the graph: the first tensor that something was added to."""
    return tapped.types[next(stage.tap for stage in stages if stage.adds_to is not None)]


def _published_scores(
    backend: str, path: Path, entry: GraphEntry, inputs: Pixels, steps: Steps, threads: int | None
) -> tuple[np.ndarray[Any, Any], str]:
    """Crop scores [P, K] of the graph as it is published, and the library's version; NaN where it gives no number."""
    from gamma_export.parity import graph_scores
    from gamma_runtime import backends
    from gamma_runtime.backends.base import NonFiniteError

    with backends.create(backend, path, threads=threads) as runner:
        label = f"published graph on {backend}, {len(inputs)} {runner.io.input}"
        try:
            return graph_scores(runner, entry.batch[0], inputs, steps, label), runner.version
        except NonFiniteError:
            return np.full((1, len(entry.scenes)), np.nan), runner.version


def _largest(gap: np.ndarray[Any, Any]) -> float:
    return float(np.abs(gap).max()) if np.isfinite(gap).all() else float("inf")


def _pick(bundle: Bundle, options: LayerOptions) -> GraphEntry:
    """The widest graph that fits what was asked for, or a scene's own."""
    fitting = [
        graph
        for graph in bundle.manifest.graphs
        if (options.scene is None or options.scene in graph.scenes)
        and options.precision in (None, graph.precision)
        and graph.precision not in ("int8", "fp8")  # no stage of ours rounds to 8 bits yet
        and options.attention in (None, graph.attention)
    ]
    if not fitting:
        asked = [x for x in (options.scene, options.precision, options.attention) if x]
        have = sorted({f"{g.name} ({g.precision}, {g.attention})" for g in bundle.manifest.graphs})
        raise InputError(f"{bundle.folder}: no graph for {', '.join(asked)}", hint=f"it has {', '.join(have)}")
    size = -1 if options.scene is None else 1
    return min(fitting, key=lambda graph: size * len(graph.scenes))


def _subjects(bundle: Bundle, entry: GraphEntry, options: LayerOptions, steps: Steps) -> tuple[Pixels, Pixels]:
    """What the graph is fed, and its crops: of a graph that takes frames whole ones, two at least."""
    from gamma_export.parity import photos_in, verification_subjects

    if options.crops < 1:
        raise UsageError(f"--crops-count {options.crops} is below 1")
    if not _takes_frames(entry):
        crops = _crops(options, steps)
        return crops, crops
    subjects = verification_subjects(photos_in(options.photos)[: options.crops], bundle.contract().crop, steps)
    subjects = subjects.first(options.crops)
    return subjects.inputs, subjects.crops


def _crops(options: LayerOptions, steps: Steps) -> Pixels:
    """Centre crops: of the photos first, then of their degraded copies."""
    from gamma_export.parity import photos_in, verification_crops
    from gamma_export.photos import VERIFICATION_COPIES

    photos = photos_in(options.photos)
    variants = 1 + len(VERIFICATION_COPIES)
    made = verification_crops(photos[: options.crops], steps)
    ordered = np.concatenate([made[first::variants] for first in range(variants)])
    if len(ordered) < options.crops:
        raise UsageError(
            f"--crops-count {options.crops}: {len(photos)} photos and their degraded copies make {len(ordered)} crops"
        )
    return ordered[: options.crops]
