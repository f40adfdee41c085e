"""Opening the right graphs of a bundle, and running lists of images through one in the batches it allows."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from gamma_runtime import backends
from gamma_runtime.backends.base import Floats, NonFiniteError
from gamma_runtime.cuda.arrays import DeviceCrops
from gamma_runtime.decode import Pixels
from gamma_runtime.errors import GammaError, InputError, IntegrityError, without_frames

if TYPE_CHECKING:
    from gamma_runtime.backends.base import Backend
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.engines.use import EngineUse
    from gamma_runtime.manifest import GraphEntry

__all__ = ["OpenGraph", "open_graphs", "pick"]


def open_graphs(
    bundle: Bundle, scenes: Sequence[str], precision: str | None, backend: str, threads: int | None, use: EngineUse
) -> list[OpenGraph]:
    """Open what is needed to score the scenes; on failure nothing stays open.

    Raises:
        GammaError: as `pick`, `OpenGraph.open` and `gamma_runtime.engines.run.open_engines`.
    """
    graphs: list[OpenGraph] = []
    with contextlib.ExitStack() as undo:
        if backend in backends.ENGINES:
            from gamma_runtime.engines.run import open_engines  # with all that builds engines

            backends.choose(backend, precision or "")
            for entry, compiled in open_engines(bundle, scenes, precision, backend, use):
                undo.callback(compiled.close)
                graphs.append(OpenGraph.checked(bundle, entry, compiled))
        else:
            for entry in pick(bundle, scenes, precision):
                graphs.append(OpenGraph.open(bundle, entry, backend, threads))
                undo.callback(graphs[-1].backend.close)
        undo.pop_all()
    return graphs


def pick(bundle: Bundle, scenes: Sequence[str], precision: str | None) -> list[GraphEntry]:
    """The graphs to open for some scenes: the joint one if it scores all of several, else each scene's own.

    The joint graph holds one copy of the weights and needs one pass for all scenes. Where the bundle has both spellings
    of attention, the decomposed one is taken: every version of the CPU backends reads it.

    Raises:
        InputError: no graph for a scene, or not in that precision.
    """
    graphs = sorted(bundle.manifest.graphs, key=lambda g: g.attention != "decomposed")
    fitting = [g for g in graphs if precision in (None, g.precision) and g.target != "tensorrt"]
    if len(scenes) > 1:
        joint = [g for g in fitting if set(scenes) <= set(g.scenes)]
        if joint:
            return joint[:1]
    chosen: list[GraphEntry] = []
    for scene in scenes:
        first = bundle.graph(scene, precision)  # raises with the list of what there is
        own = [g for g in fitting if scene in g.scenes and len(g.scenes) == len(first.scenes)]
        chosen.append(next((g for g in own if g.precision == first.precision), first))
    return [graph for index, graph in enumerate(chosen) if graph not in chosen[:index]]


@dataclasses.dataclass(frozen=True)
class OpenGraph:
    """A compiled graph with its manifest entry.

    ``crops_vary``: images have different numbers of crops; the graph takes one, so the batch is of crops, and the mean
    over an image's crops is taken here (in float64, then rounded to float32).
    """

    entry: GraphEntry
    backend: Backend
    crops_vary: bool = False

    @classmethod
    def open(cls, bundle: Bundle, entry: GraphEntry, backend: str, threads: int | None) -> OpenGraph:
        """Check the files' hashes, compile, and compare the graph with what the manifest says.

        Raises:
            IntegrityError: a file changed, or the graph is not the one described. GammaError: it does not compile.
        """
        graph = bundle.graph_file(entry)
        compiled = backends.create(backends.choose(backend, entry.precision), graph, threads=threads)
        return cls.checked(bundle, entry, compiled)

    @classmethod
    def checked(cls, bundle: Bundle, entry: GraphEntry, compiled: Backend) -> OpenGraph:
        """Compare a compiled graph with what the manifest says; it is closed when it is another one.

        Raises:
            IntegrityError: it is not the one described.
        """
        crop = bundle.contract().crop
        wanted = crop.crops
        least, _, most = entry.batch
        io = compiled.io
        batch_fits = io.batch is None or (least == most == io.batch)
        shapes_fit = {io.crops, entry.crops} == {wanted} and io.frame == crop.frame
        if not batch_fits or not shapes_fit or (io.scenes or 1) != len(entry.scenes):
            compiled.close()
            raise IntegrityError(
                f"{bundle.folder / entry.onnx}: batch {io.batch}, {io.crops} crops, {io.scenes or 1} scenes; "
                f"the manifest says batch {entry.batch}, {wanted} crops, {len(entry.scenes)} scenes"
                + (f"; frames {io.frame} and {crop.frame}" if io.frame != crop.frame else "")
            )
        return cls(entry, compiled, crop.varies)

    def run(self, images: Sequence[Pixels], batch: int) -> list[tuple[Floats, Floats] | GammaError]:
        """Score images, each uint8 ``[C, 224, 224, 3]``, or ``[H, W, 3]`` where the graph takes frames.

        The batch is held within the graph's range; a last short one is filled up by repeating its last image.

        Returns:
            For each image its scores ``[K]`` and crop scores ``[C, K]`` (K is 1 for one scene), or its error.

        Raises:
            EnvironmentFault: no memory, or the library failed.
        """
        if not self.crops_vary:
            return self._run_all(images, batch)
        most = self.entry.batch[2]  # one image alone has crops enough for a batch
        found = iter(self._run_all([crop for crops in images for crop in _one_by_one(crops)], most))
        return [_mean_of(list(itertools.islice(found, len(crops)))) for crops in images]

    def _run_all(self, images: Sequence[Pixels], batch: int) -> list[tuple[Floats, Floats] | GammaError]:
        least, _, most = self.entry.batch
        size = min(max(batch, least), most)
        results: list[tuple[Floats, Floats] | GammaError] = []
        for start in range(0, len(images), size):
            results += self._run_batch(list(images[start : start + size]))
        return results

    def _run_batch(self, images: list[Pixels]) -> list[tuple[Floats, Floats] | GammaError]:
        filled = images + [images[-1]] * (self.entry.batch[0] - len(images))
        try:
            outputs = self.backend.infer_images(filled)
        except NonFiniteError as error:
            if len(images) == 1:
                return [without_frames(error)]
            return [result for one in images for result in self._run_batch([one])]  # find out which image it is
        score = outputs.score.reshape(len(filled), -1)
        crop_scores = outputs.crop_scores.reshape(len(filled), self.backend.io.crops, -1)
        return [(score[i], crop_scores[i]) for i in range(len(images))]

    def column(self, scene: str) -> int:
        """Where a scene's score lies in the last dimension.

        Raises:
            InputError: the graph does not score it.
        """
        if scene not in self.entry.scenes:
            raise InputError(
                f"{self.entry.name}: does not score {scene!r}", hint=f"it has {', '.join(self.entry.scenes)}"
            )
        return self.entry.scenes.index(scene)


def _one_by_one(crops: Pixels) -> list[Pixels]:
    """Each crop of an image as an image of one crop; those on the device stay there."""
    some: object = crops
    if isinstance(some, DeviceCrops):
        return [cast("Pixels", one) for one in some.split()]
    return [crop[None] for crop in crops]


def _mean_of(rows: list[tuple[Floats, Floats] | GammaError]) -> tuple[Floats, Floats] | GammaError:
    """One image's result from its crops', each scored alone; the first error is the image's."""
    scored: list[Floats] = []
    for row in rows:
        if isinstance(row, GammaError):
            return row
        scored.append(row[1][0])
    crop_scores = np.stack(scored)
    return crop_scores.mean(axis=0, dtype=np.float64).astype(np.float32), crop_scores
