"""From a checkpoint to a verified bundle: read, fold, write graphs, prove parity, publish; all or nothing."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gamma_export.steps import Steps
from gamma_runtime.cli import option, printable
from gamma_runtime.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gamma_export.vision import IO, GraphOptions
    from gamma_export.weights import WeightsFile
    from gamma_runtime.contract import Contract
    from gamma_runtime.manifest import FileEntry, GraphEntry, Manifest, Parity
    from gamma_training.checkpoint import Checkpoint
    from gamma_training.model import Gamma
    from gamma_training.scenes import Scene

__all__ = ["DEMO", "ExportOptions", "ExportReport", "export"]

DEMO = "demo"
_PRECISIONS = ("fp32", "fp16", "bf16")
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint becomes a bundle; all of it is recorded in the manifest."""

    precision: tuple[str, ...] = option(
        ("fp16",), "fp32, fp16, bf16; several (with commas) make graphs of each", repeat=True
    )
    scene: tuple[str, ...] = option(
        (), "scenes, with commas; those of the checkpoint's own prompt kind when left out", repeat=True
    )
    scene_file: Path | None = option(None, "YAML with scenes of your own: name and five prompts, bad to perfect")
    prompts: Literal["sdp", "plain"] | None = option(
        None, "prompts that the checkpoint was trained with; the authors' files do not say (assumed: sdp)"
    )
    crops: str = option("five", "crop policy: centre, five, gridRxC, randomN or randomN:seedS")
    native: bool = option(False, "keep the photos' own pixels instead of the scenes' working sizes")
    batch: str = option("1", "images in one call: a number, or LEAST:OPTIMAL:MOST")
    joint: bool = option(False, "only the graph of all scenes in one pass, no graph for each scene")
    attention: Literal["decomposed", "op"] = option(
        "decomposed", "op: ONNX opset-23 Attention (fp16, bf16; TensorRT 10.16 and later, RTX)"
    )
    residual: Literal["fp32", "fp16", "bf16"] = option("fp32", "precision of the residual stream in fp16, bf16 graphs")
    photos: Path | None = option(None, "folder of photos to verify with; the 16 packaged ones when left out")
    backend: str = option("auto", "runtime that proves parity: auto, onnxruntime or openvino")
    gate: float | None = option(None, "largest allowed |score difference|; 1e-4, 5e-3, 2e-2 for fp32, fp16, bf16")
    licence: str | None = option(None, "licence of the checkpoint, recorded in the manifest")
    expect_sha256: str | None = option(None, "refuse a checkpoint with any other digest")
    threads: int | None = option(None, "CPU threads of the verification")
    lock_timeout: float = option(60.0, "seconds to wait for another gamma-export into the same folder")


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What came of it; ``published`` is False when the gate was not met, and then nothing was written."""

    bundle: Path
    published: bool
    seconds: float
    bytes: int
    parity: tuple[Parity, ...]
    warnings: tuple[str, ...]
    label: str | None
    scenes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Options after checking."""

    scenes: list[Scene]
    contract: Contract
    precisions: tuple[str, ...]
    batch: tuple[int, int, int]
    graphs: list[tuple[str, list[int]]]  # name, indices of its scenes


