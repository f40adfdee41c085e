"""gamma-train check-data: whether labelled photos are all there and fit to train on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.cli import CommonOptions, log, option, out, printable
from gamma_runtime.errors import EXIT_OK, InputError, UsageError

if TYPE_CHECKING:
    from gamma_training.data.check import SourceReport
    from gamma_training.data.samples import DataSpec

__all__ = ["CheckDataOptions", "check_data_command"]

_FINDINGS = {
    "missing": "photos are missing",
    "unreadable": "photos cannot be read",
    "small": "photos have a side under 224 pixels",
    "outside": "labels lie outside the range",
    "copies": "photos are copies of others",
    "straddling": "photos have a copy in another split, where a test is of memory",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckDataOptions(CommonOptions):
    """Flags of gamma-train check-data."""

    config: Path | None = option(None, "a YAML file with data: …, as for training", positional=True)
    set: str | None = option(None, "one of the paper's twelve, unpacked in --root; list shows all")
    table: Path | None = option(None, "a CSV with columns path and mos; needs --range")
    path_column: str | None = option(None, "what --table calls its column path")
    mos_column: str | None = option(None, "what --table calls its column mos")
    synthetic: Path | None = option(None, "a folder of clean photos, or a table of make-data")
    root: Path | None = option(None, "the photos' folder; of a table, its own folder by default")
    range: tuple[float, float] | None = option(None, "of --table: lowest and highest possible label")
    labels_only: bool = option(False, "do not read the photos, only look whether they are there")
    decode: bool = option(False, "decode every photo: finds damage inside the compressed data")


def check_data_command(options: CheckDataOptions) -> int:
    """Report photos that are missing, damaged, too small or copies, and odd labels; 3 if training would refuse them."""
    if options.set == "list":
        out(_list_of_sets())
        return EXIT_OK
    from gamma_runtime.steps import Steps
    from gamma_training.data.check import check

    steps = Steps(options.quiet)
    reports = [
        check(spec, read=not options.labels_only, decode_all=options.decode, steps=steps) for spec in _specs(options)
    ]
    if options.json:
        out(json.dumps({"sources": [report.to_json() for report in reports]}))
    else:
        for report in reports:
            out(_text(report))
    unusable = [report.name for report in reports if not report.usable]
    if not options.quiet:
        good = "next: gamma-train CONFIG.yaml"
        log(f"not usable as they are: {', '.join(unusable)}" if unusable else good)
    return InputError.exit_code if unusable else EXIT_OK


def _specs(options: CheckDataOptions) -> list[DataSpec]:
    from gamma_training.data.specs import spec_from_mapping, specs_of_file

    sources = (options.set, options.table, options.synthetic)
    if sum(source is not None for source in (options.config, *sources)) != 1:
        raise UsageError(
            "exactly one source is checked",
            hint="CONFIG.yaml, --set NAME --root FOLDER, --table CSV --range 0 100, or --synthetic PATH",
        )
    if options.config is not None:
        return specs_of_file(options.config)
    mapping: dict[str, Any] = dict(zip(("set", "table", "synthetic"), sources, strict=True))
    mapping |= {"root": options.root, "range": options.range}
    mapping |= {"path_column": options.path_column, "mos_column": options.mos_column}
    return [spec_from_mapping(mapping, where="check-data")]


def _list_of_sets() -> str:
    from gamma_runtime.tables import text_table
    from gamma_training.data.registry import SETS

    rows = [
        (name, s.title, str(s.count), f"{s.low:g} to {s.high:g}{' (low is good)' if s.lower_better else ''}", s.labels)
        for name, s in SETS.items()
    ]
    return text_table(("set", "title", "photos", "labels", "label file in --root"), rows, right=("photos",))


def _text(report: SourceReport) -> str:
    if report.error is not None:
        return f"{report.name}: {report.error}"
    splits = ", ".join(f"{count} {split}" for split, count in report.samples.items())
    labels = report.labels
    lines = [f"{report.name}: {splits}; {report.contents} different photos"]
    if report.complete not in (None, sum(report.samples.values())):
        lines.append(f"  labels of {sum(report.samples.values())} photos; the whole set has {report.complete}")
    if "lowest" in labels:
        found = f"{labels['lowest']:g} to {labels['highest']:g}"
        lines.append(f"  labels from {found}; the range is {labels['low']:g} to {labels['high']:g}")
    for field, words in _FINDINGS.items():
        finding = getattr(report, field)
        if finding.count:
            lines.append(f"  {finding.count} {words}:")
            lines += [f"    {printable(one)}" for one in finding.first]
            if finding.count > len(finding.first):
                lines.append("    …")
    lines.append("  usable" if report.usable else "  NOT usable as it is")
    return "\n".join(lines)
