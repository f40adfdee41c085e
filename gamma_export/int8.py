"""The int8 or fp8 graphs of a bundle: calibrated, searched for what may stay in 8 bits, and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.errors import InputError
from gamma_runtime.files import hash_file

if TYPE_CHECKING:
    import onnx

    from gamma_calib.external import WeightsFile
    from gamma_calib.images import CalibrationSet
    from gamma_calib.products import Attention, Product
    from gamma_calib.qdq import Recipe, Source
    from gamma_calib.record import Record as CalibrationRecord
    from gamma_calib.search import Search
    from gamma_calib.speed import Speed
    from gamma_calib.trials import Trials
    from gamma_export.parity import Reference
    from gamma_export.plan import ExportOptions, Plan
    from gamma_runtime.manifest import FileEntry, GraphEntry, Quantisation
    from gamma_runtime.steps import Steps
    from gamma_training.checkpoint import Checkpoint

__all__ = ["Int8Graphs", "Job", "find_calibration_images", "make_int8", "moae_scales"]

Made = tuple[list["FileEntry"], list["GraphEntry"]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is exported, and how.

    Attributes:
        stage: where the bundle is made.
        checkpoint: gives the blocks' scales.
        plan: of the export.
        options: of the export.
        kind: ``int8`` or ``fp8``.
        images: to calibrate with; None replays ``options.recipe``.
        steps: progress.
    """

    stage: Path
    checkpoint: Checkpoint
    plan: Plan
    options: ExportOptions
    kind: str
    images: CalibrationSet | None
    steps: Steps

    @property
    def cache(self) -> Path:
        """Folder of the record and the trials."""
        return Path(str(self.options.calib_cache))


@dataclasses.dataclass(frozen=True)
class Int8Graphs:
    """What the manifest gets, and what the user should know."""

    files: list[FileEntry]
    graphs: list[GraphEntry]
    quantisation: Quantisation
    warnings: tuple[str, ...]
    speed: tuple[Speed, ...]
    bytes: dict[str, int]  # of the weights, by precision


def moae_scales(checkpoint: Checkpoint) -> dict[str, float]:
    """The scale of each MoAE block of the vision tower, by the graph's name for the block."""
    name = "clip_model.visual.transformer.resblocks.{}.mlp.scale"
    tower = checkpoint.dims.vision
    return {f"blocks.{i}": float(checkpoint.state[name.format(i)]) for i in range(tower.first_moae, tower.layers)}


def find_calibration_images(
    options: ExportOptions, plan: Plan, judged: Sequence[Path], steps: Steps
) -> CalibrationSet | None:
    """The photos of ``--calib``, without ``judged``, which the result is judged on; None where a recipe is replayed.

    Raises:
        InputError: too few, or too many that cannot be used.
    """
    from gamma_calib.images import SetOptions, find_images

    if options.recipe is not None:
        return None
    avoid = {hash_file(photo) for photo in judged}
    sizes = SetOptions(count=options.calib_count, minimum=min(options.calib_min, options.calib_count))
    return find_images(options.calib, plan.contract, sizes, avoid=avoid, steps=steps)


def make_int8(job: Job, base: Callable[[str], tuple[Path, Made]], wanted: Reference) -> Int8Graphs:
    """Calibrate, search, quantise, and write the graphs.

    Args:
        job: what is exported.
        base: writes the graphs of a precision into a folder of its own.
        wanted: the checkpoint's scores of the verification photos.

    Raises:
        GammaError: a photo, a recipe or a graph cannot be used.
    """
    import onnx

    from gamma_calib.qdq import Source

    folder, (files, plain) = base("fp32")
    widest = max(plain, key=lambda entry: len(entry.scenes))
    model = onnx.load(folder / widest.onnx, load_external_data=False)
    source = Source(model, folder, moae_scales(job.checkpoint))
    half_folder, (half_files, half) = base("fp16")
    pattern = onnx.load(half_folder / half[0].onnx, load_external_data=False)
    if job.images is None:
        recipe, quantisation = _replayed(job, model)
    else:
        record = _record(job, source, widest, {file.name: file.sha256 for file in files}, job.images)
        trials = _trials(job, source, pattern, widest, wanted)
        recipe, quantisation = _searched(job, trials, record, job.images)
    bases = [(half_folder, half, "fp16")]
    if job.kind == "int8":
        bases.insert(0, (folder, plain, "fp32"))
    with job.steps.step(f"{job.kind} weights and graphs, {sum(len(base[1]) for base in bases)}, checked"):
        made = _write(job.stage, source, pattern, recipe, quantisation, bases)
    timed = job.kind == "int8" and not job.options.skip_speed  # no CPU computes in fp8
    speed = _speed(job, made[1], folder / widest.onnx, half_folder / half[0].onnx) if timed else []
    sizes = {job.kind: made[0][0].size, "fp32": files[0].size, "fp16": half_files[0].size}  # weights come first
    return Int8Graphs(*made, quantisation, job.images.warnings if job.images else (), tuple(speed), sizes)


