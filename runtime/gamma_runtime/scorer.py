"""The front door: open a bundle, score images.

`Scorer` is for one scene. `Panel` scores several scenes at once: each image is decoded once, and scenes that share a
working size and a joint graph share the inference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

from gamma_runtime.bundle import Bundle, open_bundle
from gamma_runtime.contract import FRAMES, SMALL
from gamma_runtime.crops import Image, Prepared, prepare_scenes
from gamma_runtime.engines.use import EngineUse
from gamma_runtime.errors import GammaError, InputError, UsageError, without_frames
from gamma_runtime.graphs import OpenGraph, open_graphs
from gamma_runtime.prefetch import chunked, prefetched
from gamma_runtime.score import Score, check_scale
from gamma_runtime.threads import BUDGET, OPENCV
from gamma_runtime.threads import decode_threads as decode_threads_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from gamma_runtime.backends.base import Floats
    from gamma_runtime.contract import Contract

__all__ = ["Panel", "Result", "Score", "Scorer", "load", "load_panel"]

_GENERATIONS = 10  # exports in a row that a reader follows before it gives up
_Row: TypeAlias = "tuple[Floats, Floats] | GammaError"


@dataclasses.dataclass(frozen=True)
class Result:
    """One image's scores, one a scene, or the error that kept it from being scored."""

    path: str | None
    scores: tuple[Score, ...]
    error: GammaError | None = None


