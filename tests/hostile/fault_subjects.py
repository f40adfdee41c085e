"""What fault_driver.py disturbs: publication, export, build, the writing of a calibration record, a careless writer.

Each works on a folder that held something old, or nothing, and says what whole thing the folder holds now.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gamma_runtime.bundle import ENGINES, MANIFEST, open_bundle, read_engines
from gamma_runtime.errors import IntegrityError
from tests.tiny_export import publish_again, whole

__all__ = ["NEW", "NOTHING", "OLD", "RECORD", "Subject", "build_old", "subject", "write_old"]

OLD, NEW, NOTHING = "old", "new", "nothing"
RECORD = "photos.calibration"
_WORKSPACE = {OLD: 64, NEW: 65}  # MiB; what tells two engines of the same graph apart


@dataclasses.dataclass(frozen=True)
class Subject:
    """Work in a folder.

    Attributes:
        work: is disturbed.
        held: `OLD`, `NEW` or `NOTHING`, after all of it was checked; raises GammaError for anything else.
        listed: names of the files that belong to it.
        again: what must work afterwards, whatever happened; cheaper than ``work`` where that computes for long.
    """

    work: Callable[[Path], None]
    held: Callable[[Path], str]
    listed: Callable[[Path], set[str]]
    again: Callable[[Path], None]


def subject(plan: dict[str, Any]) -> Subject:
    """The subject that a plan names."""
    if plan["what"] == "record":
        return Subject(_write_new, _held_record, lambda out: {RECORD}, _write_new)
    if plan["what"] == "build":
        return Subject(_build_new, _held_engines, _listed_engines, _build_new)
    new = Path(plan["new"])

    def publish(out: Path) -> None:
        publish_again(out, new)

    def held(out: Path) -> str:
        if not (out / MANIFEST).exists():
            return NOTHING
        whole(out)
        return NEW if _checkpoint(out) == _checkpoint(new) else OLD

    works = {"publish": publish, "careless": lambda out: _careless(out, new)}
    work = works.get(plan["what"]) or _exporter(plan["checkpoint"], plan["photos"])
    return Subject(work, held, _listed_files, publish)


def _checkpoint(bundle: Path) -> str:
    return str(json.loads((bundle / MANIFEST).read_bytes())["checkpoint"]["file"])


def _listed_files(bundle: Path) -> set[str]:
    return {entry["name"] for entry in json.loads((bundle / MANIFEST).read_bytes())["files"]}


def _careless(out: Path, new: Path) -> None:
    """What most writers do: the negative control."""
    out.mkdir(exist_ok=True)
    for path in sorted(new.iterdir()):
        (out / path.name).write_bytes(path.read_bytes())


def _exporter(checkpoint: str, photos: str) -> Callable[[Path], None]:
    """The whole export. Libraries are imported here, before the forks; none of them has started a thread then."""
    import cv2
    import onnx.checker
    import onnxruntime
    import scipy.stats
    import torch

    from gamma_export import golden, lint, parity, vision
    from gamma_export.exporter import ExportOptions, export
    from gamma_runtime import manifest, selftest
    from gamma_training import checkpoint as intake
    from gamma_training import tokens
    from tests.tiny_export import SCENES

    used = (cv2, onnx, onnxruntime, scipy, golden, lint, parity, vision, manifest, selftest, intake, tokens)
    assert all(module.__name__ in sys.modules for module in used)
    torch.set_num_threads(1)
    intake.build_model(intake.read_checkpoint(checkpoint))  # torch imports more at the first module, a second in all
    options = ExportOptions(crops="centre", photos=Path(photos), scene=SCENES, threads=1)

    def run(out: Path) -> None:
        export(checkpoint, out, options)

    return run


# Engines


def _build(out: Path, which: str) -> None:
    from gamma_runtime.engines import EngineOptions, build_engines

    workspace = _WORKSPACE[which]
    options = EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",), workspace_mib=workspace)
    build_engines(open_bundle(out), options)


def _build_new(out: Path) -> None:
    _build(out, NEW)


def build_old(out: Path) -> None:
    """Engines as an earlier gamma-build left them."""
    _build(out, OLD)


def _held_engines(out: Path) -> str:
    from gamma_runtime.engines import read_plan

    open_bundle(out).check_files()
    if not (out / ENGINES).exists():
        return NOTHING
    (entry,) = read_engines(out).engines
    read_plan(out, entry)
    if not (out / entry.log).read_text():
        raise IntegrityError("no build log")
    return next(which for which, workspace in _WORKSPACE.items() if entry.options["workspace_mib"] == workspace)


def _listed_engines(out: Path) -> set[str]:
    entries = read_engines(out).engines
    return _listed_files(out) | {ENGINES} | {name for entry in entries for name in (entry.file, entry.log)}


# The calibration record


def _write_new(out: Path) -> None:
    from gamma_calib.record import calibrating, write_record
    from tests.calib.records import record

    with calibrating(out / RECORD, 1.0):
        write_record(out / RECORD, record(4, seed=1))


def write_old(out: Path) -> None:
    """A record as an earlier calibration left it."""
    from gamma_calib.record import write_record
    from tests.calib.records import record

    write_record(out / RECORD, record(3, seed=0))


def _held_record(out: Path) -> str:
    from gamma_calib.record import read_record
    from tests.calib.records import record, same

    if not (out / RECORD).exists():
        return NOTHING
    found = read_record(out / RECORD)
    for which, wanted in ((OLD, record(3, seed=0)), (NEW, record(4, seed=1))):
        if same(found, wanted):
            return which
    raise IntegrityError("a record that nobody wrote")
