"""gamma-eval's work from its options to its report: open the data, then the sources, score, compare, write."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gamma_runtime.errors import InputError, OutputError, UsageError
from gamma_runtime.files import write_atomically
from gamma_runtime.steps import Steps
from gamma_training import evaluate_report
from gamma_training.evaluate import PhotoScore, Protocol, Scored, Skipped, contracts_for, score_samples
from gamma_training.evaluate_rows import Comparison, Evaluation, compare, evaluation_of
from gamma_training.judges import CROPS_AT_ONCE, Judge, JudgeOptions, open_judge
from gamma_training.scenes import load_scenes

if TYPE_CHECKING:
    from gamma_training.commands.evaluate import EvaluateOptions
    from gamma_training.data import Dataset, DataSpec, Sample

__all__ = ["Report", "read_specs", "run", "samples_of", "write_report"]

_SPEC = ("set", "table", "synthetic", "root", "range", "lower_better", "scene")  # flags that are keys of a DataSpec


@dataclasses.dataclass(frozen=True)
class Report:
    """One run of gamma-eval. ``sources`` and ``contracts`` are one or, compared, two."""

    sources: tuple[dict[str, Any], ...]
    labels: tuple[str | None, ...]
    protocol: dict[str, Any]
    data: tuple[dict[str, Any], ...]
    scored: Scored
    found: Evaluation
    compared: tuple[Comparison, ...]
    gates: dict[str, float | None]

    @property
    def photos(self) -> tuple[PhotoScore, ...]:
        """The source's scores."""
        return self.scored.by_judge[0]

    @property
    def gap_srcc(self) -> float | None:
        """The largest |difference of SRCC| of a set; None where no set has one."""
        known = [abs(row.difference) for row in self.compared if not math.isnan(row.difference)]
        return max(known, default=None)

    @property
    def faults(self) -> tuple[str, ...]:
        """Which gate is not met where."""
        said = []
        for row in self.compared:
            if math.isnan(row.srcc[0]) is not math.isnan(row.srcc[1]):
                said.append(f"{row.name}: only one of the two has an SRCC")
            if abs(row.difference) > (limit := self.gates["srcc"] or 0.0):
                said.append(f"{row.name}: SRCC differs by {row.difference:+.5f}; allowed is {limit:g}")
            if (most := self.gates["score"]) is not None and row.max_abs > most:
                said.append(f"{row.name}: a score differs by {row.max_abs:.2e}; allowed is {most:g}")
        return tuple(said)

    def notes(self) -> list[str]:
        """What a reader of the tables must know."""
        names = " against ".join(f"{source['file']} ({source['run_by']})" for source in self.sources)
        said = [f"{names}; split {self.protocol['split']}; crops {self.protocol['crops']}, {self.protocol['size']}"]
        said.append("intervals: 95 %, bootstrap over photos; copies of one photo are drawn together")
        for source, label in zip(self.sources, self.labels, strict=True):
            if "note" in source:
                said.append(f"{source['file']}: {source['note']}")
            if label:
                random = "; its scores say nothing about images" if "untrained" in label else ""
                said.append(f"{source['file']}: {label}{random}")
        if self.scored.skipped:
            said.append(f"{len(self.scored.skipped)} photos could not be read and were left out")
        return said

    def text(self) -> str:
        """For a terminal."""
        return evaluate_report.text(self.found, self.compared, self.notes())

    def to_json(self) -> dict[str, Any]:
        """Everything but the scores of single photos."""
        from gamma_runtime import __version__

        return {
            "tool": f"gamma-edge {__version__}",
            "sources": [s | {"label": label} for s, label in zip(self.sources, self.labels, strict=True)],
            "protocol": self.protocol,
            "data": list(self.data),
            "photos": len(self.photos),
            "skipped": [{"path": str(s.sample.path), "reason": s.reason} for s in self.scored.skipped],
            **self.found.to_json(),
            "comparison": [row.to_json() for row in self.compared],
            "gates": self.gates if self.compared else None,
            "passed": not self.faults and self.gap_srcc is not None if self.compared else None,
            "notes": self.notes(),
        }


