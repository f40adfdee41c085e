"""`make gpu-check`: the tests marked gpu and gamma-doctor, with one results folder.

Without a GPU it says so, and succeeds only if every test was skipped for that reason: a skip for any other reason
on such a machine, or no test at all, is a failure of the check.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from gamma_runtime.cli import log, out
from gamma_runtime.cuda_probe import probe

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


def _run_doctor(folder: Path) -> None:
    doctor = [str(Path(sys.executable).parent / "gamma-doctor"), "--json"]
    done = subprocess.run(doctor, capture_output=True, text=True, check=False)
    (folder / "doctor.json").write_text(done.stdout)
    if done.returncode:
        log(f"gamma-doctor ended with {done.returncode}: {done.stderr.strip()}")


def _run_pytest(folder: Path) -> int:
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rA", "--durations=0", f"--junitxml={report}", "tests"]
    with (folder / "report.txt").open("w") as text:
        return subprocess.run(command, cwd=ROOT, stdout=text, stderr=subprocess.STDOUT, check=False).returncode


def main(folder: Path) -> int:
    """Run everything, write the folder, say the verdict."""
    folder.mkdir(parents=True, exist_ok=True)
    state = probe()
    names = ", ".join(f"{device.name} (compute {device.compute_capability})" for device in state.devices)
    out(f"GPU: {names or state.detail}")
    _run_doctor(folder)
    code = _run_pytest(folder)
    report = folder / "report.xml"
    code, sentence = verdict(state.usable, code, skip_reasons(report) if report.exists() else [])
    out(f"results: {folder}/report.txt, report.xml, doctor.json")
    out(sentence)
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
