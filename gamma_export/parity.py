"""Does a graph score like the PyTorch module? Measured in score units on the same crops of real photos."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.errors import InputError
from gamma_runtime.steps import Steps, Tick

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_runtime.backends.base import Backend
    from gamma_runtime.contract import CropPolicy
    from gamma_runtime.manifest import GraphEntry, Parity
    from gamma_training.model import Gamma

__all__ = [
    "MIN_SRCC",
    "Reference",
    "Subjects",
    "compare",
    "graph_scores",
    "measure",
    "measure_open",
    "photos_in",
    "reference",
    "share_for",
    "torch_scores",
    "torch_threads",
    "verification_crops",
    "verification_subjects",
]

Pixels: TypeAlias = NDArray[np.uint8]
Scores: TypeAlias = NDArray[np.float64]

MIN_SRCC = 0.99
SRCC_FROM = 16  # crops; rank correlation of fewer says little
SCENE_GRAPH_CROPS = 4
_TORCH_BATCH = 8
_MAX_FRAMES = 16  # some hundred megabytes of 4K
_MEAN_TOLERANCE = 1e-5  # float32 mean of up to 64 crops


@dataclasses.dataclass(frozen=True)
class Subjects:
    """What a verification scores: uint8 crops [P, 224, 224, 3].

    ``frames`` uint8 [F, H, W, 3] where the graph takes frames; the crops are then all of theirs, in order.
    """

    crops: Pixels
    frames: Pixels | None = None

    @property
    def inputs(self) -> Pixels:
        """What the graph is fed: the frames, or the crops."""
        return self.crops if self.frames is None else self.frames

    def first(self, crops: int) -> Subjects:
        """The first crops; of whole frames, two at least (one for each end of a ranged batch)."""
        if self.frames is None:
            return Subjects(self.crops[:crops])
        each = len(self.crops) // len(self.frames)
        frames = max(2, -(-crops // each))
        return Subjects(self.crops[: frames * each], self.frames[:frames])


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the PyTorch module says: scores [P, K] of the subjects' P crops in the named scenes."""

    subjects: Subjects
    scores: Scores
    scenes: tuple[str, ...]

    @property
    def crops(self) -> Pixels:
        """The subjects' crops."""
        return self.subjects.crops

    def column(self, scene: str) -> Scores:
        """One scene's scores [P]."""
        return self.scores[:, self.scenes.index(scene)]


def photos_in(folder: Path | None) -> list[Path]:
    """The images of a folder (recursively, sorted), or the packaged photos for None.

    Raises:
        InputError: no such folder, or no image in it.
    """
    from gamma_export.photos import packaged_photos
    from gamma_runtime.commands.run import expand

    if folder is None:
        return packaged_photos()
    found = []
    for name, error in expand([str(folder)]):
        if error is not None:
            raise error
        found.append(Path(name))
    return found


def verification_crops(photos: Sequence[Path], steps: Steps | None = None) -> Pixels:
    """Centre crops, at the photos' own pixels, of each photo and two degraded copies: uint8 [3 * photos, 224, 224, 3].

    Raises:
        InputError: no photo, or one that cannot be used.
    """
    from gamma_export.photos import VERIFICATION_COPIES, verification_set
    from gamma_runtime.contract import Contract, CropPolicy
    from gamma_runtime.crops import prepare

    contract = Contract(short_sides={"any": None}, crop=CropPolicy(kind="centre"))
    total = len(photos) * (1 + len(VERIFICATION_COPIES))
    crops: list[Pixels] = []
    with (steps or Steps()).step(f"{len(photos)} photos, two degraded copies of each", total) as tick:
        for name, pixels in verification_set(photos):
            try:
                crops.append(prepare(pixels, contract, "any").crops[0])
            except InputError as error:
                raise InputError(f"{name}: {error.message}", hint="leave it out of --photos") from error
            tick(1)
    if not crops:
        raise InputError("no photos to verify with", hint="--photos FOLDER, or leave it out for the packaged ones")
    return np.stack(crops)


