"""gamma-verify: does this bundle still score like its checkpoint?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gamma_runtime.cli import CommonOptions, log, option, out, quoted, run_command
from gamma_runtime.errors import EXIT_GATE, EXIT_OK, UsageError

if TYPE_CHECKING:
    from gamma_export.verify import VerifyReport
    from gamma_runtime.bundle import Bundle

__all__ = ["VerifyOptions", "main", "verify_command"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions(CommonOptions):
    """Flags of gamma-verify."""

    bundle: Path = option(help="the bundle folder, NAME.gamma", positional=True)
    against: Path | None = option(
        None, "the checkpoint it was exported from (or: demo); golden images only when left out"
    )
    backend: tuple[str, ...] = option(
        (), "onnxruntime, openvino, tensorrt, tensorrt-rtx; both of the first two when left out", repeat=True
    )
    engine_dir: Path | None = option(None, "where the engines lie; default: in the bundle")
    photos: Path | None = option(None, "folder of photos; the 16 packaged ones when left out")
    gate: float | None = option(None, "largest allowed |score difference| instead of the precision's own")
    threads: int | None = option(None, "CPU threads of an inference")
    layers: bool = option(False, "instead: stage by stage, the first place where a graph drifts from --against")
    scene: str | None = option(None, "with --layers: this scene's own graph; the joint one when left out")
    precision: Literal["fp32", "fp16", "bf16"] | None = option(None, "with --layers: the graph of this precision")
    attention: Literal["decomposed", "op"] | None = option(None, "with --layers: the graph with this attention")
    crops_count: int | None = option(None, "with --layers: photo crops to compare; 4 when left out")
    plot: Path | None = option(None, "with --layers: write the picture of it, a PNG (needs matplotlib)")

    def __post_init__(self) -> None:
        given = [name for name in _LAYERS_ONLY if getattr(self, name) is not None]
        if given and not self.layers:
            raise UsageError(f"--{given[0].replace('_', '-')} is for --layers")
        if self.layers and self.against is None:
            raise UsageError("--layers needs the checkpoint to compare with", hint="--against CHECKPOINT")


_LAYERS_ONLY = ("scene", "precision", "attention", "crops_count", "plot")


def verify_command(options: VerifyOptions) -> int:
    """Run the golden-image self-test of a bundle (no torch) and, with --against, measure parity with the checkpoint."""
    from gamma_export.verify import verify
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.engines.use import EngineUse
    from gamma_runtime.steps import Steps

    bundle = open_bundle(options.bundle)
    if options.layers:
        return _layers(bundle, options)
    report = verify(
        bundle,
        against=options.against,
        backend_names=_backends(options),
        photos=options.photos,
        gate=options.gate,
        threads=options.threads,
        steps=Steps(options.quiet),
        engine=EngineUse(engine_dir=options.engine_dir),
    )
    out(json.dumps(_as_json(report, bundle.sha256)) if options.json else _as_text(report))
    if bundle.manifest.checkpoint.label:
        log(f"note: {bundle.manifest.checkpoint.label} checkpoint; parity says nothing about how well it judges images")
    if not report.passed:
        log("error: gate not met")
        if options.against:
            named = f"{quoted(options.bundle)} --against {quoted(options.against)}"
            log(f"hint: gamma-verify {named} --layers finds the stage")
        return EXIT_GATE
    if not options.quiet:
        log(f"next: gamma-run {quoted(options.bundle)} PHOTOS")
    return EXIT_OK


def _layers(bundle: Bundle, options: VerifyOptions) -> int:
    """Stage by stage; the exit code says whether the graph is in line."""
    from gamma_export.layers import LayerOptions, layer_table, verify_layers
    from gamma_export.layers.plot import check_plot, plot_layers
    from gamma_runtime.steps import Steps

    names = _backends(options)
    if len(names) > 1:
        raise UsageError(f"--layers looks at one backend, not at {', '.join(names)}")
    if options.plot:
        check_plot(options.plot)
    chosen = LayerOptions(
        scene=options.scene,
        precision=options.precision,
        attention=options.attention,
        backend=names[0] if names else "auto",
        photos=options.photos,
        crops=LayerOptions.crops if options.crops_count is None else options.crops_count,
        gate=options.gate,
        threads=options.threads,
    )
    report = verify_layers(bundle, str(options.against), chosen, Steps(options.quiet))
    if options.plot:
        plot_layers(report, options.plot)
    out(json.dumps({"bundle_sha256": bundle.sha256, **report.to_dict()}) if options.json else layer_table(report))
    if not report.passed:
        log("error: gate not met")
        return EXIT_GATE
    if not options.quiet:
        log(f"next: gamma-run {quoted(options.bundle)} PHOTOS")
    return EXIT_OK


def _backends(options: VerifyOptions) -> tuple[str, ...]:
    return tuple(name for part in options.backend for name in part.split(",") if name)


def _as_json(report: VerifyReport, sha256: str) -> dict[str, object]:
    return {
        "bundle_sha256": sha256,
        "passed": report.passed,
        "golden": [row.to_dict() for row in report.golden],
        "parity": [row.model_dump(mode="json") for row in report.parity],
    }


def _as_text(report: VerifyReport) -> str:
    from gamma_export.parity import table
    from gamma_runtime.selftest import golden_table

    text = golden_table(report.golden)
    return f"{text}\n\n{table(report.parity)}" if report.parity else text


def main() -> int:
    """Entry point of gamma-verify."""
    return run_command("gamma-verify", verify_command, VerifyOptions)
