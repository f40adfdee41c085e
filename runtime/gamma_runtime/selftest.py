"""The boot-time self-test: does this machine still score the bundle's golden images as the checkpoint did? No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gamma_runtime import backends as _backends
from gamma_runtime.bundle import Bundle
from gamma_runtime.errors import GammaError, InputError
from gamma_runtime.scorer import Panel, load_panel

if TYPE_CHECKING:
    from gamma_runtime.crops import Prepared
    from gamma_runtime.engines.use import EngineUse
    from gamma_runtime.manifest import Golden

__all__ = ["GATES", "GoldenCheck", "golden_table", "selftest"]

GATES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 2e-2, "int8": 2e-2, "fp8": 2e-2}  # score units; design.md section 2


@dataclasses.dataclass(frozen=True)
class GoldenCheck:
    """One golden image in one scene on one backend.

    Attributes:
        expected: the PyTorch module's score in fp32, from the manifest.
        value: this machine's score; None when it could not be scored.
        difference: ``|value - expected|`` in score units; None like ``value``.
        tolerance: the largest allowed difference.
        crops_match: the crops are byte for byte those of the export.
        drifted: ``None``, ``decode/crops`` (another decoder or resize: the crops differ) or ``model`` (the same crops
            score differently, or not at all).
        error: why there is no value.
    """

    file: str
    scene: str
    backend: str
    precision: str
    expected: float
    value: float | None
    difference: float | None
    tolerance: float
    crops_match: bool
    drifted: str | None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """The crops are the same and the score is within the tolerance."""
        return self.drifted is None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return dataclasses.asdict(self) | {"passed": self.passed}


def selftest(
    bundle: Bundle,
    backends: Sequence[str] | None = None,
    tolerance: float | None = None,
    precision: str | None = None,
    threads: int | None = None,
    images: int | None = None,
    scenes: Sequence[str] | None = None,
    engine: EngineUse | None = None,
) -> list[GoldenCheck]:
    """Score the bundle's golden images in every scene on every backend.

    Args:
        bundle: an opened bundle.
        backends: their names; every installed one that can run the graphs when None.
        tolerance: score units; the gate of the graph's precision when None.
        precision: of the graphs; the bundle's first when None.
        threads: CPU threads of one inference.
        images: how many of the golden images; all when None.
        scenes: those to score; every scene that a golden image has a score for when None.
        engine: for the backends that run engines.

    Raises:
        InputError: the bundle has no golden images. EnvironmentFault: no backend is installed.
        IntegrityError: a file of the bundle changed.

    Example:
        >>> all(check.passed for check in selftest(open_bundle("photo.gamma")))
        True
    """
    if not bundle.manifest.golden:
        raise InputError(f"{bundle.folder}: no golden images in it", hint="re-run gamma-export")
    kind = precision or bundle.manifest.graphs[0].precision
    names = _backends.usable(kind, backends or ())
    every = tuple(dict.fromkeys(scene for golden in bundle.manifest.golden for scene in golden.scores))
    asked = tuple(scene for scene in every if scenes is None or scene in scenes)
    checks: list[GoldenCheck] = []
    for name in names:
        with load_panel(bundle, asked, name, precision=kind, threads=threads, engine=engine) as panel:
            for golden in bundle.manifest.golden[:images]:
                checks += _check(panel, golden, kind, GATES[kind] if tolerance is None else tolerance)
    return checks


def _check(panel: Panel, golden: Golden, precision: str, tolerance: float) -> list[GoldenCheck]:
    path = panel.bundle.file(golden.file)
    prepared: dict[str, Prepared] = {}
    try:
        prepared = panel.prepare(path)
        (outcome,) = panel.score_prepared([prepared])
    except InputError as error:
        outcome = error
    return [
        _compare(golden, scene, panel.backend_name, precision, tolerance, prepared.get(scene), outcome)
        for scene in golden.scores
        if scene in panel.scenes
    ]


def _compare(
    golden: Golden,
    scene: str,
    backend: str,
    precision: str,
    tolerance: float,
    prepared: Prepared | None,
    outcome: Any,
) -> GoldenCheck:
    expected = golden.scores[scene]
    match = prepared is not None and prepared.sha256() == golden.crops_sha256.get(scene)
    value = None if isinstance(outcome, GammaError) else float(outcome[scene].value)
    difference = None if value is None else abs(value - expected)
    drifted = None
    if not match:
        drifted = "decode/crops"
    elif difference is None or difference > tolerance:
        drifted = "model"
    error = outcome.message if isinstance(outcome, GammaError) else None
    return GoldenCheck(
        golden.file, scene, backend, precision, expected, value, difference, tolerance, match, drifted, error
    )


def golden_table(checks: Sequence[GoldenCheck]) -> str:
    """The checks for people, one row each."""
    from gamma_runtime.tables import text_table

    titles = ("golden image", "scene", "backend", "precision", "expected", "found", "|diff|", "crops", "result")
    rows = [
        (
            check.file,
            check.scene,
            check.backend,
            check.precision,
            f"{check.expected:.5f}",
            "-" if check.value is None else f"{check.value:.5f}",
            "-" if check.difference is None else f"{check.difference:.1e}",
            "same" if check.crops_match else "DIFFER",
            f"pass <= {check.tolerance:g}" if check.passed else f"FAIL in {check.drifted} {check.error or ''}",
        )
        for check in checks
    ]
    return text_table(titles, rows)
