"""Recipes tried on real photos, each scored against the fp32 graph it came from; a kill costs one trial."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_calib.compare import Difference, Gate, Scores, compare, graph_scores
from gamma_calib.external import write_external
from gamma_calib.qdq import Recipe, Source, entries, packed, place
from gamma_runtime.bundle import parse_json
from gamma_runtime.cli import log
from gamma_runtime.errors import GammaError, UsageError
from gamma_runtime.files import write_atomically
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    import onnx

__all__ = ["Outcome", "Trials"]

_MAX_FILE = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a recipe does to the scores, one difference for each scene, and how long a crop took.

    ``milliseconds`` are of this process, which has run other graphs before: good for an order, `speed` for a claim.
    """

    scenes: tuple[Difference, ...]
    milliseconds: float

    @property
    def mean_abs(self) -> float:
        """Mean |shift| over all scenes."""
        return float(np.mean([scene.mean_abs for scene in self.scenes]))

    @property
    def worst(self) -> Difference:
        """Of the scene with the largest shift."""
        return max(self.scenes, key=lambda scene: scene.max_abs)

    def passed(self, gate: Gate) -> bool:
        """Whether every scene holds the gate."""
        return all(gate.passed(scene) for scene in self.scenes)


@dataclasses.dataclass(frozen=True)
class Trials:
    """Scores recipes on a fixed set of photos.

    Attributes:
        source: the fp32 graph, in a folder that can be written to.
        half: the fp16 graph; with it a trial is what would be published, down to the weights that stay in fp16, and
            the graph for TensorRT can be tried too.
        inputs: uint8, what the graph is fed (`graph_scores`).
        wanted: float64 ``[P, K]``, the scores that are right.
        batch: of the graph.
        backends: that run the trials; the first one alone where an order is wanted, not a proof.
        file: where outcomes are kept; None keeps none.
        threads: CPU threads of an inference.
        forms: of the graph that would be published: ``cpu`` (rest in fp32), ``tensorrt`` (fp16, needs ``half``).
        steps: progress.
    """

    source: Source
    inputs: NDArray[np.uint8]
    wanted: Scores
    half: onnx.ModelProto | None = None
    batch: int = 1
    backends: tuple[str, ...] = ("onnxruntime",)
    file: Path | None = None
    threads: int | None = None
    forms: tuple[str, ...] = ("cpu", "tensorrt")
    steps: Steps = dataclasses.field(default_factory=Steps)

    def measure(
        self, recipe: Recipe, label: str, count: int | None = None, form: str | None = None, backend: str | None = None
    ) -> Outcome:
        """Score with a recipe, or look up what came of it before.

        Args:
            recipe: 8-bit groups and ranges.
            label: for the progress.
            count: only so many of the inputs, taken evenly.
            form: ``cpu`` or ``tensorrt``, the graph that is tried; the first one when None.
            backend: that runs it; the first one when None.

        Raises:
            GammaError: the graph does not run, or gives no finite scores.
        """
        backend, form = backend or self.backends[0], form or self.forms[0]
        key = self._key(recipe, count, form, backend)
        known = self._read()
        if key not in known:
            found = self._run(recipe, label, count, form, backend)
            known[key] = dataclasses.asdict(found)
            if self.file is not None:
                write_atomically(self.file, json.dumps(known, sort_keys=True).encode())
        return _outcome(known[key])

    def everywhere(self, recipe: Recipe, label: str, gate: Gate) -> tuple[Outcome, bool]:
        """The worst outcome, and whether the gate holds, on every backend and in the form for TensorRT.

        Stops where it does not hold.

        Rounding to 8 bits is so coarse that the last bits of an fp32 sum decide some codes: the largest shift differs
        between libraries that are both right, so one alone is no proof for the other.

        Raises:
            GammaError: as `measure`.
        """
        ways = [(self.forms[0], backend) for backend in self.backends]
        ways += [(form, self.backends[0]) for form in self.forms[1:] if self.half is not None]
        outcomes: list[Outcome] = []
        for form, backend in ways:
            text = f"{label}, {backend if form == self.forms[0] else 'as for TensorRT'}"
            outcomes.append(self.measure(recipe, text, form=form, backend=backend))
            if not outcomes[-1].passed(gate):
                break
        return max(outcomes, key=lambda outcome: outcome.worst.max_abs), outcomes[-1].passed(gate)

    def _run(self, recipe: Recipe, label: str, count: int | None, form: str, backend: str) -> Outcome:
        from gamma_runtime import backends

        if recipe.smooth and self.half is None:
            raise UsageError("smoothing changes LayerNorms and gates too: it needs the fp16 graph")
        chosen = np.unique(np.linspace(0, len(self.inputs) - 1, count or len(self.inputs)).round().astype(int))
        each = len(self.wanted) // len(self.inputs)
        wanted = self.wanted.reshape(len(self.inputs), each, -1)[chosen].reshape(len(chosen) * each, -1)
        made = packed(self.half, self.source, recipe) if self.half else entries(self.source, recipe, "fp32")
        weights = write_external(self.source.folder, "trial", made)
        model, rest = (self.half, "fp16") if self.half and form == "tensorrt" else (self.source.model, "fp32")
        graph = self.source.folder / f"{Path(weights.name).stem}.onnx"
        try:
            graph.write_bytes(place(model, self.source, recipe, weights, rest).SerializeToString())
            with backends.create(backend, graph, threads=self.threads) as runner:
                start = time.perf_counter()
                found = graph_scores(runner, self.batch, self.inputs[chosen], self.steps, label)
                milliseconds = (time.perf_counter() - start) * 1e3 / len(found)
        finally:
            graph.unlink(missing_ok=True)
            (self.source.folder / weights.name).unlink(missing_ok=True)
        return Outcome(tuple(compare(wanted[:, k], found[:, k]) for k in range(found.shape[1])), milliseconds)

    def _key(self, recipe: Recipe, count: int | None, form: str, backend: str) -> str:
        """All that decides an outcome: graph, weights, photos, scores, recipe, backend."""
        from gamma_runtime import backends

        digest = hashlib.sha256(_content(self.source.model))
        for array in (self.inputs, self.wanted):
            digest.update(np.ascontiguousarray(array).tobytes())
        measured = [recipe.kind, sorted(recipe.groups), sorted(recipe.ranges.items()), sorted(recipe.smooth.items())]
        measured += [sorted(recipe.int4)] if recipe.int4 else []
        how = [count, self.batch, form, self.half is not None, backend, backends.installed(backend)]
        digest.update(json.dumps([measured, how]).encode())
        return digest.hexdigest()

    def _read(self) -> dict[str, dict[str, Any]]:
        """Outcomes of earlier runs; a broken file counts as none, with a warning."""
        if self.file is None or not self.file.exists():
            return {}
        try:
            data = parse_json(self.file, self.file.read_bytes()[:_MAX_FILE], "delete it")
            for outcome in data.values():
                _outcome(outcome)
        except (GammaError, OSError, TypeError, AttributeError, ValueError, KeyError) as error:
            log(f"warning: {self.file}: not usable ({type(error).__name__}); measuring anew")
            return {}
        return dict(data)


def _outcome(data: dict[str, Any]) -> Outcome:
    return Outcome(tuple(Difference(**scene) for scene in data["scenes"]), float(data["milliseconds"]))


def _content(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))