def verification_subjects(photos: Sequence[Path], crop: CropPolicy, steps: Steps | None = None) -> Subjects:
    """`verification_crops`, or for a policy with a frame that many crops of frames.

    A frame is a photo (or a degraded copy) at its own pixels, centred, cut or mirrored at its edges to the frame's
    size; photos are taken evenly from all of them. Every crop of every frame is compared, so nothing is padded.

    Raises:
        InputError: as `verification_crops`.
    """
    if crop.frame is None:
        return Subjects(verification_crops(photos, steps))
    from gamma_export.photos import VERIFICATION_COPIES, verification_set
    from gamma_runtime.contract import CROP
    from gamma_runtime.crops import mirrored, positions

    total = len(photos) * (1 + len(VERIFICATION_COPIES))
    wanted = max(2, min(_MAX_FRAMES, -(-total // crop.crops)))
    chosen = {index * total // wanted for index in range(wanted)}
    frames: list[Pixels] = []
    with (steps or Steps()).step(f"{wanted} frames of {crop.width}x{crop.height} from photos", total) as tick:
        for index, (_, pixels) in enumerate(verification_set(photos)):
            if index in chosen:
                frames.append(mirrored(pixels, crop.width, crop.height))
            tick(1)
    places = positions(crop, crop.width, crop.height)
    crops = [frame[y : y + CROP, x : x + CROP] for frame in frames for y, x in places]
    return Subjects(np.stack(crops), np.stack(frames))


def reference(
    model: Gamma,
    text: Tensor,
    scenes: Sequence[str],
    subjects: Subjects,
    steps: Steps,
    threads: int | None = None,
) -> Reference:
    """Score the crops with PyTorch in fp32, ``text`` [5 * K, embed] being the scenes' features in order.

    Raises:
        InputError: a score is NaN or infinite.
    """
    crops = subjects.crops
    with steps.step(f"PyTorch reference, {len(crops)} crops", len(crops)) as tick:
        scores = torch_scores(model, text, crops, threads, tick)
    if bad := int((~np.isfinite(scores)).sum()):
        raise InputError(f"the checkpoint gives non-finite scores ({bad} of {scores.size})", hint="check its weights")
    return Reference(subjects, scores, tuple(scenes))


def torch_scores(model: Gamma, text: Tensor, crops: Pixels, threads: int | None, tick: Tick) -> Scores:
    """PyTorch's fp32 scores float64 [P, K] of uint8 crops [P, 224, 224, 3], a few at a time to bound the memory."""
    import torch

    made = []
    with torch.inference_mode(), torch_threads(threads):
        for start in range(0, len(crops), _TORCH_BATCH):
            part = crops[start : start + _TORCH_BATCH]
            made.append(model.score(torch.from_numpy(part), text).numpy().astype(np.float64))
            tick(len(part))
    return np.concatenate(made)


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """PyTorch with so many threads for a while; None leaves its own choice."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def graph_scores(backend: Backend, batch: int, inputs: Pixels, steps: Steps, label: str) -> Scores:
    """Crop scores [P, K] of single crops [P, 224, 224, 3], packed into the graph's [N, C], or of frames [F, H, W, 3].

    Raises:
        InputError: ``score`` is not the mean of ``crop_scores``.
    """
    io = backend.io
    per_run, each = (batch, io.crops) if io.frame else (batch * io.crops, 1)  # inputs a call; crops an input
    made = []
    with steps.step(label, len(inputs) * each) as tick:
        for start in range(0, len(inputs), per_run):
            part = inputs[start : start + per_run]
            filled = np.concatenate([part, np.repeat(part[-1:], per_run - len(part), axis=0)])
            outputs = backend.infer(filled.reshape(batch, *io.image_shape))
            if np.abs(outputs.score - outputs.crop_scores.mean(axis=1)).max() > _MEAN_TOLERANCE:
                raise InputError(f"{backend.graph}: score is not the mean of crop_scores")
            made.append(outputs.crop_scores.reshape(per_run * each, -1)[: len(part) * each])
            tick(len(part) * each)
    return np.concatenate(made).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two lists of scores compared; None where the statistic does not exist."""

    max_abs: float
    mean_abs: float
    score_std: float
    srcc: float | None
    order_flips: float | None


def compare(wanted: Scores, found: Scores) -> Difference:
    """Differences [P] against [P], in score units; SRCC from 16 values on; order flips are the share of pairs."""
    from scipy.stats import spearmanr

    gap = np.abs(wanted - found)
    upper = np.triu_indices(len(wanted), k=1)
    orders = [np.sign(v[:, None] - v[None, :])[upper] for v in (wanted, found)]
    flips = float(np.mean(orders[0] * orders[1] < 0)) if len(upper[0]) else None
    ranked = len(wanted) >= SRCC_FROM and np.ptp(wanted) > 0 and np.ptp(found) > 0
    srcc = float(spearmanr(wanted, found).statistic) if ranked else None
    return Difference(float(gap.max()), float(gap.mean()), float(wanted.std()), srcc, flips)


def share_for(entry: GraphEntry, graphs: Sequence[GraphEntry], wanted: Reference) -> Reference:
    """The crops that a graph is measured on: all for the widest graph, four for a scene's graph beside a joint one.

    Graphs of one precision share their weights, so beside a fully checked one only the text matrix is left to check.
    """
    widest = max(len(g.scenes) for g in graphs if g.precision == entry.precision)
    crops = SCENE_GRAPH_CROPS if len(entry.scenes) < widest else len(wanted.crops)
    subjects = wanted.subjects.first(crops)
    return Reference(subjects, wanted.scores[: len(subjects.crops)], wanted.scenes)


def measure(
    entry: GraphEntry, path: Path, backend_name: str, wanted: Reference, gate: float, steps: Steps, threads: int | None
) -> list[Parity]:
    """Parity of one graph on one backend, a row for each of its scenes.

    Where the batch is a range, half of the inputs go through its smallest size and half through its largest.

    Raises:
        EnvironmentFault: the backend is not usable. InputError: it refuses the graph.
    """
    from gamma_runtime import backends

    with backends.create(backend_name, path, threads=threads) as backend:
        return measure_open(entry, backend, wanted, gate, steps)


def measure_open(entry: GraphEntry, backend: Backend, wanted: Reference, gate: float, steps: Steps) -> list[Parity]:
    """Like `measure`, of a graph or engine that is open already.

    Raises:
        EnvironmentFault: the library failed. InputError: a non-finite score.
    """
    from gamma_runtime.backends import ENGINES
    from gamma_runtime.manifest import Parity

    label = f"{entry.name} {entry.precision}{' attention op' if entry.attention == 'op' else ''} on {backend.name}"
    sizes = sorted({entry.batch[0], entry.batch[2]})
    parts = zip(sizes, np.array_split(wanted.subjects.inputs, len(sizes)), strict=True)
    found = np.concatenate(
        [
            graph_scores(backend, n, part, steps, f"{label}, {len(part)} {backend.io.input}, batch {n}")
            for n, part in parts
        ]
    )
    rows = []
    for index, scene in enumerate(entry.scenes):
        difference = compare(wanted.column(scene), found[:, index])
        passed = difference.max_abs <= gate and (difference.srcc is None or difference.srcc >= MIN_SRCC)
        rows.append(
            Parity(
                graph=entry.name,
                scene=scene,
                precision=entry.precision,
                backend=backend.name,
                backend_version=backend.version,
                crops=len(found),
                gate_max=gate,
                passed=passed,
                note=None if backend.name in ENGINES else _note(entry.precision),
                **dataclasses.asdict(difference),
            )
        )
    return rows


def _note(precision: str) -> str | None:
    return None if precision == "fp32" else f"emulated: a CPU computes the {precision} graph partly in fp32"


def table(rows: Sequence[Parity]) -> str:
    """Parity rows for people: differences in score units and as a share of the scores' standard deviation."""
    from gamma_runtime.tables import text_table

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    titles = (
        "graph",
        "scene",
        "precision",
        "backend",
        "crops",
        "max |diff|",
        "mean |diff|",
        "of std",
        "SRCC",
        "flips",
        "gate",
    )
    lines = [
        (
            row.graph,
            row.scene,
            row.precision,
            row.backend,
            str(row.crops),
            f"{row.max_abs:.1e}",
            f"{row.mean_abs:.1e}",
            f"{row.max_abs / row.score_std:.2%}" if row.score_std > 0 else "-",
            number(row.srcc, ".4f"),
            number(row.order_flips, ".2%"),
            f"{'pass' if row.passed else 'FAIL'} <= {row.gate_max:g}",
        )
        for row in rows
    ]
    notes = sorted({row.note for row in rows if row.note})
    return text_table(titles, lines) + "".join(f"\n{note}" for note in notes)
