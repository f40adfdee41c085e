"""From a checkpoint to a verified bundle: read, fold, write graphs, prove parity, publish; all or nothing."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_export.plan import EIGHT_BITS, ExportOptions, Plan, check_options, make_plan
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gamma_export.int8 import Int8Graphs
    from gamma_export.vision import IO, GraphOptions
    from gamma_export.weights import WeightsFile
    from gamma_runtime.manifest import FileEntry, GraphEntry, LabelCheck, Manifest, Parity
    from gamma_runtime.selftest import GoldenCheck
    from gamma_training.checkpoint import Checkpoint
    from gamma_training.data import Sample
    from gamma_training.model import Gamma

__all__ = ["DEMO", "ExportOptions", "ExportReport", "export"]

DEMO = "demo"
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 7, "fp8": 7}  # of a weight; 8 bits are made from both others


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What came of it; ``published`` is False when the gate was not met, and then nothing was written.

    ``labels``: of labelled photos, where they were given. ``int8``: where int8 was asked for, how it was made, and what
    it measured.
    """

    bundle: Path
    published: bool
    seconds: float
    bytes: int
    parity: tuple[Parity, ...]
    golden: tuple[GoldenCheck, ...]
    warnings: tuple[str, ...]
    label: str | None
    scenes: tuple[str, ...]
    labels: tuple[LabelCheck, ...] = ()
    int8: Int8Graphs | None = None


def export(
    checkpoint: Path | str | None,
    out: Path | str,
    options: ExportOptions = ExportOptions(),
    *,
    steps: Steps | None = None,
) -> ExportReport:
    """Write a verified bundle.

    Args:
        checkpoint: the authors' ``.pth``, a base CLIP state dict, our ``.safetensors``; None, ``"demo"``: ours.
        out: the bundle's folder, e.g. ``photo.gamma``; an older bundle there is replaced as a whole.
        options: see `ExportOptions`.
        steps: progress; silent when None.

    Raises:
        GammaError: of any class; the folder is then as it was before.

    Example:
        >>> report = export("gamma_weight.pth", "photo.gamma", ExportOptions(precision=("fp16",)))
        >>> report.published
        True
    """
    from gamma_export.demo import demo_checkpoint
    from gamma_export.labels import check_labels, labelled_photos
    from gamma_export.publish import check_output, check_space, publish, staging
    from gamma_training.checkpoint import build_model, read_checkpoint

    steps = steps or Steps()
    precisions, batch = check_options(options)
    source = None if checkpoint is None or str(checkpoint) == DEMO else Path(os.path.expanduser(checkpoint))
    out = Path(os.path.expanduser(out)).absolute()
    options = dataclasses.replace(options, calib_cache=options.calib_cache or out.with_suffix(".calib"))
    check_output(out, source)
    _require_libraries(precisions)
    with staging(out) as stage:
        with steps.step("checkpoint"):
            read = read_checkpoint(
                source or demo_checkpoint(),
                prompts=options.prompts,
                licence=options.licence,
                expect_sha256=options.expect_sha256,
            )
            model = build_model(read)
        check_space(out, int(read.parameters * sum(_BYTES[p] for p in precisions) * 1.1))
        plan = make_plan(options, read, precisions, batch)
        samples = labelled_photos(options, plan, steps)
        manifest, int8 = _build(stage, read, model, plan, samples, options, steps)
        labels = check_labels(stage, manifest, model, plan, samples, options, steps)
        manifest = manifest.model_copy(update={"labels": labels})
        golden = _golden(stage, manifest, options, steps)
        passed = all(row.passed for row in manifest.parity) and all(row.passed for row in labels)
        passed = passed and all(check.passed for check in golden)
        if passed:
            publish(stage, out, manifest, options.lock_timeout)
    return _report(out, passed, steps.seconds, manifest, golden, int8)


def _report(
    out: Path,
    published: bool,
    seconds: float,
    manifest: Manifest,
    golden: list[GoldenCheck],
    int8: Int8Graphs | None,
) -> ExportReport:
    return ExportReport(
        bundle=out,
        published=published,
        seconds=seconds,
        bytes=sum(entry.size for entry in manifest.files),
        parity=tuple(manifest.parity),
        golden=tuple(golden),
        warnings=tuple(manifest.warnings),
        label=manifest.checkpoint.label,
        scenes=tuple(scene.name for scene in manifest.scenes),
        labels=tuple(manifest.labels),
        int8=int8,
    )


def _require_libraries(precisions: tuple[str, ...]) -> None:
    from gamma_runtime.cli import require

    for module in ("torch", "onnx", "scipy"):
        require(module, "export")
    if set(EIGHT_BITS) & set(precisions):
        require("onnxruntime", "cpu")