class Panel:
    """Scores images in several scenes. Made by `load_panel`.

    Attributes:
        scenes: in the order asked for.
        backend_name: the library that runs the graphs; for ``auto``, the one that was chosen.
        contract: what happens to every image.
    """

    def __init__(
        self, bundle: Bundle, contract: Contract, scenes: tuple[str, ...], graphs: list[OpenGraph], scale: str
    ) -> None:
        self.bundle = bundle
        self.contract = contract
        self.scenes = scenes
        self.scale = check_scale(scale)
        self._graphs = graphs
        self.backend_name = ", ".join(dict.fromkeys(graph.backend.name for graph in graphs))
        levels = bundle.manifest.checkpoint.score_levels
        self._range = (min(levels), max(levels))
        label = bundle.manifest.checkpoint.label
        self._labels = (label,) if label else ()
        OPENCV.hold()
        self._release = weakref.finalize(self, OPENCV.release)  # once: by `close`, or when nobody has it any more
        self._release.atexit = False

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value of the scale that the scores are on."""
        return self._range if self.scale == "checkpoint" else (0.0, 100.0)

    @property
    def graphs(self) -> tuple[OpenGraph, ...]:
        """The opened graphs, for those who measure or inspect them; scoring goes through the panel."""
        return tuple(self._graphs)

    def prepare(self, image: Image) -> dict[str, Prepared]:
        """Crops for each scene; scenes with the same working size share one object.

        Raises:
            InputError: the image cannot be used.
        """
        with BUDGET.hold(1):
            return prepare_scenes(image, self.contract, self.scenes)

    def results(
        self, images: Iterable[Image], batch: int = 8, decode_threads: int | None = None
    ) -> Generator[Result, None, None]:
        """Score images in order, ``batch`` at a time; an image that fails gives a result with its error.

        The next images are prepared while the graph runs. At most ``batch`` plus the larger of ``batch`` and
        ``decode_threads`` images are taken before their results are asked for; for each the crops are held (147 KiB a
        crop), and each decoding thread holds one file and its pixels. The results are bit for bit those without
        threads.

        Args:
            images: taken one by one by the thread that asks for the results; may be slow or endless.
            batch: images inferred together, held within the graph's own range.
            decode_threads: 0 for none: an image is taken only when its batch is due (a live camera); one a processor,
                at most 4, when None.

        Raises:
            UsageError: a batch of less than one, or the process was forked. EnvironmentFault: the backend failed. What
            ``images`` raises comes after the results before it.
        """
        if batch < 1:
            raise UsageError(f"a batch of {batch}; at least 1 is needed")
        threads = decode_threads_of(decode_threads)
        ready = prefetched(self._prepared, iter(images), threads, max(batch, threads))
        with contextlib.closing(ready):
            for chunk in chunked(ready, batch):
                yield from self._chunk(chunk, batch)

    def score_prepared(
        self, prepared: Sequence[dict[str, Prepared]], batch: int = 8
    ) -> list[dict[str, Score] | GammaError]:
        """Score images that went through `prepare`; each distinct set of crops goes through each graph once."""
        rows: dict[tuple[int, int], _Row] = {}
        for index, graph in enumerate(self._graphs):
            wanted = {id(p[s]): p[s] for p in prepared for s in self.scenes if s in graph.entry.scenes}
            found = graph.run([item.graph_input for item in wanted.values()], batch)
            rows |= {(index, key): row for key, row in zip(wanted, found, strict=True)}
        return [self._collect(one, rows) for one in prepared]

    def close(self) -> None:
        """Free the graphs; calling it twice is fine."""
        for graph in self._graphs:
            graph.backend.close()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepared(self, image: Image) -> dict[str, Prepared] | GammaError:
        try:
            return self.prepare(image)
        except InputError as error:
            return without_frames(error)

    def _chunk(self, chunk: list[tuple[Image, dict[str, Prepared] | GammaError]], batch: int) -> list[Result]:
        scored = iter(self.score_prepared([item for _, item in chunk if isinstance(item, dict)], batch))
        results = []
        for image, item in chunk:
            path = os.fspath(image) if isinstance(image, str | os.PathLike) else None
            outcome = item if isinstance(item, GammaError) else next(scored)
            if isinstance(outcome, GammaError):
                results.append(Result(path, (), outcome))
            else:
                results.append(Result(path, tuple(dataclasses.replace(outcome[s], path=path) for s in self.scenes)))
        return results

    def _collect(
        self, prepared: dict[str, Prepared], rows: dict[tuple[int, int], _Row]
    ) -> dict[str, Score] | GammaError:
        scores: dict[str, Score] = {}
        for scene in self.scenes:
            index = next(i for i, graph in enumerate(self._graphs) if scene in graph.entry.scenes)
            row = rows[index, id(prepared[scene])]
            if isinstance(row, GammaError):
                return row
            column = self._graphs[index].column(scene)
            used = self._graphs[index].backend.name
            scores[scene] = self._score(scene, prepared[scene], float(row[0][column]), row[1][:, column], used)
        return scores

    def _score(self, scene: str, prepared: Prepared, value: float, crop_scores: Floats, backend: str) -> Score:
        crops = tuple(float(crop) for crop in crop_scores)
        flags = self._labels + prepared.flags
        sha = self.bundle.sha256
        return Score(scene, value, self._range, "checkpoint", crops, prepared.working_size, flags, backend, sha).scaled(
            self.scale
        )


class Scorer:
    """Scores images in one scene. Made by `load`; also a context manager.

    Example:
        >>> with load("photo.gamma") as scorer:
        ...     scorer.score("photo.jpg").value
    """

    def __init__(self, panel: Panel) -> None:
        self.panel = panel

    @property
    def scene(self) -> str:
        """The scene's name."""
        return self.panel.scenes[0]

    @property
    def backend_name(self) -> str:
        """The library that runs the graph; for ``auto``, the one that was chosen."""
        return self.panel.backend_name

    def prepare(self, image: Image) -> Prepared:
        """Decode, reduce and cut one image.

        Raises:
            InputError: the image cannot be used.
        """
        return self.panel.prepare(image)[self.scene]

    def score(self, image: Image) -> Score:
        """Score one image: a path, encoded bytes, or a uint8 RGB array ``[H, W, 3]``, on the host or on the GPU.

        Raises:
            InputError: the image cannot be used, or its score is not finite. EnvironmentFault: the backend failed.
        """
        (result,) = self.panel.results([image], batch=1, decode_threads=0)
        if result.error is not None:
            raise result.error
        return result.scores[0]

    def score_prepared(self, prepared: Prepared) -> Score:
        """Score crops that `prepare` made.

        Raises:
            InputError: crops of another shape, or the score is not finite. EnvironmentFault: the backend failed.
        """
        (outcome,) = self.panel.score_prepared([{self.scene: prepared}], batch=1)
        if isinstance(outcome, GammaError):
            raise outcome
        return outcome[self.scene]

    @overload
    def score_many(
        self,
        images: Iterable[Image],
        batch: int = 8,
        on_error: Literal["raise"] = "raise",
        decode_threads: int | None = None,
    ) -> Iterator[Score]: ...

    @overload
    def score_many(
        self, images: Iterable[Image], batch: int = 8, *, on_error: Literal["yield"], decode_threads: int | None = None
    ) -> Iterator[Score | GammaError]: ...

    def score_many(
        self,
        images: Iterable[Image],
        batch: int = 8,
        on_error: Literal["raise", "yield"] = "raise",
        decode_threads: int | None = None,
    ) -> Iterator[Score | GammaError]:
        """Score images in order, lazily, ``batch`` at a time; the next ones are prepared while the graph runs.

        With a graph of batch 1 the scores are bit-identical to one-by-one. With a larger one they differ by rounding:
        the libraries do not add up in the same order at every place of a batch.

        Args:
            images: paths, encoded bytes or arrays.
            batch: images inferred together, held within the graph's own range.
            on_error: ``raise`` stops at the first bad image; ``yield`` gives its error in its place and goes on.
            decode_threads: as for `Panel.results`, which also says what is held in memory; 0 for a live source.

        Raises:
            InputError: a bad image, with ``on_error="raise"``. EnvironmentFault: the backend failed.
        """
        if on_error not in ("raise", "yield"):
            raise UsageError(f"on_error is 'raise' or 'yield', not {on_error!r}")
        with contextlib.closing(self.panel.results(images, batch, decode_threads)) as results:
            for result in results:
                if result.error is None:
                    yield result.scores[0]
                elif on_error == "raise":
                    raise result.error
                else:
                    yield result.error

    def close(self) -> None:
        """Free the graph; calling it twice is fine."""
        self.panel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    bundle: str | os.PathLike[str] | Bundle,
    scene: str | None = None,
    backend: str = "auto",
    precision: str | None = None,
    small: str = "refuse",
    threads: int | None = None,
    scale: str = "checkpoint",
    strict: bool = False,
    engine_dir: str | os.PathLike[str] | None = None,
    engine: EngineUse | None = None,
) -> Scorer:
    """Open a bundle for one scene.

    Args:
        bundle: the folder, or an opened bundle.
        scene: the bundle's default scene when None.
        backend: ``onnxruntime``, ``openvino``, or ``auto``: the first of these two that can run the graph
            (`backend_name`); ``tensorrt`` or ``tensorrt-rtx``: an engine that gamma-build made for this GPU.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8`` where the bundle has several; its first when None.
        small: ``refuse`` images under 224 pixels, ``resize`` (enlarge and flag) them, or ``pad`` (mirror and flag).
        threads: CPU threads of one inference; one for each physical core that may be used when None.
        scale: ``checkpoint`` or ``0-100``.
        strict: refuse files with several pictures (animations, pages) instead of scoring the first one.
        engine_dir: where the engines lie; in the bundle when None.
        engine: more about engines, `gamma_runtime.engines.EngineUse`; the CPU backends ignore it.

    Raises:
        InputError: no such bundle, scene or precision. IntegrityError: a file of the bundle changed.
        EnvironmentFault: the backend's library is missing, or no engine fits. UsageError: an option's value is unknown.

    Example:
        >>> scorer = load("photo.gamma", scene="natural-quality", backend="openvino", threads=2)
        >>> scorer.score("photo.jpg").value
    """
    use = engine or EngineUse()
    if engine_dir is not None:
        use = dataclasses.replace(use, engine_dir=Path(engine_dir))
    scenes = () if scene is None else (scene,)
    return Scorer(load_panel(bundle, scenes, backend, precision, small, threads, scale, strict, use))


