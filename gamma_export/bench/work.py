"""What ``--profile`` adds to a run: the work of each call, the machine's peak beside it, and time by the model's parts.

The contender's own process counts the graph and runs its profiler, behind everything that is timed; the parent measures
the peak right before and right after that process, because clocks and other load change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from gamma_export.bench.peak import Peak, measure_peak
from gamma_export.bench.result import Result, Row
from gamma_runtime.errors import EnvironmentFault, GammaError

if TYPE_CHECKING:
    from gamma_export.bench.spec import Spec
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.manifest import GraphEntry

__all__ = ["PROFILE", "ROOF", "best_peak", "peak_words", "peaks", "profile_lines", "roof_lines", "roofs", "work_of"]

ROOF = ("backend", "batch", "GMAC", "MB at least", "ms", "GMAC/s", "MAC/byte", "bound", "of the roof")
PROFILE = ("backend", "part", "ms of a call", "share", "GMAC", "of the peak")
_PROFILED = ("onnxruntime", "openvino")


def work_of(spec: Spec, bundle: Bundle, graph: GraphEntry, batches: Sequence[int]) -> tuple[dict[str, Any], list[str]]:
    """Count the graph that ran, for every batch, and profile it with the first one.

    Returns:
        ``calls`` (`Tally` as JSON, one a batch) and ``profile`` (of the mean call, milliseconds by part; None where the
        backend has no profiler that is read here); and notes of what was not possible.
    """
    from gamma_export.bench.profile_run import profile_graph
    from gamma_export.bench.roofline import count_file

    notes: list[str] = []
    found: dict[str, Any] = {"calls": [], "profile": None}
    try:
        file = bundle.graph_file(graph)
        found["calls"] = [dataclasses.asdict(count_file(file, batch).tally()) for batch in batches]
        if spec.backend in _PROFILED:
            backend = cast(Literal["onnxruntime", "openvino"], spec.backend)
            made = profile_graph(file, backend, batch=batches[0], threads=spec.threads)
            found["profile"] = {
                "source": made.source,
                "batch": batches[0],
                "calls": made.calls,
                "call_ms": made.call_milliseconds,
                "parts": dict(made.parts),
            }
        else:
            notes.append(f"{spec.backend}: no profile by the model's parts, it has no profiler that is read here")
    except GammaError as error:  # what was timed is worth keeping without it
        notes.append(f"{spec.backend}: work and profile are not complete: {error.message}")
    return found, notes


def peaks(threads: int | None) -> dict[str, float]:
    """What the machine can do at this moment, as JSON.

    Raises:
        EnvironmentFault: it cannot be measured.
    """
    return dataclasses.asdict(measure_peak(threads))


def best_peak(before: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """Measure once more and take the higher one of each: other load makes a peak too low, nothing makes it too high."""
    try:
        after = peaks(threads)
    except EnvironmentFault:  # it worked before, and what was timed since is worth keeping
        after = before
    best = {name: max(before[name], after[name]) for name in ("gmacs", "gbytes")}
    return {**before, **best, "gmacs_both": [before["gmacs"], after["gmacs"]]}


def roofs(work: dict[str, Any], peak: dict[str, Any], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How close each measured call comes to the roof, by the median of the backend's own time.

    Args:
        work: of `work_of`.
        peak: of `best_peak`.
        rows: of this contender.
    """
    from gamma_export.bench.roofline import PartWork, Tally, attained

    limits = Peak(**{field.name: peak[field.name] for field in dataclasses.fields(Peak)})
    made = []
    for call in work["calls"]:
        tally = Tally(**{**call, "parts": {part: PartWork(**of) for part, of in call["parts"].items()}})
        spent = next((r.summary.p50 for r in rows if r.metric == "backend" and r.batch == tally.batch), 0.0)
        if spent > 0:
            one = attained(tally, limits, spent / 1e3)
            made.append({"batch": tally.batch, "ms": spent, **dataclasses.asdict(one)})
    return made


def roof_lines(result: Result) -> list[tuple[str, ...]]:
    """Cells under `ROOF`."""
    made = []
    for work in result.work:
        counted = {call["batch"]: call for call in work["calls"]}
        for roof in work["roofs"]:
            call = counted[roof["batch"]]
            numbers = (call["macs"] / 1e9, call["least_bytes"] / 1e6, roof["ms"], roof["gmacs"], roof["intensity"])
            words = (roof["bound"], f"{roof['share']:.1%}")
            made.append((work["backend"], str(roof["batch"]), *(f"{number:.4g}" for number in numbers), *words))
    return made


def profile_lines(result: Result) -> list[tuple[str, ...]]:
    """Cells under `PROFILE`; parts that took no time are left out."""
    made = list[tuple[str, ...]]()
    for work in result.work:
        profile = work["profile"]
        if not profile:
            continue
        total = sum(profile["parts"].values())
        parts = {call["batch"]: call["parts"] for call in work["calls"]}[profile["batch"]]
        for part, spent in profile["parts"].items():
            if spent > 0:
                gmac = parts[part]["macs"] / 1e9
                share = f"{gmac / (spent / 1e3) / work['peak']['gmacs']:.1%}" if gmac else ""
                made.append((work["backend"], part, f"{spent:.4g}", f"{spent / total:.1%}", f"{gmac:.4g}", share))
    return made


def peak_words(result: Result) -> list[str]:
    """A sentence for each contender: what the shares are of."""
    said = []
    for work in result.work:
        peak = work["peak"]
        cache = (
            ""
            if Peak(**{f.name: peak[f.name] for f in dataclasses.fields(Peak)}).beyond_cache
            else (", which may have stayed in a cache")
        )
        said.append(
            f"{work['backend']}: the machine's peak beside it was {peak['gmacs']:.4g} GMAC/s in float32 and a copy of "
            f"{peak['gbytes']:.4g} GB/s{cache}, {peak['threads']} threads"
        )
    return said
