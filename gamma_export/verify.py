"""Proof about a published bundle: golden images (no torch), and parity with the checkpoint it came from."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_export.parity import measure, measure_open, photos_in, reference, share_for, verification_subjects
from gamma_runtime.errors import IntegrityError, UsageError
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    from gamma_export.parity import Reference
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.engines.use import EngineUse
    from gamma_runtime.manifest import Parity
    from gamma_runtime.selftest import GoldenCheck
    from gamma_training.checkpoint import Checkpoint
    from gamma_training.scenes import Scene

__all__ = ["VerifyReport", "bundle_scenes", "gates", "same_checkpoint", "verify"]


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """``parity`` is empty when there was no checkpoint to compare with."""

    golden: tuple[GoldenCheck, ...]
    parity: tuple[Parity, ...]

    @property
    def passed(self) -> bool:
        """Every row met its gate."""
        return all(check.passed for check in self.golden) and all(row.passed for row in self.parity)


def verify(
    bundle: Bundle,
    *,
    against: Path | str | None = None,
    backend_names: tuple[str, ...] = (),
    photos: Path | None = None,
    gate: float | None = None,
    threads: int | None = None,
    steps: Steps | None = None,
    engine: EngineUse | None = None,
) -> VerifyReport:
    """Check every file, run the golden self-test, and with a checkpoint measure parity on real photos.

    Args:
        bundle: an opened bundle.
        against: the checkpoint it was exported from, or ``"demo"``; None runs the golden images only.
        backend_names: those installed that can run the precision, when empty.
        photos: folder; the packaged photos when None.
        gate: largest |difference| in score units instead of each precision's default.
        threads: CPU threads of an inference.
        steps: progress; silent when None.
        engine: for the backends ``tensorrt`` and ``tensorrt-rtx``, which verify the engines that fit this GPU.

    Raises:
        IntegrityError: a file of the bundle changed, or the checkpoint is another one.
        GammaError: a backend, photo or checkpoint cannot be used.
    """
    from gamma_export.plan import check_gate
    from gamma_runtime import backends
    from gamma_runtime.selftest import selftest

    check_gate(gate)
    if photos and not against:
        raise UsageError("--photos is for parity, which needs a checkpoint", hint="--against CHECKPOINT")
    steps = steps or Steps()
    limits = gates(bundle, gate)
    names = {precision: backends.usable(precision, backend_names) for precision in limits}
    with steps.step("hashes of all files"):
        bundle.check_files()
    golden: list[GoldenCheck] = []
    with steps.step("golden images"):
        for precision, limit in limits.items():
            golden += selftest(bundle, names[precision], limit, precision, threads, engine=engine)
    parity: list[Parity] = []
    if against:
        wanted = _reference(bundle, against, photos, threads, steps)
        for entry in bundle.manifest.graphs:
            share = share_for(entry, bundle.manifest.graphs, wanted)
            path = bundle.graph_file(entry)
            for name in names[entry.precision]:
                if name not in backends.ENGINES:
                    parity += measure(entry, path, name, share, limits[entry.precision], steps, threads)
        for precision, limit in limits.items():
            for name in names[precision]:
                if name in backends.ENGINES:
                    parity += _of_engines(bundle, precision, name, wanted, limit, steps, engine)
    return VerifyReport(tuple(golden), tuple(parity))


def _of_engines(
    bundle: Bundle,
    precision: str,
    name: str,
    wanted: Reference,
    limit: float,
    steps: Steps,
    engine: EngineUse | None,
) -> list[Parity]:
    """Parity of the engines that score this bundle's scenes here; each is measured on all crops."""
    from gamma_runtime.engines.run import open_engines
    from gamma_runtime.engines.use import EngineUse

    scenes = [scene.name for scene in bundle.manifest.scenes]
    parity: list[Parity] = []
    with contextlib.ExitStack() as stack:
        opened = open_engines(bundle, scenes, precision, name, engine or EngineUse())
        for _, backend in opened:
            stack.callback(backend.close)
        for entry, backend in opened:
            parity += measure_open(entry, backend, wanted, limit, steps)
    return parity


def gates(bundle: Bundle, gate: float | None) -> dict[str, float]:
    """Largest |difference| for each precision: the one given, else the one that the bundle was published under."""
    from gamma_runtime.selftest import GATES

    recorded = {row.precision: row.gate_max for row in bundle.manifest.parity}
    precisions = dict.fromkeys(graph.precision for graph in bundle.manifest.graphs)
    return {p: gate if gate is not None else recorded.get(p, GATES[p]) for p in precisions}


def _reference(
    bundle: Bundle, against: Path | str, photos: Path | None, threads: int | None, steps: Steps
) -> Reference:
    """The checkpoint's own scores of the verification crops, for the prompts that the manifest records."""
    from gamma_training.checkpoint import build_model
    from gamma_training.scenes import encode_scenes

    subjects = verification_subjects(photos_in(photos), bundle.contract().crop, steps)
    with steps.step("checkpoint"):
        model = build_model(same_checkpoint(bundle, against))
        scenes = bundle_scenes(bundle)
        text = encode_scenes(model, scenes)
    return reference(model, text, [scene.name for scene in scenes], subjects, steps, threads)


def bundle_scenes(bundle: Bundle) -> list[Scene]:
    """The scenes with the prompts that the manifest records."""
    from gamma_training.scenes import Scene

    return [Scene(s.name, tuple(s.prompts), s.kind, None) for s in bundle.manifest.scenes]


def same_checkpoint(bundle: Bundle, against: Path | str) -> Checkpoint:
    """The checkpoint that a bundle was exported from, or ``"demo"``.

    Raises:
        IntegrityError: another one. InputError: it cannot be read.
    """
    from gamma_export.demo import demo_checkpoint
    from gamma_export.exporter import DEMO
    from gamma_training.checkpoint import read_checkpoint

    info = bundle.manifest.checkpoint
    path = demo_checkpoint() if str(against) == DEMO else Path(against).expanduser()
    read = read_checkpoint(path, prompts=info.prompts)
    if read.sha256 != info.sha256:
        raise IntegrityError(
            f"{path}: sha256 {read.sha256[:16]}… is not this bundle's checkpoint ({info.file}, {info.sha256[:16]}…)",
            hint="--against the checkpoint that was exported"
            + ("; the demo checkpoint is another in every version" if str(against) == DEMO else ""),
        )
    return read
