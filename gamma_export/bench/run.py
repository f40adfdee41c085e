"""A run of gamma-bench: every contender in fresh processes, one after the other, under a watch of the machine.

The parent stays idle and imports nothing that starts threads while a child measures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gamma_export
from gamma_export.bench.bystanders import Bystanders
from gamma_export.bench.judge import doubts_of_load, doubts_of_row, remarks_of_row
from gamma_export.bench.machine import Watch, changes, facts, read_now
from gamma_export.bench.result import Result, Row, make_row, row_from
from gamma_export.bench.spec import Spec
from gamma_export.bench.work import best_peak, peaks, roofs
from gamma_runtime import errors
from gamma_runtime.errors import EnvironmentFault, GammaError

__all__ = ["identify_photos", "measure_all", "run_child"]

_TAIL = 8  # lines of a failed child's log


def run_child(spec: Spec) -> dict[str, Any]:
    """Measure one contender in a fresh process; it never outlives this call.

    Raises:
        GammaError: what the child met. EnvironmentFault: it ended without an answer; with the end of its log.
    """
    # Security: `-m` puts the working directory first on sys.path, so it must be ours and never the user's.
    home = Path(gamma_export.__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="gamma-bench-") as folder, tempfile.TemporaryFile("w+") as log:
        asked, answer = Path(folder) / "spec.json", Path(folder) / "result.json"
        asked.write_text(dataclasses.replace(spec, started=time.monotonic()).to_json())
        command = [sys.executable, "-m", "gamma_export.bench.child", str(asked), str(answer)]
        process = subprocess.Popen(command, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        if code or not answer.is_file():
            log.seek(0)
            tail = "\n  ".join(log.read().strip().splitlines()[-_TAIL:])
            raise EnvironmentFault(f"measuring {spec.backend} ended with {code}:\n  {tail}")
        said: dict[str, Any] = json.loads(answer.read_text())
    if "error" in said:
        kind = getattr(errors, said["error"], GammaError)
        raise kind(said["message"], hint=said["hint"])
    return said


def identify_photos(photos: Sequence[str]) -> dict[str, Any]:
    """Names and one digest of all contents in their order, so that only the same photos are ever compared.

    Raises:
        InputError: one cannot be read.
    """
    from gamma_runtime.contract import Limits
    from gamma_runtime.decode import read_bytes

    digest = hashlib.sha256()
    for photo in photos:
        digest.update(hashlib.sha256(read_bytes(photo, Limits().max_bytes)).digest())
    return {"count": len(photos), "sha256": digest.hexdigest(), "names": [Path(photo).name for photo in photos]}


def measure_all(
    specs: Sequence[Spec],
    bundle: dict[str, Any],
    settings: dict[str, Any],
    starts: int,
    tell: Callable[[str], None],
    child: Callable[[Spec], dict[str, Any]] = run_child,
) -> Result:
    """Measure every contender and judge the whole.

    Args:
        specs: one a contender; the same scene and photos.
        bundle: what identifies the model.
        settings: the flags, for the record.
        starts: cold starts of each contender, at least one.
        tell: shows progress.
        child: runs one process.

    Raises:
        GammaError: a contender cannot be measured.
    """
    photos = identify_photos(specs[0].photos)
    machine, before = read_now()
    contenders, rows, notes, doubts = list[dict[str, Any]](), list[Row](), list[str](), list[str]()
    work = list[dict[str, Any]]()
    known = facts(machine)
    for spec in specs:
        tell(f"measuring {spec.backend}")
        whole, made, share = _watched(spec, starts, child)
        contenders.append(whole["contender"])
        rows += made
        if spec.profile:
            work.append({**whole["work"], "roofs": roofs(whole["work"], whole["work"]["peak"], made)})
        notes += whole["notes"]
        doubts += doubts_of_load(spec.backend, share)
        for row in made:
            doubts += doubts_of_row(row, spec.within)
            notes += remarks_of_row(row)
    _, after = read_now()
    return Result(
        machine=known,
        before=dataclasses.asdict(before),
        after=dataclasses.asdict(after),
        bundle=bundle,
        scene=specs[0].scene,
        photos=photos,
        settings=settings,
        contenders=tuple(_with_differences(contenders)),
        rows=tuple(rows),
        doubts=tuple(changes(before, after) + doubts),
        notes=tuple(notes),
        work=tuple(work),
    )


def _watched(
    spec: Spec, starts: int, child: Callable[[Spec], dict[str, Any]]
) -> tuple[dict[str, Any], list[Row], float | None]:
    """One contender: what its long process said, all rows, and the share of other programs."""
    bystanders = Bystanders()
    cold = [child(dataclasses.replace(spec, start_only=True)) for _ in range(starts - 1)]
    first = peaks(spec.threads) if spec.profile else {}
    with Watch() as watch:
        whole = child(spec)
    if spec.profile:
        whole["work"] |= {"backend": spec.backend, "peak": best_peak(first, spec.threads)}
    share = bystanders.share()
    whole["contender"] |= {"share_of_other_programs": share, **watch.seen()}
    return whole, _merged([row_from(row) for row in whole["rows"]], cold), share


def _merged(rows: Sequence[Row], cold: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows of the long process, with the starts of the short ones added to its own."""
    others = [row_from(row) for one in cold for row in one["rows"]]
    made = []
    for row in rows:
        more = [other.samples[0] for other in others if other.metric == row.metric]
        if more:
            fields = {"backend": row.backend, "metric": row.metric, "unit": row.unit, "extra": row.extra}
            row = make_row([*more, *row.samples], **fields)
        made.append(row)
    return made


def _with_differences(contenders: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How far each contender's scores are from the first one's: a fast wrong score is worth nothing."""
    first = contenders[0]["scores"]
    gaps = [max(abs(a - b) for a, b in zip(first, one["scores"], strict=True)) for one in contenders]
    return [{**one, "score_difference": gap} for one, gap in zip(contenders, gaps, strict=True)]