def _record(
    job: Job, source: Source, entry: GraphEntry, digests: dict[str, str], images: CalibrationSet
) -> CalibrationRecord:
    """What the activations were on the photos, and their ranges."""
    from gamma_calib.calibrate import calibrate, record_key

    job.cache.mkdir(exist_ok=True)
    key = record_key(digests[entry.onnx], digests[entry.weights], job.plan.contract, images, job.kind)
    return calibrate(
        source.folder / entry.onnx,
        source.model,
        images,
        job.plan.contract,
        key,
        job.cache / "record",
        kind=job.kind,
        methods=_methods(job),
        threads=job.options.threads,
        steps=job.steps,
    )


def _methods(job: Job) -> tuple[str, ...]:
    """Calibrators to choose from; fp8 has digits to spare at the top, and nothing to gain from clipping."""
    from gamma_calib.ranges import METHODS

    if job.options.calib_method == "auto":
        return METHODS if job.kind == "int8" else ("max",)
    return (job.options.calib_method,)


def _trials(job: Job, source: Source, half: onnx.ModelProto, entry: GraphEntry, wanted: Reference) -> Trials:
    """Recipes are tried on the verification photos, against PyTorch, on every backend that could prove parity."""
    import numpy as np

    from gamma_calib.trials import Trials
    from gamma_runtime import backends

    return Trials(
        source,
        wanted.subjects.inputs,
        np.stack([wanted.column(scene) for scene in entry.scenes], axis=1),
        half,
        entry.batch[0],
        tuple(backends.usable(job.kind, (job.options.backend,))),
        job.cache / "trials.json",
        job.options.threads,
        ("cpu", "tensorrt") if job.kind == "int8" else ("tensorrt",),
        job.steps,
    )


def _searched(
    job: Job, trials: Trials, record: CalibrationRecord, images: CalibrationSet
) -> tuple[Recipe, Quantisation]:
    """The best calibrator, and the groups that hold the gate with it."""
    from gamma_calib.products import count_macs, find_attention, find_products
    from gamma_calib.qdq import Recipe
    from gamma_calib.search import best_method, search, with_ranges_of
    from gamma_calib.smooth import smoothing
    from gamma_export.parity import gate_for
    from gamma_runtime.selftest import GATES

    model = trials.source.model
    products = [product for product in find_products(model) if product.by_default]
    groups: list[Product | Attention] = [*products]
    fixed: dict[str, float] = {}
    if job.kind == "fp8":
        groups += find_attention(model)
        fixed = {f"{product.group.partition('/')[0]}/attn/softmax": 1.0 for product in products}  # its largest value
    alpha = job.options.smooth
    smooth = {} if alpha is None else smoothing(trials.source, record, alpha)
    int4 = _int4(job, groups)
    base = Recipe(frozenset(product.group for product in products), fixed, job.kind, smooth, int4)
    methods: dict[str, float] = {}
    (method, *others) = _methods(job)
    if others:
        method, methods = best_method(trials, record, base)
    gate = gate_for(job.kind, job.options.gate or GATES[job.kind])
    found = search(trials, groups, with_ranges_of(base, record, method), gate, count_macs(model))
    return found.recipe, _quantisation(found, groups, method, methods, images)


def _int4(job: Job, groups: Sequence[Product | Attention]) -> frozenset[str]:
    """The adaptive experts' groups, where only their weights are to be rounded."""
    return frozenset(g.group for g in groups if "/moae/adaptive_" in g.group and job.options.experts == "int4")


def _speed(job: Job, graphs: list[GraphEntry], fp32: Path, fp16: Path) -> list[Speed]:
    """The widest graph in int8, fp32 and fp16, on the backends that prove parity here."""
    from gamma_calib.speed import measure_speed
    from gamma_runtime import backends

    entry = max((graph for graph in graphs if graph.target == "cpu"), key=lambda graph: len(graph.scenes))
    paths = {"int8": job.stage / entry.onnx, "fp32": fp32, "fp16": fp16}
    chosen = tuple(backends.usable("int8", (job.options.backend,)))
    return measure_speed(paths, entry.batch[0], chosen, threads=job.options.threads, steps=job.steps)


