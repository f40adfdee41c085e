"""gamma-export: a checkpoint becomes a verified bundle."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Literal

from gamma_export.export import DEMO, ExportOptions, ExportReport
from gamma_runtime.cli import CommonOptions, log, option, out, run_command
from gamma_runtime.errors import EXIT_GATE, EXIT_OK, UsageError

__all__ = ["ExportCommand", "export_command", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(ExportOptions, CommonOptions):
    """Flags of gamma-export: where from and to, and everything of `ExportOptions`."""

    checkpoint: Path | None = option(
        None,
        ".pth of the authors, base CLIP state dict, or .safetensors; the untrained demo when left out",
        positional=True,
    )
    out: Path | None = option(None, "the bundle's folder; CHECKPOINT's name with .gamma when left out", alias="-o")
    engine: Literal["none", "tensorrt", "tensorrt-rtx"] = option(
        "none", "also build engines: tensorrt on this device, tensorrt-rtx without a GPU"
    )
    compute_capability: str | None = option(None, "tensorrt-rtx: GPUs to build for, such as 8.6,8.9")


def export_command(options: ExportCommand) -> int:
    """Turn a Gamma checkpoint into a verified bundle of ONNX graphs, and optionally TensorRT engines."""
    from gamma_export.export import export
    from gamma_export.steps import Steps

    _check_engine(options)
    source = options.checkpoint or Path(DEMO)
    target = options.out or Path(source.name).with_suffix(".gamma")
    library = ExportOptions(**{f.name: getattr(options, f.name) for f in dataclasses.fields(ExportOptions)})
    steps = Steps(options.quiet)
    report = export(source, target, library, steps=steps)
    out(json.dumps(_as_json(report)) if options.json else _as_text(report))
    for warning in report.warnings:
        log(f"warning: {warning}")
    if not report.published:
        log(f"error: gate not met; nothing was published, {report.bundle} is as it was")
        log("hint: --precision fp32 or bf16, or look at the rows marked FAIL")
        return EXIT_GATE
    if options.engine != "none":
        _build_engines(options, report.bundle)
    log(f"next: gamma-run {shlex.quote(str(target))} PHOTOS")
    return EXIT_OK


def _check_engine(options: ExportCommand) -> None:
    """Fail before the export, not after it, when the engine cannot be built here."""
    from gamma_runtime.engines import EngineOptions, parse_capabilities, require_flavour

    if options.engine == "none":
        if options.compute_capability:
            raise UsageError("--compute-capability needs --engine tensorrt-rtx")
        return
    capabilities = parse_capabilities(options.compute_capability)
    require_flavour(EngineOptions(flavour=options.engine, compute_capabilities=capabilities))


def _build_engines(options: ExportCommand, bundle: Path) -> None:
    from gamma_runtime.commands.build import BuildOptions, build

    if options.engine == "none":
        return
    build(
        BuildOptions(
            bundle=bundle,
            engine=options.engine,
            compute_capability=options.compute_capability,
            json=options.json,
            quiet=options.quiet,
        )
    )


def _as_json(report: ExportReport) -> dict[str, object]:
    return {
        **dataclasses.asdict(report),
        "bundle": str(report.bundle),
        "parity": [row.model_dump(mode="json") for row in report.parity],
    }


def _as_text(report: ExportReport) -> str:
    from gamma_export.parity import table

    label = f", {report.label}" if report.label else ""
    state = "published" if report.published else "NOT published"
    size = f"{report.bytes / 1e6:.1f} MB, {len(report.scenes)} scenes{label}, {report.seconds:.1f} s"
    return f"{table(report.parity)}\n{report.bundle}: {state} ({size})"


def main() -> int:
    """Entry point of gamma-export."""
    return run_command("gamma-export", export_command, ExportCommand)
