"""gamma-eval: how well does a checkpoint or a bundle judge labelled photos?"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gamma_runtime.cli import CommonOptions, log, option, out, quoted, run_command
from gamma_runtime.errors import EXIT_GATE, EXIT_INVALID_MEASUREMENT, EXIT_OK, UsageError

if TYPE_CHECKING:
    from gamma_training.evaluate_run import Report

__all__ = ["EvaluateOptions", "evaluate_command", "main"]


Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(CommonOptions):
    """Flags of gamma-eval."""

    source: Path = option(help="checkpoint (.pth, .safetensors) or bundle (NAME.gamma)", positional=True)
    data: tuple[Path, ...] = option((), "YAML with a list `data:` of sources of labelled photos", repeat=True)
    table: Path | None = option(None, "instead: a CSV with columns path, mos and optionally split and scene")
    set: str | None = option(None, "instead: one of the paper's sets, such as koniq10k")
    synthetic: Path | None = option(None, "instead: a folder of clean photos, or a table of gamma-train make-data")
    root: Path | None = option(None, "of --table or --set: folder of the photos")
    range: tuple[float, float] | None = option(None, "of --table: lowest and highest possible label")
    lower_better: bool = option(False, "of --table: a low label means a good photo")
    scene: str | None = option(None, "of --table, --set or --synthetic: the photos' scene")
    scene_file: Path | None = option(None, "YAML of your own scenes, for a checkpoint")
    prompts: Literal["sdp", "plain"] | None = option(
        None, "that a checkpoint was trained with, where it does not say (the authors' files): --against's, or sdp"
    )
    split: Literal["test", "val", "train", "all"] = option("test", "which photos")
    limit: int | None = option(None, "at most so many photos of each set and split, spread evenly")
    crops: str | None = option(None, "crop policy; the authors' is random10:seed0; default: the bundle's own, or five")
    native: bool = option(False, "no reduction to the scene's working size; a set's own resize rule holds")
    small: Literal["refuse", "resize", "pad"] | None = option(None, "photos under 224 pixels; default: the contract's")
    skip_bad: bool = option(False, "leave out photos that cannot be read, and list them")
    against: Path | None = option(None, "compare with this checkpoint or bundle on the same photos")
    gate_srcc: float = option(0.001, "with --against: largest allowed |difference of SRCC|, of every set")
    gate: float | None = option(None, "with --against: largest allowed |score difference|")
    precision: Precision | None = option(None, "of a bundle; its first one when left out")
    backend: str = option("auto", "of a bundle: auto, onnxruntime, openvino, tensorrt or tensorrt-rtx")
    against_precision: Precision | None = option(None, "of --against; --precision if left out")
    against_backend: str | None = option(None, "of --against; --backend when left out")
    engine_dir: Path | None = option(None, "where the engines lie; default: in the bundle")
    device: str = option("cpu", "of a checkpoint: cpu, cuda or cuda:N")
    batch: int = option(8, "photos scored together")
    threads: int | None = option(None, "CPU threads of one inference; default: one a physical core")
    decode_threads: int | None = option(None, "threads that prepare the next photos, 0 for none; default: at most 4")
    draws: int = option(1000, "bootstrap resamples")
    seed: int = option(0, "of the resamples")
    out: Path | None = option(None, "folder for report.json, table.md, scores.csv, scatter.png and worst.png")

    def __post_init__(self) -> None:
        sources = [name for name in ("table", "set", "synthetic") if getattr(self, name) is not None]
        if len(sources) + bool(self.data) != 1:
            raise UsageError("needed is exactly one of --data, --table, --set and --synthetic")
        if self.data and (single := [name for name in _SINGLE if getattr(self, name) not in (None, False)]):
            raise UsageError(f"--{single[0].replace('_', '-')} belongs into the file of --data")
        if self.against is None and (of := [n for n in _AGAINST if getattr(self, n) is not None]):
            raise UsageError(f"--{of[0].replace('_', '-')} is for --against")
        if self.draws < 1 or (self.limit is not None and self.limit < 1):
            raise UsageError("--draws and --limit are at least 1")
        if not self.gate_srcc >= 0 or (self.gate is not None and not self.gate >= 0):
            raise UsageError("--gate-srcc and --gate are not negative")


_SINGLE = ("root", "range", "lower_better", "scene")
_AGAINST = ("gate", "against_precision", "against_backend")


def evaluate_command(options: EvaluateOptions) -> int:
    """Score labelled photos with a checkpoint or a bundle: correlations with the labels; --against compares two."""
    from gamma_runtime.steps import Steps
    from gamma_training.evaluate_run import run, write_report

    steps = Steps(options.quiet)
    report = run(options, steps)
    # The result is shown before it is written: a full disk does not take hours of scoring along.
    out(json.dumps(report.to_json(), allow_nan=False) if options.json else report.text())
    if options.out is not None:
        write_report(report, options.out, steps)
    return _verdict(report, options)


def _verdict(report: Report, options: EvaluateOptions) -> int:
    if report.compared:
        if report.gap_srcc is None:
            log("error: no set has an SRCC, so nothing was compared")
            return EXIT_INVALID_MEASUREMENT
        if report.faults:
            for fault in report.faults:
                log(f"error: gate not met: {fault}")
            return EXIT_GATE
    if not options.quiet:
        log(f"next: {_next(options)}")
    return EXIT_OK


def _next(options: EvaluateOptions) -> str:
    if options.source.is_dir():
        return f"gamma-run {quoted(options.source)} PHOTOS"
    return f"gamma-export {quoted(options.source)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``gamma-eval``."""
    return run_command("gamma-eval", evaluate_command, EvaluateOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
