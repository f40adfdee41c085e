"""Where the time of one image goes: clocks around the parts of the real scorer, in the very call that is measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamma_runtime.crops import Prepared
    from gamma_runtime.scorer import Scorer

__all__ = ["PARTS", "Probe", "probed"]

PARTS = ("read/decode", "reduce/crop", "copy/stack", "infer", "summarise")


class Probe:
    """Milliseconds of the parts of the call in progress; one thread at a time.

    Attributes:
        decode: of reading and decoding the image.
        prepare: of that, reducing and cutting.
        handed: from handing images to the backend until its scores are back.
        backend: of that, by the backend's own clock.
        device: of that, by CUDA events; None where the backend knows no device.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.reset()

    def reset(self) -> None:
        """A new call begins."""
        self.decode = self.prepare = self.handed = self.backend = 0.0
        self.device: float | None = None

    def end_to_end(self, encoded: bytes) -> dict[str, float]:
        """Score one encoded image: milliseconds of all and of its `PARTS`, which add up to it.

        Raises:
            GammaError: as `Scorer.score`.
        """
        self.reset()
        total = _timed(lambda: self._scorer.score(encoded))
        parts = (
            self.decode,
            self.prepare - self.decode,
            self.handed - self.backend,
            self.backend,
            total - self.prepare - self.handed,
        )
        return {"end-to-end": total, **dict(zip(PARTS, parts, strict=True))}

    def call(self, prepared: Sequence[Prepared]) -> dict[str, float]:
        """Score images that are prepared, in one call: milliseconds of the call, the backend and the device.

        Raises:
            GammaError: as `Panel.score_prepared`.
        """
        self.reset()
        scene, panel = self._scorer.scene, self._scorer.panel
        total = _timed(lambda: panel.score_prepared([{scene: one} for one in prepared], batch=len(prepared)))
        found = {"call": total, "backend": self.backend}
        return found if self.device is None else {**found, "device": self.device}


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


@contextlib.contextmanager
def probed(scorer: Scorer) -> Iterator[Probe]:
    """Put clocks around decoding, preparing and every graph's calls; they are taken away at the end."""
    from gamma_runtime import crops

    probe = Probe(scorer)

    def add(name: str) -> Callable[[float, Any], None]:
        return lambda ms, _: setattr(probe, name, getattr(probe, name) + ms)

    def handed(ms: float, backend: Any) -> None:
        probe.handed += ms
        probe.backend += backend.last_ms
        device = getattr(backend, "last_device_ms", None)
        if device is not None:
            probe.device = (probe.device or 0.0) + device

    with contextlib.ExitStack() as undo:
        undo.enter_context(_clocked(crops, "decode", add("decode")))
        undo.enter_context(_clocked(scorer.panel, "prepare", add("prepare")))
        for graph in scorer.panel.graphs:
            undo.enter_context(_clocked(graph.backend, "infer_images", handed))
        yield probe


@contextlib.contextmanager
def _clocked(owner: Any, name: str, note: Callable[[float, Any], None]) -> Iterator[None]:
    """Replace a function of a module or a method of one object by itself with a clock around it."""
    inner, own = getattr(owner, name), name in vars(owner)

    def outer(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = inner(*args, **kwargs)
        note((time.perf_counter() - start) * 1e3, owner)
        return result

    setattr(owner, name, outer)
    try:
        yield
    finally:
        setattr(owner, name, inner) if own else delattr(owner, name)
