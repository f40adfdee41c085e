"""Does a graph score like the PyTorch module? Measured in score units on the same crops of real photos."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_calib.compare import Gate, Scores, compare, graph_scores
from gamma_runtime.cli import printable
from gamma_runtime.errors import InputError
from gamma_runtime.steps import Steps, Tick

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_runtime.backends.base import Backend
    from gamma_runtime.contract import CropPolicy
    from gamma_runtime.manifest import GraphEntry, Parity
    from gamma_training.model import Gamma

__all__ = [
    "Reference",
    "Subjects",
    "centre_crops",
    "compare",
    "gate_for",
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

SCENE_GRAPH_CROPS = 4
_TORCH_BATCH = 8
_WORST = 3
_MAX_FRAMES = 16  # some hundred megabytes of 4K


@dataclasses.dataclass(frozen=True)
class Subjects:
    """What a verification scores: uint8 crops [P, 224, 224, 3].

    ``frames`` uint8 [F, H, W, 3] where the graph takes frames; the crops are then all of theirs, in order. ``names``:
    of the photos (and their degraded copies), one for each of `inputs`.
    """

    crops: Pixels
    frames: Pixels | None = None
    names: tuple[str, ...] = ()

    @property
    def inputs(self) -> Pixels:
        """What the graph is fed: the frames, or the crops."""
        return self.crops if self.frames is None else self.frames

    def first(self, crops: int) -> Subjects:
        """The first crops; of whole frames, two at least (one for each end of a ranged batch)."""
        if self.frames is None:
            return Subjects(self.crops[:crops], names=self.names[:crops])
        each = len(self.crops) // len(self.frames)
        frames = max(2, -(-crops // each))
        return Subjects(self.crops[: frames * each], self.frames[:frames], self.names[:frames])


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
    """The crops of `centre_crops`: uint8 [3 * photos, 224, 224, 3].

    Raises:
        InputError: as there.
    """
    return centre_crops(photos, steps).crops


def centre_crops(photos: Sequence[Path], steps: Steps | None = None) -> Subjects:
    """Centre crops, at the photos' own pixels, of each photo and two degraded copies, [3 * photos, 224, 224, 3].

    Raises:
        InputError: no photo, or one that cannot be used.
    """
    from gamma_export.photos import VERIFICATION_COPIES, verification_set
    from gamma_runtime.contract import Contract, CropPolicy
    from gamma_runtime.crops import prepare

    contract = Contract(short_sides={"any": None}, crop=CropPolicy(kind="centre"))
    total = len(photos) * (1 + len(VERIFICATION_COPIES))
    crops: list[Pixels] = []
    names: list[str] = []
    with (steps or Steps()).step(f"{len(photos)} photos, two degraded copies of each", total) as tick:
        for name, pixels in verification_set(photos):
            names.append(name)
            try:
                crops.append(prepare(pixels, contract, "any").crops[0])
            except InputError as error:
                raise InputError(f"{name}: {error.message}", hint="leave it out of --photos") from error
            tick(1)
    if not crops:
        raise InputError("no photos to verify with", hint="--photos FOLDER, or leave it out for the packaged ones")
    return Subjects(np.stack(crops), names=tuple(names))


def verification_subjects(photos: Sequence[Path], crop: CropPolicy, steps: Steps | None = None) -> Subjects:
    """`verification_crops`, or for a policy with a frame that many crops of frames.

    A frame is a photo (or a degraded copy) at its own pixels, centred, cut or mirrored at its edges to the frame's
    size; photos are taken evenly from all of them. Every crop of every frame is compared, so nothing is padded.

    Raises:
        InputError: as `verification_crops`.
    """
    if crop.frame is None:
        return centre_crops(photos, steps)
    from gamma_export.photos import VERIFICATION_COPIES, verification_set
    from gamma_runtime.contract import CROP
    from gamma_runtime.crops import mirrored, positions

    total = len(photos) * (1 + len(VERIFICATION_COPIES))
    wanted = max(2, min(_MAX_FRAMES, -(-total // crop.crops)))
    chosen = {index * total // wanted for index in range(wanted)}
    frames: list[Pixels] = []
    names: list[str] = []
    with (steps or Steps()).step(f"{wanted} frames of {crop.width}x{crop.height} from photos", total) as tick:
        for index, (name, pixels) in enumerate(verification_set(photos)):
            if index in chosen:
                names.append(name)
                frames.append(mirrored(pixels, crop.width, crop.height))
            tick(1)
    places = positions(crop, crop.width, crop.height)
    crops = [frame[y : y + CROP, x : x + CROP] for frame in frames for y, x in places]
    return Subjects(np.stack(crops), np.stack(frames), tuple(names))


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

    kind = f"{entry.precision}{' for TensorRT' if entry.target == 'tensorrt' else ''}"
    label = f"{entry.name} {kind}{' attention op' if entry.attention == 'op' else ''} on {backend.name}"
    sizes = sorted({entry.batch[0], entry.batch[2]})
    parts = zip(sizes, np.array_split(wanted.subjects.inputs, len(sizes)), strict=True)
    found = np.concatenate(
        [
            graph_scores(backend, n, part, steps, f"{label}, {len(part)} {backend.io.input}, batch {n}")
            for n, part in parts
        ]
    )
    rows, limit = [], gate_for(entry.precision, gate)
    for index, scene in enumerate(entry.scenes):
        difference = compare(wanted.column(scene), found[:, index])
        rows.append(
            Parity(
                graph=entry.name,
                scene=scene,
                precision=entry.precision,
                target=entry.target,
                backend=backend.name,
                backend_version=backend.version,
                crops=len(found),
                gate_max=limit.max_abs,
                gate_mean=limit.mean_abs,
                passed=limit.passed(difference),
                worst=_worst(wanted, np.abs(wanted.column(scene) - found[:, index])),
                note=None if backend.name in ENGINES else _note(entry),
                **dataclasses.asdict(difference),
            )
        )
    return rows


def _worst(wanted: Reference, gap: Scores) -> dict[str, float]:
    """The three images with the largest |difference|; of a frame its worst crop counts."""
    names = wanted.subjects.names
    if not names:
        return {}
    each = gap.reshape(len(names), -1).max(axis=1)
    worst: dict[str, float] = {}
    for i in np.argsort(-each, kind="stable")[:_WORST]:
        worst.setdefault(printable(names[i])[:200], float(each[i]))  # photos of two folders may share a name
    return worst


def gate_for(precision: str, max_abs: float) -> Gate:
    """8 bits err a little everywhere: there the mean counts too, a quarter of the maximum (design.md section 2)."""
    return Gate(max_abs, max_abs / 4 if precision in ("int8", "fp8") else None)


def _note(entry: GraphEntry) -> str | None:
    if entry.target == "tensorrt":
        return "emulated: a CPU computes the int8 graph for TensorRT partly in fp32"
    if entry.precision in ("fp32", "int8"):
        return None
    return f"emulated: a CPU computes the {entry.precision} graph partly in fp32"


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
        "99 %",
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
            row.precision + (" trt" if row.target == "tensorrt" else ""),
            row.backend,
            str(row.crops),
            f"{row.max_abs:.1e}",
            number(row.p99_abs, ".1e"),
            f"{row.mean_abs:.1e}",
            f"{row.max_abs / row.score_std:.2%}" if row.score_std > 0 else "-",
            number(row.srcc, ".4f"),
            number(row.order_flips, ".2%"),
            f"{'pass' if row.passed else 'FAIL'} <= {row.gate_max:g}"
            + (f", mean {row.gate_mean:g}" if row.gate_mean is not None else ""),
        )
        for row in rows
    ]
    notes = sorted({row.note for row in rows if row.note})
    notes += [f"{row.graph}, {row.scene}: worst {_listed(row.worst)}" for row in rows if row.worst and not row.passed]
    return text_table(titles, lines) + "".join(f"\n{note}" for note in notes)


def _listed(worst: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {gap:.3f}" for name, gap in worst.items())