def _build(
    stage: Path,
    checkpoint: Checkpoint,
    model: Gamma,
    plan: Plan,
    samples: Sequence[Sample],
    options: ExportOptions,
    steps: Steps,
) -> tuple[Manifest, Int8Graphs | None]:
    """Everything of the bundle but its publication: files into ``stage``, and the manifest with its measurements."""
    from gamma_export.describe import describe
    from gamma_export.fold import fold_text
    from gamma_export.golden import make_golden
    from gamma_export.int8 import Job, find_calibration_images, make_int8
    from gamma_export.parity import photos_in, reference, torch_threads, verification_subjects
    from gamma_training.scenes import encode_scenes

    names = [scene.name for scene in plan.scenes]
    kind = next((precision for precision in plan.precisions if precision in EIGHT_BITS), None)
    photos = photos_in(options.photos)
    judged = [*photos, *(sample.path for sample in samples)]
    images = find_calibration_images(options, plan, judged, steps) if kind else None
    subjects = verification_subjects(photos, plan.contract.crop, steps)
    with steps.step(f"text tower, {len(plan.scenes)} scenes"):
        with torch_threads(1):  # a graph's constants, and so its name, must not depend on the machine's cores
            text = encode_scenes(model, plan.scenes)
        folded = fold_text(text, model.clip_model.logit_scale)
    made = {p: _graphs(stage, checkpoint, plan, options, p, folded, steps) for p in plan.precisions if p != kind}
    wanted = reference(model, text, names, subjects, steps, options.threads)
    int8 = None
    if kind is not None:

        def base(precision: str) -> tuple[Path, tuple[list[FileEntry], list[GraphEntry]]]:
            folder = stage / f"base-{precision}"
            folder.mkdir()
            return folder, _graphs(folder, checkpoint, plan, options, precision, folded, steps)

        int8 = make_int8(Job(stage, checkpoint, plan, options, kind, images, steps), base, wanted)
        made[kind] = int8.files, int8.graphs
    files = [file for precision in plan.precisions for file in made[precision][0]]
    graphs = [graph for precision in plan.precisions for graph in made[precision][1]]
    with steps.step("golden images in PyTorch"):
        golden_files, golden = make_golden(stage, model, text, plan.contract, names, options.threads)
    parity = _parity(stage, graphs, wanted, options, steps)
    return describe(checkpoint, plan, options, files + golden_files, graphs, parity, golden, int8), int8


def _graphs(
    stage: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    options: ExportOptions,
    precision: str,
    folded: NDArray[np.float64],
    steps: Steps,
) -> tuple[list[FileEntry], list[GraphEntry]]:
    """One weights file and all graphs of one precision."""
    from gamma_export.fold import fold_vision
    from gamma_export.vision import GraphOptions
    from gamma_export.weights import write_weights
    from gamma_runtime.manifest import FileEntry

    dims, crop = checkpoint.dims, plan.contract.crop
    with steps.step(f"{precision} weights"):
        weights = write_weights(stage, fold_vision(checkpoint.state, dims), precision)
    files = [FileEntry(name=weights.name, size=weights.size, sha256=weights.sha256)]
    graphs = []
    spellings = [
        GraphOptions(
            precision=precision,
            residual=options.residual,
            attention=attention,
            crops=crop.crops,
            batch=plan.batch,
            frame=crop if crop.frame else None,
        )
        for attention in plan.attentions(options, precision)
    ]
    with steps.step(f"{precision} graphs, {len(plan.graphs) * len(spellings)}, checked"):
        for graph_options, (name, indices) in itertools.product(spellings, plan.graphs):
            columns = [i * dims.levels + k for i in indices for k in range(dims.levels)]
            scenes = [plan.scenes[i].name for i in indices]
            file, entry = _graph(stage, name, scenes, weights, checkpoint, folded[:, columns], graph_options)
            files.append(file)
            graphs.append(entry)
    return files, graphs


def _graph(
    stage: Path,
    name: str,
    scenes: list[str],
    weights: WeightsFile,
    checkpoint: Checkpoint,
    text: NDArray[np.float64],
    options: GraphOptions,
) -> tuple[FileEntry, GraphEntry]:
    from gamma_export.lint import check_graph
    from gamma_export.publish import add_file
    from gamma_export.vision import build_graph, graph_io
    from gamma_runtime.manifest import GraphEntry

    model = build_graph(name, weights, checkpoint.dims, text, options)
    file = add_file(stage, f"{name}-{options.precision}", ".onnx", model.SerializeToString(deterministic=True))
    check_graph(stage / file.name, checkpoint.dims, options)
    inputs, outputs = graph_io(options, checkpoint.dims, len(scenes))
    entry = GraphEntry(
        name=name,
        scenes=scenes,
        precision=options.precision,  # type: ignore[arg-type]
        attention=options.attention,  # type: ignore[arg-type]
        opset=options.opset,
        moae="exact",
        int8_share=None,
        onnx=file.name,
        weights=weights.name,
        crops=options.crops,
        batch=options.batch,
        inputs=_numpy_types(inputs),
        outputs=_numpy_types(outputs),
    )
    return file, entry


def _numpy_types(table: IO) -> IO:
    """The manifest names types as numpy and the runtimes do."""
    return {name: ("float32" if dtype == "fp32" else dtype, shape) for name, (dtype, shape) in table.items()}


def _parity(
    stage: Path, graphs: Sequence[GraphEntry], wanted: Any, options: ExportOptions, steps: Steps
) -> list[Parity]:
    from gamma_export.parity import measure, share_for
    from gamma_runtime import backends
    from gamma_runtime.selftest import GATES

    rows: list[Parity] = []
    for entry in graphs:
        gate = options.gate or GATES[entry.precision]
        backend = backends.choose(options.backend, entry.precision)
        share = share_for(entry, graphs, wanted)
        rows += measure(entry, stage / entry.onnx, backend, share, gate, steps, options.threads)
    return rows


def _golden(stage: Path, manifest: Manifest, options: ExportOptions, steps: Steps) -> list[GoldenCheck]:
    """One golden image through the staged graphs: encoded file, contract, all crops, mean; as on the device.

    The first one, which scenes with small working sizes reduce; gamma-verify takes all of them.
    """
    from gamma_runtime import backends
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.selftest import selftest

    staged = Bundle(stage, manifest, "")
    checks: list[GoldenCheck] = []
    for precision in dict.fromkeys(graph.precision for graph in manifest.graphs):
        backend = backends.choose(options.backend, precision)
        with steps.step(f"golden image, {precision} on {backend}"):
            checks += selftest(staged, [backend], options.gate, precision, options.threads, images=1)
    return checks
