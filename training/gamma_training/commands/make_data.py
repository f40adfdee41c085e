"""gamma-train make-data: a folder of clean photos becomes a labelled set of distorted ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from gamma_runtime.cli import CommonOptions, log, option, out, quoted
from gamma_runtime.errors import EXIT_OK
from gamma_training.data.samples import DataSpec, Labels

__all__ = ["MakeDataOptions", "make_data_command"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeDataOptions(CommonOptions):
    """Flags of gamma-train make-data."""

    photos: Path = option(help="folder of clean photos, searched recursively", positional=True)
    target: Path = option(help="folder of the set; made when it does not exist", positional=True)
    kind: tuple[str, ...] = option((), "a distortion to use; repeat for more; default: all", repeat=True)
    labels: Labels = option(DataSpec.labels, "what the column mos holds: the metric or the level")
    scene: str | None = option(None, "scene of the set; default: natural-quality")
    short_side: int | None = option(None, "larger photos are reduced to this many pixels; default: the scene's size")
    limit: int | None = option(None, "at most so many samples of each split")
    seed: int = option(DataSpec.seed, "of splits and of what is random in distortions")


def make_data_command(options: MakeDataOptions) -> int:
    """Write every photo clean and in each distortion and level, with a table and a contact sheet."""
    from gamma_runtime.steps import Steps
    from gamma_training.data.make import SHEET, make_set
    from gamma_training.data.specs import spec_from_mapping

    mapping = {
        "synthetic": options.photos,
        "kinds": list(options.kind) or None,
        "labels": options.labels,
        "scene": options.scene,
        "short_side": options.short_side,
        "limit": options.limit,
        "seed": options.seed,
    }
    spec = spec_from_mapping(mapping, where="make-data")
    report = make_set(spec, options.target, Steps(options.quiet))
    if options.json:
        out(json.dumps(dataclasses.asdict(report) | {"table": str(report.table)}))
    else:
        _print(report.samples, report.photos, report.labels)
        out(f"{report.table}; {options.target / SHEET} shows the distortions")
    if not options.quiet:
        log(f"next: data: [{{synthetic: {quoted(report.table)}}}] in a configuration of gamma-train")
    return EXIT_OK


def _print(samples: dict[str, int], photos: dict[str, int], labels: dict[str, list[float | None]]) -> None:
    from gamma_runtime.tables import text_table

    levels = ("level 1", "level 2", "level 3", "level 4", "level 5")
    rows = [(kind, *("" if value is None else f"{value:.2f}" for value in values)) for kind, values in labels.items()]
    out(text_table(("mean label", *levels), rows, right=levels))
    out(", ".join(f"{split}: {samples[split]} samples of {photos[split]} photos" for split in samples))
