"""All rows of one contender, in the process that is its own."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gamma_export.bench.load import saturated, speeds, streamed
from gamma_export.bench.paced import paced
from gamma_export.bench.power import Meter, energy, meter_command
from gamma_export.bench.result import Row, make_row, moved
from gamma_export.bench.sampling import Plan, Sampled, sample
from gamma_export.bench.split import PARTS, probed

if TYPE_CHECKING:
    from gamma_export.bench.spec import Spec
    from gamma_runtime.crops import Prepared
    from gamma_runtime.manifest import GraphEntry
    from gamma_runtime.scorer import Scorer

__all__ = ["measure"]

_MAX_PHOTOS = 32  # in memory while the clocks run; the rest is scored once
_MAX_PREPARED = 16  # of them as crops


def measure(spec: Spec) -> dict[str, Any]:
    """Open the bundle, score, and measure what is asked for.

    Returns:
        ``rows`` as JSON, ``contender`` (facts about it) and ``notes``.

    Raises:
        GammaError: the bundle cannot be opened, or a photo cannot be scored.
    """
    from gamma_runtime.engines.memory import peak_rss
    from gamma_runtime.engines.nvml import free_gpu_bytes
    from gamma_runtime.engines.use import EngineUse
    from gamma_runtime.scorer import load

    free = free_gpu_bytes() if on_gpu(spec) else None
    begun = time.monotonic()
    with load(
        spec.bundle,
        spec.scene,
        spec.backend,
        spec.precision,
        threads=spec.threads,
        engine=EngineUse(),
        engine_dir=spec.engine_dir,
    ) as scorer:
        loaded = time.monotonic()
        first = scorer.score(spec.photos[0])
        scored = time.monotonic()
        rows = _start_rows(spec, begun, loaded, scored)
        notes: list[str] = []
        scores, meter = [first.value], None
        if not spec.start_only:
            bench = _Bench(spec, scorer)
            scores = bench.scores
            rows += bench.rows()
            notes, meter = bench.notes, bench.meter
        contender = {
            "backend": scorer.backend_name,
            "version": scorer.panel.graphs[0].backend.version,
            "threads": scorer.panel.graphs[0].backend.threads,
            "crops": len(first.crop_scores),
            "peak_host_mib": _mib(peak_rss()),
            "gpu_mib": _gpu_mib(free, free_gpu_bytes() if on_gpu(spec) else None),
            "scores": scores,
            "power_from": meter,
        }
        graph = scorer.panel.graphs[0].entry
    answer = {"rows": [dataclasses.asdict(row) for row in rows], "contender": contender, "notes": notes}
    if spec.profile and not spec.start_only:
        answer["work"], more = _work(spec, graph, rows)
        notes += more
    return answer


def _work(spec: Spec, graph: GraphEntry, rows: Sequence[Row]) -> tuple[dict[str, Any], list[str]]:
    """Of the calls that were measured; the scorer is closed by now, so that two sessions never share the cores."""
    from gamma_export.bench.work import work_of
    from gamma_runtime.bundle import open_bundle

    batches = [row.batch for row in rows if row.metric == "backend" and row.batch is not None]
    return work_of(spec, open_bundle(spec.bundle), graph, batches)


def on_gpu(spec: Spec) -> bool:
    """Whether a contender runs on a GPU."""
    return spec.backend not in ("onnxruntime", "openvino")


def _mib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**20, 1)


def _gpu_mib(before: int | None, after: int | None) -> float | None:
    """What the GPU has less of than before; others who use it spoil the number."""
    return None if before is None or after is None else _mib(max(0, before - after))


def _start_rows(spec: Spec, begun: float, loaded: float, scored: float) -> list[Row]:
    """Cold start and first call, one sample each; seconds of the monotonic clock, which all processes share."""
    parts = {
        "process_and_imports_ms": round((begun - spec.started) * 1e3, 1),
        "open_and_compile_ms": round((loaded - begun) * 1e3, 1),
    }
    return [
        make_row([(scored - spec.started) * 1e3], backend=spec.backend, metric="cold start", unit="ms", extra=parts),
        make_row([(scored - loaded) * 1e3], backend=spec.backend, metric="first call", unit="ms"),
    ]


class _Bench:
    """An open scorer, its photos in memory, and what was found."""

    def __init__(self, spec: Spec, scorer: Scorer) -> None:
        self._spec, self._scorer = spec, scorer
        self._plan = Plan(seconds=spec.seconds, within=spec.within)
        self._images: list[bytes] = []
        self._meter = meter_command(on_gpu(spec))
        self.meter = self._meter[0] if self._meter else None
        self.notes: list[str] = []
        self.scores = [self._take(path) for path in spec.photos]
        if len(spec.photos) > _MAX_PHOTOS:
            self.notes.append(f"{spec.backend}: of {len(spec.photos)} photos the first {_MAX_PHOTOS} are timed")

    def _take(self, path: str) -> float:
        """Read a photo into memory and score it once.

        Raises:
            InputError: it cannot be scored.
        """
        from gamma_runtime.decode import read_bytes

        if len(self._images) < _MAX_PHOTOS:
            self._images.append(read_bytes(path, self._scorer.panel.contract.limits.max_bytes))
        return self._scorer.score(path).value

    def rows(self) -> list[Row]:
        """Everything; the quiet measurements first, several threads last."""
        rows = self._end_to_end()
        batches = self._batches()
        for batch in batches:
            rows += self._call(batch)
        for batch in batches:
            rows.append(self._throughput(batch))
        rows += [self._paced(rate) for rate in self._spec.rates]
        for streams in self._spec.streams:
            rows += self._streams(streams)
        return rows

    def _rows_of(self, found: Sampled, lead: str, names: dict[str, str], batch: int | None = None) -> list[Row]:
        """A row for each name; only the leading one's median was aimed at."""
        made = []
        for name, metric in names.items():
            values = found.values[name]
            leads = name == lead
            made.append(
                make_row(
                    values,
                    backend=self._spec.backend,
                    metric=metric,
                    unit="ms",
                    batch=batch,
                    half_width=found.half_width if leads else None,
                    warm_up=found.warm_up,
                    drift=moved(values) if leads else None,
                )
            )
        return made

    def _end_to_end(self) -> list[Row]:
        images = itertools.cycle(self._images)
        with probed(self._scorer) as probe:
            found = sample(lambda: probe.end_to_end(next(images)), "end-to-end", self._plan)
        names = {"end-to-end": "end-to-end", **{part: f"split: {part}" for part in PARTS}}
        rows = self._rows_of(found, "end-to-end", names)
        share = sum(found.values["infer"]) / sum(found.values["end-to-end"])
        rows[0] = dataclasses.replace(rows[0], extra={"infer_share": round(share, 4)})
        return rows

    def _batches(self) -> list[int]:
        """The asked ones that the graph takes in one call; its least where it takes none of them."""
        graph = self._scorer.panel.graphs[0]
        if graph.crops_vary:
            return list(self._spec.batches)
        least, _, most = graph.entry.batch
        left = [batch for batch in self._spec.batches if not least <= batch <= most]
        if left:
            text = ", ".join(map(str, left))
            self.notes.append(f"{self._spec.backend}: batch {text} left out; the graph takes {least} to {most}")
        return [batch for batch in self._spec.batches if batch not in left] or [least]

    def _call(self, batch: int) -> list[Row]:
        prepared = itertools.cycle(self._prepared())
        with probed(self._scorer) as probe:
            found = sample(lambda: probe.call(list(itertools.islice(prepared, batch))), "call", self._plan)
        return self._rows_of(found, "call", {name: name for name in found.values}, batch)

    def _prepared(self) -> list[Prepared]:
        return [self._scorer.prepare(image) for image in self._images[:_MAX_PREPARED]]

    def _throughput(self, batch: int) -> Row:
        """At saturation, and what it takes of energy where the board says its power."""
        meter = Meter(*self._meter) if self._meter else None
        with meter or contextlib.nullcontext():
            found = saturated(self._scorer, self._images, batch, self._spec.seconds)
        extra: dict[str, float] = {}
        if meter and (used := energy(meter.samples, found.begin, found.end, found.images)):
            extra = {name: round(value, 6) for name, value in dataclasses.asdict(used).items()}
        if meter and meter.unread:
            self.notes.append(f"{self._spec.backend}: {self.meter} said {meter.unread} lines that are not understood")
        return self._speed(found.speeds, "throughput", batch=batch, extra=extra)

    def _speed(self, found: Sequence[float], metric: str, **parameters: Any) -> Row:
        fields = {"backend": self._spec.backend, "metric": metric, "unit": "images/s", "drift": moved(found)}
        return make_row(found, **fields, **parameters)

    def _paced(self, rate: float) -> Row:
        images = itertools.cycle(self._images)
        found = paced(lambda: self._scorer.score(next(images)), rate, self._spec.seconds)
        extra: dict[str, float] = {"late": found.late, "dropped": found.dropped, "scored": len(found.services)}
        if found.services:
            extra["service_p50_ms"] = round(sorted(found.services)[len(found.services) // 2], 4)
        return make_row(found.latencies, backend=self._spec.backend, metric="paced", unit="ms", rate=rate, extra=extra)

    def _streams(self, streams: int) -> list[Row]:
        latencies, stamps = streamed(self._scorer, self._images, streams, self._spec.seconds)
        row = make_row(
            latencies,
            backend=self._spec.backend,
            metric="streams",
            unit="ms",
            streams=streams,
            drift=moved(latencies),
        )
        return [row, self._speed(speeds(stamps, streams), "streams throughput", streams=streams)]