def run(options: EvaluateOptions, steps: Steps) -> Report:
    """Everything that `gamma-eval` does but writing; that the folder of ``--out`` can be written is checked first.

    Raises:
        GammaError: the data, a source or a photo cannot be used, or the folder cannot be written.
    """
    if options.out is not None:
        check_out(options.out)
    how = Protocol(
        crops=options.crops,
        native=options.native,
        small=options.small,
        batch=options.batch,
        decode_threads=options.decode_threads,
        skip_bad=options.skip_bad,
    )
    specs = read_specs(options)
    samples, missing = samples_of(specs, options.split, options.skip_bad, steps)
    judges: list[Judge] = []
    try:
        for source, chosen in _sources(options):
            with steps.step(f"opening {source.name}"):
                judges.append(open_judge(source, tuple(dict.fromkeys(s.scene for s in samples)), chosen))
        scored = score_samples(judges, samples, how, steps)
        scored = dataclasses.replace(scored, skipped=(*missing, *scored.skipped))
        return _report(judges, how, specs, scored, options, steps)
    finally:
        for judge in judges:
            judge.close()


def _sources(options: EvaluateOptions) -> list[tuple[Path, JudgeOptions]]:
    """The source and what it is compared with, each with the options that are for its kind.

    Raises:
        UsageError: an option for bundles, and no bundle; or one for checkpoints, and none.
    """
    user = tuple(load_scenes(options.scene_file)) if options.scene_file else ()
    wanted = [(options.source, options.precision, options.backend)]
    if options.against is not None:
        precision = options.against_precision or options.precision
        wanted.append((options.against, precision, options.against_backend or options.backend))
    bundles = [source.is_dir() for source, _, _ in wanted]
    given = options.precision, options.against_precision, options.against_backend, options.engine_dir
    if not any(bundles) and (any(given) or options.backend != "auto"):
        raise UsageError("--precision, --backend and --engine-dir are for bundles; PyTorch scores a checkpoint in fp32")
    if all(bundles) and (options.device != "cpu" or options.scene_file or options.prompts):
        raise UsageError(
            "--device, --scene-file and --prompts are for checkpoints; a bundle has a backend, and scenes of its own"
        )
    unsaid = None
    if any(bundles) and not all(bundles):
        unsaid = _prompts_of(wanted[bundles.index(True)][0])
    made = []
    for (source, precision, backend), bundle in zip(wanted, bundles, strict=True):
        if bundle:
            chosen = JudgeOptions(
                precision=precision, backend=backend, engine_dir=options.engine_dir, batch=options.batch
            )
        else:  # the crops of --batch photos are scored at once, as far as that goes
            chosen = JudgeOptions(
                device=options.device,
                user_scenes=user,
                batch=CROPS_AT_ONCE,
                prompts=options.prompts,
                unsaid=unsaid,
            )
        made.append((source, dataclasses.replace(chosen, threads=options.threads)))
    return made


def _prompts_of(folder: Path) -> Literal["sdp", "plain"]:
    """Those that a bundle's checkpoint was trained with."""
    from gamma_runtime.bundle import open_bundle

    return open_bundle(folder).manifest.checkpoint.prompts


def read_specs(options: EvaluateOptions) -> list[DataSpec]:
    """Where the photos come from.

    Raises:
        InputError: a file of ``--data`` is not of that form.
    """
    from gamma_training.data.specs import spec_from_mapping, specs_of_file

    if options.data:
        specs = [spec for path in options.data for spec in specs_of_file(path)]
    else:
        given = {name: getattr(options, name) for name in _SPEC}
        specs = [spec_from_mapping({k: v for k, v in given.items() if v not in (None, False)}, where="flags")]
    if options.limit is not None:
        specs = [dataclasses.replace(spec, limit=options.limit) for spec in specs]
    return specs