def export(
    checkpoint: Path | str | None,
    out: Path | str,
    options: ExportOptions = ExportOptions(),
    *,
    steps: Steps | None = None,
) -> ExportReport:
    """Write a verified bundle.

    Args:
        checkpoint: the authors' ``.pth``, a base CLIP state dict, our ``.safetensors``, or ``"demo"`` / None for the
            untrained demo checkpoint.
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
    from gamma_export.publish import check_output, check_space, publish, staging
    from gamma_runtime.cli import require
    from gamma_training.checkpoint import build_model, read_checkpoint

    steps = steps or Steps()
    precisions, batch = _check(options)
    for module in ("torch", "onnx", "scipy"):
        require(module, "export")
    source = None if checkpoint is None or str(checkpoint) == DEMO else Path(os.path.expanduser(checkpoint))
    out = Path(os.path.expanduser(out)).absolute()
    check_output(out, source)
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
        plan = _plan(options, read, precisions, batch)
        manifest = _build(stage, read, model, plan, options, steps)
        passed = all(row.passed for row in manifest.parity)
        if passed:
            publish(stage, out, manifest, options.lock_timeout)
    return ExportReport(
        bundle=out,
        published=passed,
        seconds=steps.seconds,
        bytes=sum(entry.size for entry in manifest.files),
        parity=tuple(manifest.parity),
        warnings=tuple(manifest.warnings),
        label=read.label,
        scenes=tuple(scene.name for scene in plan.scenes),
    )


def _check(options: ExportOptions) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    from gamma_runtime import backends

    precisions = tuple(dict.fromkeys(p for part in options.precision for p in part.split(",") if p))
    if not precisions or set(precisions) - set(_PRECISIONS):
        raise UsageError(
            f"--precision {' '.join(options.precision)!r}", hint=f"one or more of {', '.join(_PRECISIONS)}"
        )
    if options.attention == "op" and "fp32" in precisions:
        raise UsageError("--attention op is for fp16 and bf16: TensorRT-RTX has no fp32 kernel for it")
    if options.residual != "fp32" and set(precisions) - {"fp32", options.residual}:
        raise UsageError(f"--residual {options.residual} does not go with --precision {','.join(precisions)}")
    for precision in precisions:
        backends.choose(options.backend, precision)
    if options.gate is not None and not 0 < options.gate < 1:
        raise UsageError(f"--gate {options.gate} is not between 0 and 1")
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


def _plan(
    options: ExportOptions, checkpoint: Checkpoint, precisions: tuple[str, ...], batch: tuple[int, int, int]
) -> _Plan:
    from gamma_runtime.contract import CROP, Contract, CropPolicy
    from gamma_runtime.errors import InputError
    from gamma_training.scenes import find_scenes, load_scenes, scenes_of

    if checkpoint.dims.image != CROP:
        raise InputError(f"{checkpoint.path}: takes {checkpoint.dims.image}-pixel crops; the runtime cuts {CROP}")
    user = load_scenes(options.scene_file) if options.scene_file else []
    scenes = find_scenes(options.scene, user) if options.scene else (user or scenes_of(checkpoint.prompts))
    names = {scene.name: None if options.native else scene.short_side for scene in scenes}
    everything = list(range(len(scenes)))
    graphs = [] if options.joint else [(scene.name, [i]) for i, scene in enumerate(scenes)]
    if options.joint or len(scenes) > 1:
        graphs.insert(0, ("joint", everything))
    return _Plan(scenes, Contract(names, crop=CropPolicy.parse(options.crops)), precisions, batch, graphs)


def _build(
    stage: Path, checkpoint: Checkpoint, model: Gamma, plan: _Plan, options: ExportOptions, steps: Steps
) -> Manifest:
    """Everything of the bundle but its publication: files into ``stage``, and the manifest with its measurements."""
    from gamma_export.fold import encode_scenes, fold_text
    from gamma_export.golden import make_golden
    from gamma_export.parity import photos_in, reference, verification_crops

    crops = verification_crops(photos_in(options.photos))
    with steps.step(f"text tower, {len(plan.scenes)} scenes"):
        text = encode_scenes(model, plan.scenes)
        folded = fold_text(text, model.clip_model.logit_scale)
    files: list[FileEntry] = []
    graphs: list[GraphEntry] = []
    for precision in plan.precisions:
        made = _graphs(stage, checkpoint, plan, options, precision, folded, steps)
        files += made[0]
        graphs += made[1]
    wanted = reference(model, text, [scene.name for scene in plan.scenes], crops, steps)
    with steps.step("golden images"):
        golden_files, golden = make_golden(stage, model, text, plan.contract, [s.name for s in plan.scenes])
    parity = _parity(stage, graphs, wanted, options, steps)
    return _manifest(checkpoint, plan, options, files + golden_files, graphs, parity, golden)


def _graphs(
    stage: Path,
    checkpoint: Checkpoint,
    plan: _Plan,
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

    dims = checkpoint.dims
    with steps.step(f"{precision} weights"):
        weights = write_weights(stage, fold_vision(checkpoint.state, dims), precision)
    files = [FileEntry(name=weights.name, size=weights.size, sha256=weights.sha256)]
    graphs = []
    graph_options = GraphOptions(
        precision=precision,
        residual=options.residual,
        attention=options.attention,
        crops=plan.contract.crop.crops,
        batch=plan.batch,
    )
    with steps.step(f"{precision} graphs, {len(plan.graphs)}, checked"):
        for name, indices in plan.graphs:
            columns = [i * dims.levels + k for i in indices for k in range(dims.levels)]
            file, entry = _graph(
                stage,
                name,
                [plan.scenes[i].name for i in indices],
                weights,
                checkpoint,
                folded[:, columns],
                graph_options,
            )
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
        gate = options.gate if options.gate is not None else GATES[entry.precision]
        backend = backends.choose(options.backend, entry.precision)
        share = share_for(entry, graphs, wanted)
        rows += measure(entry, stage / entry.onnx, backend, share, gate, steps, options.threads)
    return rows


def _manifest(
    checkpoint: Checkpoint,
    plan: _Plan,
    options: ExportOptions,
    files: list[FileEntry],
    graphs: list[GraphEntry],
    parity: list[Parity],
    golden: list[Any],
) -> Manifest:
    from gamma_runtime import __version__
    from gamma_runtime.manifest import SCHEMA_VERSION, CheckpointInfo, Manifest, SceneEntry

    levels = [float(v) for v in checkpoint.state["score_level"]]
    info = CheckpointInfo(
        sha256=checkpoint.sha256,
        file=_line(checkpoint.path.name),
        kind=checkpoint.kind,
        prompts=checkpoint.prompts,
        prompts_assumed=checkpoint.prompts_assumed,
        label=_line(checkpoint.label) if checkpoint.label else None,
        licence=_line(checkpoint.licence) if checkpoint.licence else None,
        parameters=checkpoint.parameters,
        score_levels=levels,
        dims=checkpoint.dims.to_json(),
    )
    chosen = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items()}
    del chosen["photos"], chosen["scene_file"]  # paths of the exporting machine; the prompts are recorded
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        tool=f"gamma-edge {__version__}",
        checkpoint=info,
        scenes=[SceneEntry(name=s.name, prompts=list(s.prompts), kind=s.kind) for s in plan.scenes],
        default_scene=plan.scenes[0].name,
        contract=plan.contract.to_json(),
        contract_sha256=plan.contract.sha256(),
        graphs=graphs,
        parity=parity,
        golden=golden,
        files=list({entry.name: entry for entry in files}.values()),
        libraries=_libraries(),
        options=chosen | {"licence": info.licence},
        warnings=_warnings(checkpoint, plan),
    )


def _line(text: str) -> str:
    """As the manifest wants it: one line, no control characters."""
    return printable(text)[:500]


def _libraries() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "onnx", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "opencv-python-headless"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _warnings(checkpoint: Checkpoint, plan: _Plan) -> list[str]:
    warnings = list(checkpoint.warnings)
    if checkpoint.prompts_assumed:
        warnings.append(
            "the checkpoint does not say which prompts it was trained with: sdp assumed (else --prompts plain)"
        )
    for scene in plan.scenes:
        if scene.kind != checkpoint.prompts:
            warnings.append(
                f"scene {scene.name}: {scene.kind} prompts, the checkpoint was trained with {checkpoint.prompts} ones"
            )
    return warnings
