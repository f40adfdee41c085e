"""gamma-export: a checkpoint becomes a verified bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gamma_export.exporter import DEMO, ExportOptions, ExportReport
from gamma_runtime.cli import CommonOptions, log, option, out, printable, quoted, run_command
from gamma_runtime.errors import EXIT_GATE, EXIT_OK, GammaError, UsageError

if TYPE_CHECKING:
    from gamma_runtime.engines import EngineOptions
    from gamma_runtime.manifest import EngineEntry

__all__ = ["ExportCommand", "export_command", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(ExportOptions, CommonOptions):
    """Flags of gamma-export: where from and to, and everything of `ExportOptions`."""

    checkpoint: Path | None = option(
        None,
        ".pth of the authors, base CLIP state dict, or .safetensors; the packaged demo when left out",
        positional=True,
    )
    out: Path | None = option(None, "the bundle's folder; CHECKPOINT's name with .gamma when left out", alias="-o")
    engine: Literal["none", "tensorrt", "tensorrt-rtx"] = option(
        "none", "also build engines: tensorrt on this device, tensorrt-rtx without a GPU"
    )
    compute_capability: str | None = option(None, "tensorrt-rtx: GPUs to build for, such as 8.6,8.9")


def export_command(options: ExportCommand) -> int:
    """Turn a Gamma checkpoint into a verified bundle of ONNX graphs, and optionally TensorRT engines."""
    from gamma_export.exporter import export
    from gamma_runtime.steps import Steps

    engine_options = _engine_options(options)
    source = options.checkpoint or Path(DEMO)
    target = options.out or Path(f"{source.stem or 'photo'}.gamma")
    library = ExportOptions(**{f.name: getattr(options, f.name) for f in dataclasses.fields(ExportOptions)})
    report = export(source, target, library, steps=Steps(options.quiet))
    for warning in report.warnings:
        log(f"warning: {warning}")
    if not options.json:
        out(_as_text(report))
    try:
        engines, note = _build_engines(options, report, engine_options)
    except GammaError:
        if options.json:  # the bundle was published all the same
            out(json.dumps(_as_json(report) | {"engines": [], "note": "the engine build failed"}))
        raise
    if options.json:
        out(json.dumps(_as_json(report) | {"engines": [e.model_dump(mode="json") for e in engines], "note": note}))
    if not report.published:
        log(f"error: gate not met; nothing was published, {report.bundle} is as it was")
        log("hint: --precision fp32 or bf16, or look at the rows marked FAIL")
        if any(not row.passed for row in report.labels):
            log("hint: few labelled photos say little: see the drop's interval; more photos, or --gate-srcc")
        return EXIT_GATE
    if not options.quiet:
        log(f"next: gamma-run {quoted(target)} PHOTOS")
    return EXIT_OK


def _engine_options(options: ExportCommand) -> EngineOptions | None:
    """What to build after the export, checked before it: no use in minutes of work before "not installed".

    Raises:
        UsageError: options that do not fit. EnvironmentFault: no library, or (``tensorrt``) no GPU.
    """
    from gamma_runtime.engines import EngineOptions, parse_capabilities, require_flavour

    if options.engine == "none":
        if options.compute_capability:
            raise UsageError("--compute-capability needs --engine tensorrt-rtx")
        return None
    capabilities = parse_capabilities(options.compute_capability)
    chosen = EngineOptions(flavour=options.engine, compute_capabilities=capabilities)
    require_flavour(chosen)
    return chosen


def _build_engines(
    options: ExportCommand, report: ExportReport, chosen: EngineOptions | None
) -> tuple[list[EngineEntry], str | None]:
    """Engines of the published bundle; a failure here leaves the bundle as published."""
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.commands.build import build_visibly, engine_table

    if chosen is None or not report.published:
        return [], None
    engines, note = build_visibly(open_bundle(report.bundle), chosen, options.quiet)
    if not options.json:
        out(engine_table(engines, note))
    return engines, note


def _as_json(report: ExportReport) -> dict[str, object]:
    from gamma_export.int8_report import int8_json

    return {
        **dataclasses.asdict(dataclasses.replace(report, int8=None)),
        "bundle": str(report.bundle),
        "int8": int8_json(report.int8) if report.int8 else None,
        "parity": [row.model_dump(mode="json") for row in report.parity],
        "labels": [row.model_dump(mode="json") for row in report.labels],
        "golden": [check.to_dict() for check in report.golden],
    }


def _as_text(report: ExportReport) -> str:
    from gamma_export.int8_report import int8_text
    from gamma_export.labels import label_table
    from gamma_export.parity import table
    from gamma_runtime.selftest import golden_table

    failed = [check for check in report.golden if not check.passed]
    golden = golden_table(failed) if failed else f"golden image: {len(report.golden)} scores, all within the gate"
    label = f", {report.label}" if report.label else ""
    state = "published" if report.published else "NOT published"
    size = f"{report.bytes / 1e6:.1f} MB, {len(report.scenes)} scenes{label}, {report.seconds:.1f} s"
    int8 = f"{int8_text(report.int8, report.published)}\n" if report.int8 else ""
    labels = f"{label_table(report.labels)}\n" if report.labels else ""
    return f"{table(report.parity)}\n{labels}{golden}\n{int8}{printable(str(report.bundle))}: {state} ({size})"


def main() -> int:
    """Entry point of gamma-export."""
    return run_command("gamma-export", export_command, ExportCommand)