def _quantisation(
    found: Search,
    products: Sequence[Product | Attention],
    method: str,
    methods: dict[str, float],
    images: CalibrationSet,
) -> Quantisation:
    from gamma_runtime.manifest import Quantisation, Trial

    last = found.points[-1]
    earlier: list[tuple[str, ...]] = [(), *(point.kept for point in found.points[:-1])]
    return Quantisation(
        kind=found.recipe.kind,  # type: ignore[arg-type]
        groups=[product.group for product in products if product.group in found.recipe.groups],
        int4=sorted(found.recipe.int4 & found.recipe.groups),
        kept=list(last.kept),
        ranges=dict(found.recipe.ranges),
        smooth={norm: list(factors) for norm, factors in found.recipe.smooth.items()},
        method=method,
        methods=methods,
        images=len(images.images),
        images_sha256=images.sha256,
        int8_share=last.int8_share,
        trials=[
            Trial(
                kept=list(point.kept),
                kept_last=next((group for group in point.kept if group not in before), None),
                int8_share=point.int8_share,
                max_abs=point.outcome.worst.max_abs,
                mean_abs=point.outcome.mean_abs,
                srcc=min((s.srcc for s in point.outcome.scenes if s.srcc is not None), default=None),
                milliseconds=point.outcome.milliseconds,
                passed=point.passed,
            )
            for before, point in zip(earlier, found.points, strict=True)
        ],
        sensitivity={row.group: row.outcome.mean_abs for row in found.alone},
    )


def _replayed(job: Job, model: onnx.ModelProto) -> tuple[Recipe, Quantisation]:
    """The recipe of another bundle, or of its manifest; nothing is measured. ``--experts int4`` changes it."""
    from gamma_calib.products import count_macs, find_attention, find_products
    from gamma_calib.qdq import Recipe
    from gamma_runtime.bundle import open_bundle

    path = Path(str(job.options.recipe))
    quantisation = open_bundle(path).manifest.quantisation
    if quantisation is None or quantisation.kind != job.kind:
        raise InputError(
            f"{path}: no {job.kind} recipe in it", hint=f"--recipe takes a bundle that was exported with {job.kind}"
        )
    smooth = {norm: tuple(factors) for norm, factors in quantisation.smooth.items()}
    products = find_products(model)
    int4 = frozenset(quantisation.int4) | (_int4(job, products) & frozenset(quantisation.groups))
    recipe = Recipe(frozenset(quantisation.groups), quantisation.ranges, quantisation.kind, smooth, int4)
    known = {product.group for product in products} | {inside.group for inside in find_attention(model)}
    if strange := sorted(recipe.groups - known):
        raise InputError(f"{path}: its recipe is for another model (it has no {', '.join(strange[:3])})")
    if added := int4 - frozenset(quantisation.int4):
        less = sum(product.macs for product in products if product.group in added) / count_macs(model)
        share = max(0.0, quantisation.int8_share - less)
        quantisation = quantisation.model_copy(update={"int4": sorted(int4), "int8_share": share})
    return recipe, quantisation


def _write(
    stage: Path,
    source: Source,
    pattern: onnx.ModelProto,
    recipe: Recipe,
    quantisation: Quantisation,
    bases: Sequence[tuple[Path, list[GraphEntry], str]],
) -> Made:
    """One weights file, and each graph of both bases with its Q/DQ pairs."""
    from gamma_calib.external import write_external
    from gamma_calib.qdq import packed
    from gamma_runtime.manifest import FileEntry

    weights = write_external(stage, f"weights-{recipe.kind}", packed(pattern, source, recipe))
    files = [FileEntry(name=weights.name, size=weights.size, sha256=weights.sha256)]
    graphs = []
    for folder, entries, half_type in bases:
        for entry in entries:
            file, made = _graph(stage, folder, entry, source, recipe, weights, half_type)
            files.append(file)
            graphs.append(made.model_copy(update={"int8_share": quantisation.int8_share}))
    return files, graphs


def _graph(
    stage: Path, folder: Path, entry: GraphEntry, source: Source, recipe: Recipe, weights: WeightsFile, half: str
) -> tuple[FileEntry, GraphEntry]:
    import onnx

    from gamma_calib.lint import check_qdq
    from gamma_calib.qdq import place
    from gamma_export.publish import add_file

    target = "any" if recipe.kind == "fp8" else "cpu" if half == "fp32" else "tensorrt"
    model = place(onnx.load(folder / entry.onnx, load_external_data=False), source, recipe, weights, half)
    content: Any = model.SerializeToString(deterministic=True)
    stem = entry.name if target == "any" else f"{entry.name}-{target}"
    file = add_file(stage, f"{stem}-{recipe.kind}", ".onnx", content)
    check_qdq(stage / file.name, recipe, half)
    update = {"precision": recipe.kind, "target": target, "onnx": file.name, "weights": weights.name}
    update["opset"] = model.opset_import[0].version
    return file, entry.model_copy(update=update)