def load_panel(
    bundle: str | os.PathLike[str] | Bundle,
    scenes: Sequence[str] = (),
    backend: str = "auto",
    precision: str | None = None,
    small: str = "refuse",
    threads: int | None = None,
    scale: str = "checkpoint",
    strict: bool = False,
    engine: EngineUse | None = None,
) -> Panel:
    """Open a bundle for several scenes (the default one when empty); the other arguments are those of `load`.

    Raises:
        GammaError: as `load`.
    """
    check_scale(scale)
    use = engine or EngineUse()
    use.check()
    if small not in SMALL:
        raise UsageError(f"small is one of {', '.join(SMALL)}, not {small!r}")
    rules = {"small": small, "frames": FRAMES[strict]}
    if isinstance(bundle, Bundle):
        return _panel(bundle, scenes, backend, precision, rules, threads, scale, use)
    opened = open_bundle(Path(bundle))
    for _ in range(_GENERATIONS):
        try:
            return _panel(opened, scenes, backend, precision, rules, threads, scale, use)
        except GammaError:
            newer = open_bundle(opened.folder)
            if newer.sha256 == opened.sha256:
                raise
            opened = newer  # exported anew, twice, since we read the manifest: its files are gone
    return _panel(opened, scenes, backend, precision, rules, threads, scale, use)


def _panel(
    opened: Bundle,
    scenes: Sequence[str],
    backend: str,
    precision: str | None,
    rules: dict[str, str],
    threads: int | None,
    scale: str,
    use: EngineUse,
) -> Panel:
    contract = dataclasses.replace(opened.contract(), small=rules["small"], frames=rules["frames"])
    wanted = tuple(dict.fromkeys(scenes)) or (opened.manifest.default_scene,)
    graphs = open_graphs(opened, wanted, precision, backend, threads, use)
    try:
        return Panel(opened, contract, wanted, graphs, scale)
    except BaseException:
        for graph in graphs:
            graph.backend.close()
        raise
