"""What every backend is: the public method checks and times, `_infer` does the work."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.contract import CROP
from gamma_runtime.errors import EXIT_GATE, InputError, UsageError
from gamma_runtime.threads import BUDGET

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Backend", "Floats", "GraphIO", "NonFiniteError", "Outputs", "Shape", "read_io"]

Floats: TypeAlias = NDArray[np.float32]
Shape: TypeAlias = tuple[int | None, ...]  # None is a range


class NonFiniteError(InputError):
    """The graph gave NaN or infinity: never a score; its exit code is that of a gate (hostile_inputs.md row 25)."""

    exit_code = EXIT_GATE


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What one call gives: ``score`` float32 ``[N]`` or ``[N, K]``, ``crop_scores`` ``[N, C]`` or ``[N, C, K]``."""

    score: Floats
    crop_scores: Floats


@dataclasses.dataclass(frozen=True)
class GraphIO:
    """The graph's own shapes: ``batch`` N (None: a range), ``crops`` C, ``scenes`` K (None: no such dimension).

    ``frame``: width and height of the camera frame it takes, as ``frames`` uint8 ``[N, H, W, 3]``; None where it takes
    ``crops`` uint8 ``[N, C, 224, 224, 3]``.
    """

    batch: int | None
    crops: int
    scenes: int | None
    frame: tuple[int, int] | None = None

    @property
    def input(self) -> str:
        """Name of the graph's input."""
        return "frames" if self.frame else "crops"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image of the batch: ``(C, 224, 224, 3)``, or ``(H, W, 3)``."""
        return (self.frame[1], self.frame[0], 3) if self.frame else (self.crops, CROP, CROP, 3)


def read_io(graph: Path, inputs: dict[str, tuple[str, Shape]], outputs: dict[str, tuple[str, Shape]]) -> GraphIO:
    """Compare a graph's inputs and outputs (name to type and shape) with design.md section 3.

    Raises:
        InputError: they are something else, with the table of what was found.
    """
    found = "; ".join(f"{name} {kind} {list(shape)}" for name, (kind, shape) in (inputs | outputs).items())
    wrong = InputError(
        f"{graph}: not a Gamma graph; found {found}",
        hint="needed: crops uint8 [N, C, 224, 224, 3], or frames uint8 [N, H, W, 3], to score float32 [N] and "
        "crop_scores float32 [N, C]",
    )
    if set(inputs) not in ({"crops"}, {"frames"}) or set(outputs) != {"score", "crop_scores"}:
        raise wrong
    ((name, (kind, shape)),) = inputs.items()
    (score_kind, score), (crops_kind, crop_scores) = outputs["score"], outputs["crop_scores"]
    crops = crop_scores[1] if len(crop_scores) > 1 else None
    if kind != "uint8" or (score_kind, crops_kind) != ("float32", "float32") or crops is None:
        raise wrong
    frame = None
    if name == "frames":
        _, height, width, _ = shape if len(shape) == 4 else (None,) * 4
        if height is None or width is None or shape[3] != 3 or min(height, width) < CROP:
            raise wrong
        frame = (width, height)
    elif shape[1:] != (crops, CROP, CROP, 3):
        raise wrong
    scenes = score[1:]
    if len(scenes) > 1 or crop_scores[2:] != scenes:
        raise wrong
    return GraphIO(shape[0], crops, scenes[0] if scenes else None, frame)


class Backend(abc.ABC):
    """One compiled graph. Calls from several threads wait for each other, and calls of several graphs for processors.

    Attributes:
        name: ``onnxruntime``, ``openvino``, ``tensorrt``, ``tensorrt-rtx``.
        version: of the library.
        io: the graph's shapes.
        threads: CPU threads that an inference keeps busy (`gamma_runtime.threads.BUDGET`); 0 where a GPU does the work.
        last_ms: milliseconds of the last `infer`, by the monotonic clock; 0 before the first.

    Example:
        >>> with create("onnxruntime", Path("scene.onnx")) as backend:
        ...     backend.infer(crops).score
    """

    name: str
    threads: int = 0

    def __init__(self, graph: Path, version: str, io: GraphIO) -> None:
        self.graph = graph
        self.version = version
        self.io = io
        self.last_ms = 0.0
        self._lock = threading.Lock()
        self._open = True
        self._owner = os.getpid()

    def infer(self, crops: NDArray[np.uint8]) -> Outputs:
        """Score the crops of N images.

        Args:
            crops: uint8 ``[N, C, 224, 224, 3]`` RGB; made contiguous if it is not.

        Raises:
            InputError: another type or shape than the graph's. NonFiniteError: a score is NaN or infinite.
            UsageError: the backend is closed, or was opened before a fork. EnvironmentFault: no memory, or the
                library failed.
        """
        self._check(crops)
        contiguous = np.ascontiguousarray(crops)
        return self._timed(lambda: self._infer(contiguous), len(crops))

    def infer_images(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """Like `infer`, of images that are not stacked yet; a backend of a GPU leaves those that lie there in place.

        Raises:
            GammaError: as `infer`.
        """
        return self.infer(np.stack(images))

    def close(self) -> None:
        """Free the compiled graph; calling it twice is fine, and in a forked child nothing happens."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            was_open, self._open = self._open, False
            if was_open:
                self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _timed(self, work: Callable[[], Outputs], images: int) -> Outputs:
        """Do the work while the backend is open, time it, and check what comes out."""
        if os.getpid() != self._owner:  # the library's threads are not here: it would wait for them for ever
            raise UsageError(
                f"{self.graph}: opened in process {self._owner}, used in its forked child {os.getpid()}",
                hint="call gamma_runtime.load in every process, or start them with multiprocessing's 'spawn'",
            )
        with self._entered():
            start = time.perf_counter()
            outputs = work()
            self.last_ms = (time.perf_counter() - start) * 1e3
        self._check_outputs(outputs, images)
        return outputs

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        """One call at a time, and none after `close`."""
        with self._lock, BUDGET.hold(self.threads):
            self._require_open()
            yield

    def _require_open(self) -> None:
        if not self._open:
            raise UsageError(f"{self.graph}: this backend is closed")

    @abc.abstractmethod
    def _infer(self, crops: NDArray[np.uint8]) -> Outputs:
        """Run the graph; ``crops`` is contiguous and has the right type and shape."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Drop the library's objects."""

    def _check(self, crops: NDArray[np.uint8]) -> None:
        wanted = self.io.image_shape
        if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != wanted:
            found = f"{crops.dtype} {list(crops.shape)}" if isinstance(crops, np.ndarray) else type(crops).__name__
            raise InputError(f"{self.graph}: {self.io.input} are {found}; the graph takes uint8 {['N', *wanted]}")
        if len(crops) == 0 or (self.io.batch is not None and len(crops) != self.io.batch):
            raise InputError(f"{self.graph}: a batch of {len(crops)}; the graph takes {self.io.batch or 'one or more'}")

    def _check_outputs(self, outputs: Outputs, images: int) -> None:
        tail = () if self.io.scenes is None else (self.io.scenes,)
        wanted = ((images, *tail), (images, self.io.crops, *tail))
        if (outputs.score.shape, outputs.crop_scores.shape) != wanted:
            raise InputError(
                f"{self.graph}: outputs {outputs.score.shape} and {outputs.crop_scores.shape}, not {wanted}"
            )
        bad = int((~np.isfinite(outputs.score)).sum() + (~np.isfinite(outputs.crop_scores)).sum())
        if bad:
            raise NonFiniteError(
                f"{self.graph}: non-finite score ({bad} values are NaN or infinite on {self.name})",
                hint="gamma-verify finds the stage; fp16 graphs overflow above 65504",
            )