def samples_of(
    specs: Sequence[DataSpec], split: str, skip_bad: bool, steps: Steps
) -> tuple[list[Sample], list[Skipped]]:
    """All photos of a split, set by set, and those that are not there; sets of one name get numbers.

    Raises:
        InputError: a source cannot be used, photos are missing and may not be, or no photo is left.
    """
    samples: list[Sample] = []
    missing: list[Skipped] = []
    names: list[str] = []
    with steps.step(f"{len(specs)} sources of photos"):
        for spec in specs:
            dataset, lost = _open(spec, skip_bad, steps)
            names.append(dataset.name)
            suffix = f"-{names.count(dataset.name)}" if names.count(dataset.name) > 1 else ""
            chosen = [sample for sample in dataset.samples if split in ("all", sample.split)]
            samples += [dataclasses.replace(sample, dataset=sample.dataset + suffix) for sample in chosen]
            missing += [Skipped(sample, "not there") for sample in lost if split in ("all", sample.split)]
    if not samples:
        raise InputError(f"{', '.join(names)}: no photo in the split {split}", hint="--split all takes every photo")
    return samples, missing


def _open(spec: DataSpec, skip_bad: bool, steps: Steps) -> tuple[Dataset, list[Sample]]:
    """A source, and its samples whose photos are not there; those are never left out in silence."""
    from gamma_training.data.opening import missing_photos, open_data, open_labels

    if not (skip_bad or spec.skip_missing):
        return open_data(spec, steps), []
    labels = open_labels(spec, steps).samples
    missing = set(missing_photos(labels))
    dataset = open_data(dataclasses.replace(spec, skip_missing=True), steps)
    return dataset, [sample for sample in labels if sample.path in missing]


def _report(
    judges: Sequence[Judge],
    how: Protocol,
    specs: Sequence[DataSpec],
    scored: Scored,
    options: EvaluateOptions,
    steps: Steps,
) -> Report:
    contracts = contracts_for(judges, how)
    fixed = any(judge.fixed for judge in judges)
    reduced = "reduced to the bundle's working size" if fixed else "reduced to the set's or the scene's size"
    protocol = {
        "split": options.split,
        "crops": " and ".join(dict.fromkeys(str(contract.crop) for contract in contracts)),
        "size": "not reduced to a scene's working size" if how.native else reduced,
        "small": contracts[0].small,
        "contracts": [contract.to_json() for contract in contracts],
        "bootstrap": {"draws": options.draws, "seed": options.seed},
    }
    with steps.step(f"statistics, {options.draws} resamples"):
        found = evaluation_of(scored.by_judge[0], options.draws, options.seed)
        both = scored.by_judge if len(judges) > 1 else None
        compared = compare(both[0], both[1], options.draws, options.seed) if both else []
    return Report(
        sources=tuple(judge.facts for judge in judges),
        labels=tuple(judge.label for judge in judges),
        protocol=protocol,
        data=tuple(spec.to_json() for spec in specs),
        scored=scored,
        found=found,
        compared=tuple(compared),
        gates={"srcc": options.gate_srcc, "score": options.gate},
    )


def check_out(folder: Path) -> None:
    """Refuse before the work, not after it; the folder is made.

    Raises:
        EnvironmentFault: matplotlib is missing. OutputError: the folder cannot be made, or not written into.
    """
    from gamma_runtime.cli import require
    from gamma_runtime.files import temporary_beside

    require("matplotlib", "plot")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_beside(folder / "report.json"):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror or error})", hint="another folder for --out"
        ) from error


def write_report(report: Report, folder: Path, steps: Steps) -> None:
    """The scores first, the pictures after them, report.json last: where it lies, the others are of the same run.

    Raises:
        OutputError: a file cannot be written. InputError: a photo for a picture is not there any more.
    """
    from gamma_training.evaluate_figures import scatter_png, worst_png

    title, notes = report.notes()[0], report.notes()
    made: dict[str, Callable[[], bytes]] = {
        "scores.csv": lambda: evaluate_report.scores_csv(report.photos, report.scored.skipped).encode(),
        "table.md": lambda: evaluate_report.markdown(report.found, report.compared, notes).encode(),
        "scatter.png": lambda: scatter_png(report.photos, report.found, title),
        "worst.png": lambda: worst_png(report.photos, f"largest errors; {title}"),
        "report.json": lambda: (json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n").encode(),
    }
    with steps.step(f"writing {folder}"):
        (folder / "report.json").unlink(missing_ok=True)
        for name, make in made.items():
            write_atomically(folder / name, make())
