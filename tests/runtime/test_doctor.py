"""gamma-doctor: facts about this machine that can be checked another way, and verdicts on bundles and engines."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from gamma_runtime.doctor import diagnose, render
from gamma_runtime.engines import EngineOptions, build_engines
from tests.runtime.engine_bundle import SCENES, make_bundle, needs_rtx, no_driver, run, stub_driver


def _doctor(*arguments: str | Path, env: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    done = run("doctor", "--json", *arguments, env=env)
    assert "Traceback" not in done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, facts


def test_facts_agree_with_other_sources(tmp_path: Path) -> None:
    code, facts = _doctor(env=no_driver(tmp_path))
    assert code == 0  # no GPU is not a fault
    assert facts["cuda"]["cause"] == "no-driver"
    assert facts["python"].startswith(platform.python_version())
    assert facts["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["memory_total_mib"] == psutil.virtual_memory().total >> 20
    assert 0 < facts["memory_free_mib"] < facts["memory_total_mib"]
    for name in ("numpy", "pydantic"):
        assert facts["libraries"][name] == importlib.metadata.version(name)
    flags = Path("/proc/cpuinfo").read_text()
    assert all(f" {flag}" in flags for flag in facts["cpu"]["flags"])


def test_video_is_what_this_cv2_says(tmp_path: Path) -> None:
    import cv2

    _, facts = _doctor()
    assert facts["video"]["cv2"] == cv2.__version__
    said = cv2.getBuildInformation()
    for key, label in (("ffmpeg", "FFMPEG"), ("v4l2", "v4l/v4l2"), ("gstreamer", "GStreamer")):
        assert facts["video"][key] == any(line.split()[:2] == [f"{label}:", "YES"] for line in said.splitlines())
    assert any(finding["area"] == "Video" for finding in facts["findings"])
    assert "  Video\n" in render(diagnose())
    (tmp_path / "cv2.py").write_text("raise ValueError('built for another numpy')")
    code, facts = _doctor(env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    assert (code, facts["video"]["cv2"]) == (0, None)
    assert facts["video"]["problem"] == "built for another numpy"


def test_nothing_heavy_is_imported_for_the_facts() -> None:
    heavy = "{'torch', 'onnx', 'tensorrt_rtx', 'polygraphy'}"
    code = (
        f"import sys; from gamma_runtime.doctor import diagnose; diagnose(); print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_backends_are_those_of_the_runtime() -> None:
    from gamma_runtime.backends import available

    facts = diagnose()
    assert facts.backends == available()
    assert "onnxruntime" in facts.backends


@pytest.mark.parametrize(
    ("present", "words"),
    [
        (("onnxruntime", "onnxruntime-gpu"), "onnxruntime and onnxruntime-gpu are both installed"),
        (("opencv-python", "opencv-python-headless"), "opencv-python and opencv-python-headless share the name cv2"),
    ],
)
def test_packages_that_break_each_other_are_warned_about(tmp_path: Path, present: tuple[str, ...], words: str) -> None:
    for name in present:
        metadata = tmp_path / f"{name.replace('-', '_')}-9.9.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    _, facts = _doctor(env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert any(words in warning for warning in facts["warnings"])
    assert not any(words in warning for warning in _doctor()[1]["warnings"])


def test_valid_bundle_is_described(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma", precisions=("fp32", "fp16"))
    code, facts = _doctor(bundle.folder)
    (found,) = facts["bundles"]
    assert code == 0
    assert found["valid"]
    assert (found["scenes"], found["precisions"]) == (list(SCENES), ["fp32", "fp16"])
    assert (found["label"], found["engines"]) == ("untrained", [])


def test_broken_bundles_give_their_exit_code(tmp_path: Path) -> None:
    good = make_bundle(tmp_path / "good.gamma").folder
    bad = make_bundle(tmp_path / "bad.gamma")
    weights = bad.folder / bad.manifest.graphs[0].weights
    weights.write_bytes(weights.read_bytes()[:-1])
    code, facts = _doctor(good, bad.folder)
    assert code == 4
    assert [b["valid"] for b in facts["bundles"]] == [True, False]
    assert weights.name in facts["bundles"][1]["error"]
    code, facts = _doctor(tmp_path / "missing.gamma")
    assert (code, facts["bundles"][0]["valid"]) == (3, False)


@needs_rtx
def test_engines_fit_or_say_why_not(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (only86,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",)))
    (ampere,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx"))
    code, facts = _doctor(bundle.folder, env=stub_driver(tmp_path / "driver"))  # one GPU of 8.7
    engines = {engine["file"]: engine for engine in facts["bundles"][0]["engines"]}
    assert code == 0
    assert engines[ampere.file]["fits"]
    assert engines[only86.file]["why"] == (
        f"built for TensorRT-RTX {only86.version}/sm_86, here {only86.version}/sm_87"
    )
    _, facts = _doctor(bundle.folder, env=no_driver(tmp_path / "none"))
    assert all(e["why"].startswith("no NVIDIA driver") for e in facts["bundles"][0]["engines"])
    make_bundle(bundle.folder, seed=1)
    _, facts = _doctor(bundle.folder, env=stub_driver(tmp_path / "driver"))
    assert all(e["why"].startswith("stale: ") for e in facts["bundles"][0]["engines"])


@needs_rtx
def test_changed_engine_is_broken(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    options = EngineOptions(flavour="tensorrt-rtx", engine_dir=tmp_path / "engines")
    (entry,) = build_engines(bundle, options)
    plan = tmp_path / "engines" / entry.file
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    code, facts = _doctor(bundle.folder, "--engine-dir", tmp_path / "engines")
    (engine,) = facts["bundles"][0]["engines"]
    assert code == 4
    assert engine["broken"]
    assert "sha256" in engine["why"]


def test_text_has_every_section_and_the_next_command(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    done = run("doctor", bundle.folder)
    assert done.returncode == 0, done.stderr
    heads = [line for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert heads[:4] == ["System", "Libraries", "Backends", "CUDA"]
    assert heads[4:] == [f"Bundle {bundle.folder}", "Findings"]
    assert "  engine       none built" in done.stdout
    assert done.stderr.splitlines()[-1] == f"next: gamma-run {bundle.folder} PHOTO"


def test_render_shows_gpus_and_faults(tmp_path: Path) -> None:
    facts = diagnose([tmp_path / "missing.gamma"])
    assert f"NOT VALID: {tmp_path / 'missing.gamma'}: no such bundle folder" in render(facts)
    done = run("doctor", env=stub_driver(tmp_path))
    assert "GPU 0: Stub Orin, compute capability 8.7, 8192 MiB" in done.stdout
