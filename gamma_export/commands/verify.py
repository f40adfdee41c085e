"""gamma-verify: does this bundle still score like its checkpoint?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.cli import CommonOptions, log, option, out, quoted, run_command
from gamma_runtime.errors import EXIT_GATE, EXIT_OK

if TYPE_CHECKING:
    from gamma_export.verify import VerifyReport

__all__ = ["VerifyOptions", "main", "verify_command"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions(CommonOptions):
    """Flags of gamma-verify."""

    bundle: Path = option(help="the bundle folder, NAME.gamma", positional=True)
    against: Path | None = option(
        None, "the checkpoint it was exported from (or: demo); golden images only when left out"
    )
    backend: tuple[str, ...] = option((), "onnxruntime, openvino; all that are installed when left out", repeat=True)
    photos: Path | None = option(None, "folder of photos; the 16 packaged ones when left out")
    gate: float | None = option(None, "largest allowed |score difference| instead of the precision's own")
    threads: int | None = option(None, "CPU threads of an inference")


def verify_command(options: VerifyOptions) -> int:
    """Run the golden-image self-test of a bundle (no torch) and, with --against, measure parity with the checkpoint."""
    from gamma_export.steps import Steps
    from gamma_export.verify import verify
    from gamma_runtime.bundle import open_bundle

    bundle = open_bundle(options.bundle)
    report = verify(
        bundle,
        against=options.against,
        backend_names=tuple(n for part in options.backend for n in part.split(",") if n),
        photos=options.photos,
        gate=options.gate,
        threads=options.threads,
        steps=Steps(options.quiet),
    )
    out(json.dumps(_as_json(report, bundle.sha256)) if options.json else _as_text(report))
    if bundle.manifest.checkpoint.label:
        log(f"note: {bundle.manifest.checkpoint.label} checkpoint; parity says nothing about how well it judges images")
    if not report.passed:
        log("error: gate not met")
        log("hint: the rows marked FAIL say which stage drifted")
        return EXIT_GATE
    if not options.quiet:
        log(f"next: gamma-run {quoted(options.bundle)} PHOTOS")
    return EXIT_OK


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
