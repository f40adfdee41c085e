"""Proof about a published bundle: golden images (no torch), and parity with the checkpoint it came from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_export.steps import Steps
from gamma_runtime.errors import IntegrityError

if TYPE_CHECKING:
    from gamma_runtime.bundle import Bundle
    from gamma_runtime.manifest import Parity
    from gamma_runtime.selftest import GoldenCheck
    from gamma_training.checkpoint import Checkpoint

__all__ = ["VerifyReport", "verify"]


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

    Raises:
        IntegrityError: a file of the bundle changed, or the checkpoint is another one.
        GammaError: a backend, photo or checkpoint cannot be used.
    """
    from gamma_runtime.selftest import selftest

    steps = steps or Steps()
    with steps.step("hashes of all files"):
        bundle.check_files()
    with steps.step("golden images"):
        precisions = dict.fromkeys(graph.precision for graph in bundle.manifest.graphs)
        golden = [c for p in precisions for c in selftest(bundle, backend_names or None, precision=p, threads=threads)]
    parity = _parity(bundle, against, backend_names, photos, gate, threads, steps) if against else []
    return VerifyReport(tuple(golden), tuple(parity))


def _parity(
    bundle: Bundle,
    against: Path | str,
    names: tuple[str, ...],
    photos: Path | None,
    gate: float | None,
    threads: int | None,
    steps: Steps,
) -> list[Parity]:
    from gamma_export.fold import encode_scenes
    from gamma_export.parity import measure, photos_in, reference, share_for, verification_crops
    from gamma_runtime.selftest import GATES
    from gamma_training.checkpoint import build_model
    from gamma_training.scenes import Scene

    manifest = bundle.manifest
    crops = verification_crops(photos_in(photos))
    with steps.step("checkpoint"):
        model = build_model(_same_checkpoint(bundle, against))
        scenes = [Scene(s.name, tuple(s.prompts), s.kind, None) for s in manifest.scenes]
        text = encode_scenes(model, scenes)
    wanted = reference(model, text, [scene.name for scene in scenes], crops, steps)
    rows: list[Parity] = []
    for entry in manifest.graphs:
        share = share_for(entry, manifest.graphs, wanted)
        limit = gate if gate is not None else GATES[entry.precision]
        for name in names or _usable(entry.precision):
            rows += measure(entry, bundle.graph_file(entry), name, share, limit, steps, threads)
    return rows


def _usable(precision: str) -> list[str]:
    from gamma_runtime import backends

    first = backends.choose("auto", precision)
    return [first] + [n for n in backends.NAMES if n != first and backends.installed(n) and precision != "bf16"]


def _same_checkpoint(bundle: Bundle, against: Path | str) -> Checkpoint:
    from gamma_export.demo import demo_checkpoint
    from gamma_export.export import DEMO
    from gamma_training.checkpoint import read_checkpoint

    info = bundle.manifest.checkpoint
    path = demo_checkpoint() if str(against) == DEMO else Path(against).expanduser()
    read = read_checkpoint(path, prompts=info.prompts)
    if read.sha256 != info.sha256:
        raise IntegrityError(
            f"{path}: sha256 {read.sha256[:16]}… is not this bundle's checkpoint ({info.file}, {info.sha256[:16]}…)",
            hint="--against the checkpoint that was exported",
        )
    return read
