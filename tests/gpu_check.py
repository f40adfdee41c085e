"""`make gpu-check`: the tests marked gpu and gamma-doctor, with one results folder.

Without a GPU it says so, and succeeds only if every test was skipped for that reason: a skip for any other reason
on such a machine, or no test at all, is a failure of the check. ``measurements.json`` is the one file worth keeping:
the machine, and for every check its outcome, the largest |difference| and what a library said when it refused.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gamma_runtime.cli import log, out
from gamma_runtime.cuda_probe import CudaState, probe

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = "no usable GPU: "


def skip_reasons(report: Path) -> list[str | None]:
    """One entry for each test of a JUnit report: why it was skipped, or None when it ran."""
    cases = ElementTree.parse(report).getroot().iter("testcase")  # noqa: S314 - pytest wrote it a moment ago
    return [None if (skip := case.find("skipped")) is None else skip.get("message", "") for case in cases]


def verdict(usable: bool, pytest_code: int, reasons: Sequence[str | None]) -> tuple[int, str]:
    """Exit code and sentence: with a GPU pytest's own word counts, without one every test must have said so."""
    if not reasons:
        return 1, "gpu-check: no test is marked gpu, so nothing was checked"
    skipped = sum(reason is not None for reason in reasons)
    if usable:
        return pytest_code, f"gpu-check: {len(reasons) - skipped} tests ran on the GPU, {skipped} were skipped"
    foreign = [reason for reason in reasons if reason is None or not reason.startswith(NO_GPU)]
    if pytest_code or foreign:
        return pytest_code or 1, f"gpu-check: no GPU, yet {len(foreign)} tests were not skipped for that reason"
    return 0, f"gpu-check: no GPU here, all {len(reasons)} tests were skipped; nothing was verified"


def checks(report: Path) -> list[dict[str, Any]]:
    """One entry for each test of a JUnit report: outcome, seconds, why not, and what the test measured."""
    made = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):  # noqa: S314 - pytest wrote it a moment ago
        bad = next(
            (element for kind in ("failure", "error", "skipped") if (element := case.find(kind)) is not None), None
        )
        entry: dict[str, Any] = {
            "test": f"{case.get('classname', '')}::{case.get('name', '')}",
            "outcome": "passed" if bad is None else {"failure": "failed"}.get(bad.tag, bad.tag),
            "seconds": float(case.get("time", 0)),
            "measured": {e.get("name", ""): json.loads(e.get("value", "null")) for e in case.iter("property")},
        }
        if bad is not None:
            entry["reason"] = bad.get("message", "")
        made.append(entry)
    return sorted(made, key=lambda entry: str(entry["test"]))  # the tests' order is shuffled


def without_places(value: Any) -> Any:
    """The same JSON value with this machine's folders replaced, so that the file can be published."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if isinstance(value, str):
        for place, name in ((ROOT, "CHECKOUT"), (Path(tempfile.gettempdir()), "TMP"), (Path.home(), "HOME")):
            value = value.replace(f"{place}/", f"{name}/")
    return value


def _asked(command: Sequence[str]) -> str | None:
    """The first line that a command prints, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError:
        return None
    return done.stdout.strip().split("\n")[0] or None if done.returncode == 0 else None


def _measurements(
    state: CudaState, doctor: dict[str, Any], found: list[dict[str, Any]], sentence: str
) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _asked(["git", "rev-parse", "HEAD"]),
        "changed_files": bool(_asked(["git", "status", "--porcelain"])),
        "gpus": [f"{device.name} (compute {device.compute_capability})" for device in state.devices],
        "driver": _asked(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "cuda": state.driver,
        "verdict": sentence,
        "machine": {key: value for key, value in doctor.items() if key != "bundles"},
        "checks": found,
    }


def _run_doctor(folder: Path) -> dict[str, Any]:
    doctor = [str(Path(sys.executable).parent / "gamma-doctor"), "--json"]
    done = subprocess.run(doctor, capture_output=True, text=True, check=False)
    (folder / "doctor.json").write_text(done.stdout)
    if done.returncode:
        log(f"gamma-doctor ended with {done.returncode}: {done.stderr.strip()}")
        return {}
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _run_pytest(folder: Path) -> int:
    report = folder / "report.xml"
    report.unlink(missing_ok=True)  # never read an older run's
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rA", "--durations=0", f"--junitxml={report}", "tests"]
    with (folder / "report.txt").open("w") as text:
        return subprocess.run(command, cwd=ROOT, stdout=text, stderr=subprocess.STDOUT, check=False).returncode


def main(folder: Path) -> int:
    """Run everything, write the folder, say the verdict."""
    folder.mkdir(parents=True, exist_ok=True)
    state = probe()
    names = ", ".join(f"{device.name} (compute {device.compute_capability})" for device in state.devices)
    out(f"GPU: {names or state.detail}")
    doctor = _run_doctor(folder)
    code = _run_pytest(folder)
    report = folder / "report.xml"
    written = report.exists()
    code, sentence = verdict(state.usable, code, skip_reasons(report) if written else [])
    content = without_places(_measurements(state, doctor, checks(report) if written else [], sentence))
    (folder / "measurements.json").write_text(json.dumps(content, indent=1) + "\n")
    out(f"results: {folder}/report.txt, report.xml, doctor.json, measurements.json")
    if state.usable:
        out("to keep: copy measurements.json to benchmarks/results/gpu_check-GPU.json and commit it")
    out(sentence)
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
