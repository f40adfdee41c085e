"""Does a bundle rank labelled photos as its checkpoint does? Correlations with people's opinions, before and after.

Whole photos go through the bundle's own contract and, beside it, through PyTorch in fp32 on the same crops.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_runtime.errors import UsageError
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    from gamma_export.plan import ExportOptions, Plan
    from gamma_runtime.manifest import LabelCheck, Manifest
    from gamma_training.data import Sample
    from gamma_training.evaluate_rows import Comparison
    from gamma_training.judges import Judge
    from gamma_training.model import Gamma

__all__ = ["GATE_SRCC", "check_labels", "label_table", "labelled_photos"]

GATE_SRCC = {"int8": 0.003, "fp8": 0.003}  # of the other precisions `_GATE`
_GATE = 0.001  # gamma-eval's


def labelled_photos(options: ExportOptions, plan: Plan, steps: Steps) -> tuple[Sample, ...]:
    """The test split of ``--labels``; none without it.

    Raises:
        InputError: the file or its photos cannot be used. UsageError: a graph that takes frames.
    """
    if options.labels is None:
        return ()
    from gamma_training.data.specs import specs_of_file
    from gamma_training.evaluate_run import samples_of

    if plan.contract.crop.frame:
        raise UsageError("--labels are of photos; a graph that takes frames has none")
    return tuple(samples_of(specs_of_file(options.labels), "test", False, steps)[0])


def check_labels(
    stage: Path,
    manifest: Manifest,
    model: Gamma,
    plan: Plan,
    samples: Sequence[Sample],
    options: ExportOptions,
    steps: Steps,
) -> list[LabelCheck]:
    """A row for each set of labelled photos and each precision of the staged bundle.

    Raises:
        GammaError: a photo cannot be scored, or its scene is not in the bundle.
    """
    from gamma_runtime import backends
    from gamma_runtime.bundle import Bundle
    from gamma_training.evaluate import Protocol, score_samples
    from gamma_training.evaluate_rows import compare
    from gamma_training.judges import BundleJudge, JudgeOptions, TorchJudge

    if not samples:
        return []
    scenes = tuple(dict.fromkeys(sample.scene for sample in samples))
    staged = Bundle(stage, manifest, "")
    precisions = tuple(dict.fromkeys(graph.precision for graph in manifest.graphs))
    runs = {precision: backends.choose(options.backend, precision) for precision in precisions}
    with contextlib.ExitStack() as stack:
        judges: list[Judge] = [TorchJudge(model, plan.scenes, JudgeOptions(threads=options.threads))]
        for precision, backend in runs.items():
            chosen = JudgeOptions(precision=precision, backend=backend, threads=options.threads)
            judges.append(stack.enter_context(BundleJudge(staged, scenes, chosen)))
        before, *after = score_samples(judges, samples, Protocol(), steps).by_judge
    rows: list[LabelCheck] = []
    for (precision, backend), scores in zip(runs.items(), after, strict=True):
        limit = options.gate_srcc or GATE_SRCC.get(precision, _GATE)
        rows += [_row(found, precision, backend, limit) for found in compare(before, scores)]
    return rows


def _row(found: Comparison, precision: str, backend: str, limit: float) -> LabelCheck:
    """``found`` is of PyTorch minus the bundle: a positive difference is a drop."""
    from gamma_runtime.manifest import LabelCheck

    exists = not math.isnan(found.difference)
    return LabelCheck(
        name=found.name,
        photos=found.photos,
        precision=precision,  # type: ignore[arg-type]
        backend=backend,
        srcc=found.srcc[1] if exists else None,
        srcc_drop=found.difference if exists else None,
        srcc_interval=found.interval if exists else None,
        plcc=found.plcc[1] if exists else None,
        plcc_drop=found.plcc_difference if exists else None,
        plcc_interval=found.plcc_interval if exists else None,
        gate_srcc=limit,
        passed=exists and found.difference <= limit,
    )


def label_table(rows: Sequence[LabelCheck]) -> str:
    """For people: a drop is PyTorch's correlation minus the bundle's, with the 95 % interval of a paired bootstrap."""
    from gamma_runtime.tables import text_table
    from gamma_training.evaluate_report import signed

    def drop(value: float | None, ends: tuple[float, float] | None) -> str:
        return "-" if value is None or ends is None else signed(value, ends)

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    titles = (
        "labelled photos",
        "photos",
        "precision",
        "backend",
        "SRCC",
        "drop of SRCC",
        "PLCC",
        "drop of PLCC",
        "gate",
    )
    cells = [
        (
            row.name,
            str(row.photos),
            row.precision,
            row.backend,
            number(row.srcc),
            drop(row.srcc_drop, row.srcc_interval),
            number(row.plcc),
            drop(row.plcc_drop, row.plcc_interval),
            f"{'pass' if row.passed else 'FAIL'} <= {row.gate_srcc:g}",
        )
        for row in rows
    ]
    return text_table(titles, cells, right=("photos",))
