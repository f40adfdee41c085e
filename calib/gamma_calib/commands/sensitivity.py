"""gamma-calib sensitivity: each group of products alone in int8, in score units."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import CommonOptions, log, option, out, quoted
from gamma_runtime.errors import EXIT_OK, InputError, OutputError, UsageError

if TYPE_CHECKING:
    from gamma_calib.images import CalibrationSet
    from gamma_calib.search import Sensitivity
    from gamma_calib.trials import Trials
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.contract import Contract
    from gamma_runtime.manifest import GraphEntry
    from gamma_runtime.steps import Steps

__all__ = ["SensitivityOptions", "sensitivity_command"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SensitivityOptions(CommonOptions):
    """Flags of gamma-calib sensitivity."""

    bundle: Path = option(help="a bundle with an fp32 graph", positional=True)
    calib: tuple[Path, ...] = option((), "photos: folders, images, or .txt/.csv lists of them", repeat=True)
    calib_count: int = option(64, "most photos to calibrate with")
    calib_min: int = option(16, "fewer usable ones are refused")
    calib_method: Literal["max", "percentile", "entropy", "mse"] = option("mse", "how ranges follow from histograms")
    calib_cache: Path | None = option(
        None, "folder of the calibration record and the trials; the bundle's name with .calib when left out"
    )
    crops: int = option(48, "crops of the photos that are scored")
    threads: int | None = option(None, "CPU threads of an inference")


def sensitivity_command(options: SensitivityOptions) -> int:
    """Measure each group of products alone in int8, against the fp32 graph, on crops of the photos."""
    from gamma_calib.calibrate import calibrate, record_key
    from gamma_calib.images import SetOptions, find_images
    from gamma_calib.products import count_macs, find_products
    from gamma_calib.qdq import Recipe
    from gamma_calib.search import sensitivity, with_ranges_of
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.steps import Steps

    if not options.calib or options.crops < 1:
        raise UsageError("--calib PHOTOS is needed" if not options.calib else f"--crops {options.crops} is below 1")
    steps, bundle = Steps(options.quiet), open_bundle(options.bundle)
    entry, contract = _fp32_graph(bundle), bundle.contract()
    cache = options.calib_cache or bundle.folder.with_suffix(".calib")
    sizes = SetOptions(count=options.calib_count, minimum=min(options.calib_min, options.calib_count))
    images = find_images(options.calib, contract, sizes, steps=steps)
    for warning in images.warnings:
        log(f"warning: {warning}")
    try:
        cache.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{cache}: cannot be made ({error.strerror})", hint="--calib-cache FOLDER") from error
    with tempfile.TemporaryDirectory(dir=cache, prefix="trial-") as folder:
        trials = _trials(bundle, entry, Path(folder), images, contract, cache / "trials.json", options, steps)
        graph, model = Path(folder) / entry.onnx, trials.source.model
        digests = {file.name: file.sha256 for file in bundle.manifest.files}
        key = record_key(digests[entry.onnx], digests[entry.weights], contract, images)
        record = calibrate(
            graph, model, images, contract, key, cache / "record",
            methods=(options.calib_method,), threads=options.threads, steps=steps,
        )  # fmt: skip
        empty = Recipe(frozenset(), {})
        rows = sensitivity(trials, find_products(model), with_ranges_of(empty, record, options.calib_method), None)
    rows = sorted(rows, key=lambda row: row.outcome.mean_abs, reverse=True)
    out(json.dumps(_as_json(rows)) if options.json else _as_text(rows, count_macs(model)))
    if not options.quiet:
        log(f"next: gamma-export CHECKPOINT --precision int8 --calib {quoted(options.calib[0])}")
    return EXIT_OK


def _fp32_graph(bundle: Bundle) -> GraphEntry:
    """The widest one."""
    found = [graph for graph in bundle.manifest.graphs if graph.precision == "fp32"]
    if not found:
        raise InputError(f"{bundle.folder}: no fp32 graph in it", hint="gamma-export --precision fp32,fp16 …")
    return max(found, key=lambda graph: len(graph.scenes))


def _trials(
    bundle: Bundle,
    entry: GraphEntry,
    folder: Path,
    images: CalibrationSet,
    contract: Contract,
    file: Path,
    options: SensitivityOptions,
    steps: Steps,
) -> Trials:
    """The graph and its weights under names of their own in a folder that may be written to, and its own scores."""
    import onnx

    from gamma_calib.compare import graph_scores
    from gamma_calib.qdq import Source
    from gamma_calib.trials import Trials
    from gamma_runtime import backends

    graph = bundle.graph_file(entry)
    for path in (graph, bundle.file(entry.weights)):
        _copy(path, folder / path.name)
    inputs = np.stack(list(_inputs(images, contract, options.crops, entry.crops)))
    with backends.create("onnxruntime", folder / graph.name, threads=options.threads) as runner:
        wanted = graph_scores(runner, entry.batch[0], inputs, steps, f"fp32, {len(inputs)} {runner.io.input}")
    source = Source(onnx.load(graph, load_external_data=False), folder, bundle.manifest.checkpoint.moae_scales)
    return Trials(source, inputs, wanted, None, entry.batch[0], file=file, threads=options.threads, steps=steps)


def _copy(source: Path, target: Path) -> None:
    """No link: onnx reads no weights from a file with several names."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})", hint="--calib-cache FOLDER") from error


def _inputs(images: CalibrationSet, contract: Contract, crops: int, each: int) -> Iterator[NDArray[np.uint8]]:
    """Crops of as many photos as possible, or frames; enough for so many crops."""
    from gamma_calib.images import graph_inputs

    per_photo = max(1, crops // len(images.images))
    done = 0
    for pixels in graph_inputs(images, contract):
        taken = [pixels] if contract.crop.frame else list(pixels[:per_photo])
        for crop in taken:
            if done >= crops:
                return
            yield crop
            done += each if contract.crop.frame else 1


def _as_json(rows: list[Sensitivity]) -> list[dict[str, Any]]:
    """The mean is that of all scenes, the rest the worst one's."""
    return [
        {"group": row.group, "macs": row.macs}
        | dataclasses.asdict(row.outcome.worst)
        | {"mean_abs": row.outcome.mean_abs}
        for row in rows
    ]


def _as_text(rows: list[Sensitivity], total: int) -> str:
    from gamma_runtime.tables import text_table

    longest = max(row.outcome.mean_abs for row in rows) or 1.0
    titles = ("alone in int8", "share of MACs", "max |diff|", "mean |diff|", "")
    lines = [
        (
            row.group,
            f"{row.macs / total:.1%}",
            f"{row.outcome.worst.max_abs:.1e}",
            f"{row.outcome.mean_abs:.1e}",
            "█" * round(30 * row.outcome.mean_abs / longest),
        )
        for row in rows
    ]
    return text_table(titles, lines)
