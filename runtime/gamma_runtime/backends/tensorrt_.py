"""Engines of TensorRT and TensorRT-RTX on the first GPU."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.backends.base import Backend, Outputs, read_io
from gamma_runtime.backends.tensorrt_session import HungError, Session, Source, read_tensors
from gamma_runtime.cuda.api import CudaError, CudaRt
from gamma_runtime.cuda.arrays import DeviceCrops, DeviceFrame
from gamma_runtime.engines.use import EngineUse
from gamma_runtime.errors import EnvironmentFault, InputError

if TYPE_CHECKING:
    from gamma_runtime.engines.load import LoadedEngine
    from gamma_runtime.engines.runtime_cache import RuntimeCache

__all__ = ["TensorRtBackend"]


class _Holder:
    """Lives in a thread's local storage; when the thread ends, so does its session."""


class TensorRtBackend(Backend):
    """One engine, shared by all threads; each thread that calls gets an execution context of its own.

    After an error that CUDA calls sticky, or a hang, the backend is dead: every call fails at once, because no later
    result could be trusted. CUDA says that such a process must end.

    Attributes:
        last_device_ms: milliseconds of the last inference on the device, by CUDA events.
        graph_fault: why the last inference could not be captured as a CUDA graph; None when it could.
        cache_fault: why TensorRT-RTX's compiled kernels could not be kept; None when they were.
    """

    def __init__(
        self,
        plan: Path,
        loaded: LoadedEngine,
        cuda: CudaRt,
        *,
        name: str,
        version: str,
        use: EngineUse | None = None,
        cache: RuntimeCache | None = None,
    ) -> None:
        """Look at the engine's inputs and outputs; memory is taken when a thread first scores.

        Raises:
            InputError: not an engine of a Gamma graph.
        """
        tensors = read_tensors(loaded.engine)
        inputs, outputs = (
            {t.name: (t.dtype, t.shape) for t in tensors if t.is_input is wanted} for wanted in (True, False)
        )
        super().__init__(plan, version, read_io(plan, inputs, outputs))
        self.name = name
        self.last_device_ms = 0.0
        self.graph_fault: str | None = None
        self.cache_fault: str | None = None
        (given,) = inputs
        ranges = [
            loaded.engine.get_tensor_profile_shape(given, index)
            for index in range(loaded.engine.num_optimization_profiles)
        ]
        self.least = min(int(least[0]) for least, _, _ in ranges)
        self.most = max(int(most[0]) for _, _, most in ranges)
        self._cuda = cuda
        self._loaded: Any = loaded
        self._use = use or EngineUse()
        self._cache = cache
        self._dead: str | None = None
        self._running = 0
        self._idle = threading.Condition(self._lock)
        self._local = threading.local()
        self._sessions: dict[int, Session] = {}
        self._table = threading.RLock()  # a thread's end may be noticed in the middle of anything

    def infer_images(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """Like `infer`; when all images lie on the device, crops or frames are copied there and never to the host.

        Raises:
            GammaError: as `infer`.
        """
        candidates: Sequence[object] = images
        on_device = [one for one in candidates if isinstance(one, DeviceCrops | DeviceFrame)]
        if len(on_device) < len(images):
            return super().infer_images(images)
        if any(one.shape != self.io.image_shape for one in on_device):
            found = [list(one.shape) for one in on_device]
            raise InputError(f"{self.graph}: images of {found}; the graph takes {list(self.io.image_shape)}")
        self._check_batch(len(on_device))
        return self._timed(lambda: self._run(on_device), len(on_device))

    @property
    def contexts(self) -> int:
        """Execution contexts alive: one for each thread that called and still lives."""
        return len(self._sessions)

    def _check(self, crops: NDArray[np.uint8]) -> None:
        super()._check(crops)
        self._check_batch(len(crops))

    def _check_batch(self, images: int) -> None:
        if not self.least <= images <= self.most:
            raise InputError(
                f"{self.graph}: a batch of {images}; the engine takes {self.least} to {self.most}",
                hint="gamma-export --batch LEAST:OPTIMAL:MOST, then gamma-build, makes an engine for others",
            )

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        """Several calls at a time, each in its thread's own context; `close` waits for them."""
        with self._idle:
            self._require_open()
            self._require_alive()
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _require_alive(self) -> None:
        if self._dead is not None:
            raise EnvironmentFault(
                f"{self.graph}: the GPU failed in an earlier call ({self._dead}); nothing was computed",
                hint="restart this process: CUDA cannot recover in it; then check nvidia-smi and the system log",
            )

    def _infer(self, crops: NDArray[np.uint8]) -> Outputs:
        return self._run(crops)

    def _run(self, source: Source) -> Outputs:
        try:
            return self._run_once(source)
        except CudaError as error:
            half = len(source) // 2
            if not (error.out_of_memory and self._use.halve_on_oom and half >= self.least):
                raise
            first, second = self._run_once(source[:half]), self._run_once(source[half:])
            joined = (
                np.concatenate(pair) for pair in ((first.score, second.score), (first.crop_scores, second.crop_scores))
            )
            return Outputs(*joined)

    def _run_once(self, source: Source) -> Outputs:
        shape = (len(source), *(source.shape[1:] if isinstance(source, np.ndarray) else source[0].shape))
        try:
            session = self._session()
            found = session.run(source, shape)
        except (CudaError, HungError) as error:
            if isinstance(error, HungError) or error.sticky:
                self._die(error.message)
            else:
                self._discard()
            raise
        except EnvironmentFault:
            self._discard()  # the next call starts with a fresh context
            raise
        self.last_device_ms, self.graph_fault = session.device_ms, session.graph_fault
        return Outputs(found["score"], found["crop_scores"])

    def _session(self) -> Session:
        """This thread's session, made at its first call."""
        holder = getattr(self._local, "holder", None)
        session = self._sessions.get(id(holder)) if holder is not None else None
        if session is None:
            session = Session(self._cuda, self._loaded, str(self.graph), self._use, self._cache)
            holder = _Holder()
            with self._table:
                self._sessions[id(holder)] = session
            ending = weakref.finalize(holder, _end_of_thread, weakref.WeakMethod(self._forget), id(holder))
            ending.atexit = False  # at the interpreter's end the driver frees everything, in its own order
            self._local.holder = holder
        return session

    def _forget(self, key: int) -> None:
        with self._table:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.abandon() if self._dead else session.close()

    def _discard(self) -> None:
        holder = getattr(self._local, "holder", None)
        if holder is not None:
            with contextlib.suppress(CudaError):
                self._forget(id(holder))

    def _die(self, why: str) -> None:
        with self._table:
            self._dead = why

    def _close(self) -> None:
        while self._running:
            self._idle.wait()
        with self._table, contextlib.ExitStack() as stack:
            stack.callback(self._drop_engine)
            if self._cache is not None and self._dead is None:
                self.cache_fault = self._cache.try_save()
            for key in list(self._sessions):
                stack.callback(self._forget, key)

    def _drop_engine(self) -> None:
        self._loaded = None  # engine before runtime before logger, as LoadedEngine holds them


def _end_of_thread(forget: Callable[[], Callable[[int], None] | None], key: int) -> None:
    """Close a session in the thread that ends, unless the backend is gone already."""
    method = forget()
    if method is not None:
        with contextlib.suppress(CudaError):
            method(key)
