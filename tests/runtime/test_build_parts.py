"""Estimates, counted types, the timing cache, the watchdog, and the dry run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from gamma_runtime.bundle import ENGINES, MANIFEST, open_bundle, read_engines
from gamma_runtime.engines import BuildProgress, EngineOptions, build_engines
from gamma_runtime.engines.eta import earlier_seconds, remaining, remaining_text
from gamma_runtime.engines.proof import check_engine, check_products, count_engine
from gamma_runtime.engines.store import publish
from gamma_runtime.engines.timing import TimingCache, cache_name, read_cache
from gamma_runtime.engines.timings import Timings
from gamma_runtime.errors import EnvironmentFault
from gamma_runtime.manifest import EngineEntry, Engines
from tests.runtime.engine_bundle import fake_tensorrt, make_bundle, needs_rtx, run, snapshot, stub_driver

RTX = EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",))
CACHE = "timing-trt11.4.0-sm87.cache"


def test_estimates() -> None:
    assert remaining(1.0, None, None) is None
    assert remaining(1.0, 0.5, None) is None  # too early to trust a pace
    assert remaining(60.0, 0.01, None) is None
    assert remaining(60.0, 0.5, None) == 60.0
    assert remaining(10.0, None, 40.0) == 30.0
    assert remaining(100.0, None, 40.0) == 0.0
    both = remaining(30.0, 0.5, 100.0)
    assert both is not None
    assert 30.0 < both < 50.0  # between the pace and the earlier build


def test_estimates_never_jump_and_never_go_below_zero() -> None:
    """Fractions as phases give them: they start again and stand still."""
    shown: tuple[float, float] | None = None
    values: list[float] = []
    for tick in range(600):
        elapsed = tick * 0.2
        fraction = [0.1, 0.9, 0.05, 0.5, 0.99, None][tick // 10 % 6]
        left = remaining(elapsed, fraction, 100.0, shown)
        assert left is not None
        assert left >= 0.0
        if shown is not None:
            # a fiftieth of the way to a guess of at most 19 times the time so far, less the time that passed
            assert abs(left - shown[1]) <= 0.2 + 0.02 * max(19 * elapsed, 100.0)
        shown = (elapsed, left)
        values.append(left)
    assert len(set(values)) > 100


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "no estimate yet"),
        (3.0, "a few seconds left"),
        (38.0, "about 40 s left"),
        (171.0, "about 3 min left"),
        (9000.0, "about 2.5 h left"),
    ],
)
def test_estimates_are_words(seconds: float | None, text: str) -> None:
    assert remaining_text(seconds) == text


# Types: in the parsed network (real builds), and in the inspector's two schemas (hand-written samples, no device)

_TEN = {
    "Layers": [
        {
            "Name": "qkv",
            "LayerType": "gemm",
            "Outputs": [{"Name": "a", "Format/Datatype": "Half"}],
            "Weights": {"Type": "Half", "Count": 1000},
        },
        {"Name": "r", "LayerType": "Reformat", "Outputs": [{"Name": "b", "Format/Datatype": "Row major linear FP32"}]},
        {"Name": "s", "LayerType": "kgen", "Outputs": [{"Name": "c", "Format/Datatype": "N/A due to dynamic shapes"}]},
    ],
    "Bindings": ["crops", "score"],
}
_ELEVEN = {
    "Layers": [
        {"Name": "qkv", "LayerType": "gemm", "Outputs": [{"Name": "a", "Format": "kLINEAR", "Datatype": "BFloat16"}]},
        {"Name": "head", "LayerType": "kgen", "Outputs": [{"Name": "b", "Format": "kLINEAR", "Datatype": "Float"}]},
    ],
    "I/O Tensors": [{"Name": "crops", "IOMode": "Input", "DataType": "UInt8"}],
}


def test_inspector_of_tensorrt_10() -> None:
    counted = count_engine(json.dumps(_TEN))
    assert counted == {
        "schema": 10,
        "layers": 3,
        "reformats": 1,
        "outputs": {"fp16": 1, "fp32": 1},
        "weight_bytes": {"fp16": 2000},
    }
    check_engine(counted, "fp16")
    with pytest.raises(EnvironmentFault, match=r"asked for bf16, got 2000 fp16 \(weight bytes"):
        check_engine(counted, "bf16")


def test_inspector_of_tensorrt_11() -> None:
    counted = count_engine(json.dumps(_ELEVEN))
    assert (counted["schema"], counted["outputs"]) == (11, {"bf16": 1, "fp32": 1})
    check_engine(counted, "bf16")
    with pytest.raises(EnvironmentFault, match=r"asked for fp16, got 1 bf16, 1 fp32 \(layers in the engine\)"):
        check_engine(counted, "fp16")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["qkv", "head"]}'])
def test_inspector_without_an_answer(text: str) -> None:
    with pytest.raises(EnvironmentFault, match="inspector"):
        count_engine(text)


def test_shares_of_the_products() -> None:
    mixed: dict[str, dict[str, int]] = {"products": {}, "weight_bytes": {"fp16": 95, "fp32": 5}}
    check_products(mixed, "fp16")
    with pytest.raises(EnvironmentFault, match=r"asked for fp32, got 95% fp16, 5% fp32"):
        check_products(mixed, "fp32")


@needs_rtx
def test_types_are_counted_in_the_network(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma", precisions=("fp32", "fp16", "bf16"))
    entries = build_engines(bundle, RTX)
    assert [entry.proof["network"]["products"] for entry in entries] == [{"fp32": 1}, {"fp16": 1}, {"bf16": 1}]
    assert [entry.proof["network"]["weight_bytes"] for entry in entries] == [
        {"fp32": 1204224},
        {"fp16": 602112},
        {"bf16": 602112},
    ]
    assert all("engine" not in entry.proof for entry in entries)  # it cannot be loaded here


@needs_rtx
def test_asked_fp16_got_fp32_fails(tmp_path: Path) -> None:
    folder = tmp_path / "b.gamma"
    make_bundle(folder, precisions=("fp32",))
    manifest = json.loads((folder / MANIFEST).read_text())
    for graph in manifest["graphs"]:
        graph["precision"] = "fp16"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    before = snapshot(folder)
    done = run("build", folder, "--engine", "tensorrt-rtx")
    assert done.returncode == 5
    assert "asked for fp16, got 100% fp32" in done.stderr
    assert snapshot(folder) == before


# The timing cache. `tensorrt` here is TensorRT-RTX under that name with a stub driver: its builder and its calls are
# real, but its caches stay empty (172 bytes), so nothing here shows that a cache saves time.


@pytest.fixture
def renamed(tmp_path: Path) -> dict[str, str]:
    """Environment whose `tensorrt` 11.4.0 is TensorRT-RTX, on a compute capability of 8.7."""
    source = "import tensorrt_rtx\nfrom tensorrt_rtx import *\n__version__ = '11.4.0'\n"
    path = Path(fake_tensorrt(tmp_path / "renamed", source))
    (path / "tensorrt-11.4.0.dist-info").mkdir()
    (path / "tensorrt-11.4.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tensorrt\nVersion: 11.4.0\n"
    )
    return {**stub_driver(tmp_path / "driver"), "PYTHONPATH": str(path)}


def _built(done: Any) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    engines: list[dict[str, Any]] = json.loads(done.stdout)["engines"]
    return engines


@needs_rtx
def test_timing_cache_is_written_recorded_and_used(tmp_path: Path, renamed: dict[str, str]) -> None:
    folder = make_bundle(tmp_path / "b.gamma").folder
    (first,) = _built(run("build", folder, "--json", env=renamed))
    assert first["options"]["timing_cache"] == {"state": "absent", "sha256": None}
    (recorded,) = read_engines(folder).timing_caches
    assert (recorded.name, recorded.size) == (CACHE, (folder / CACHE).stat().st_size)
    (second,) = _built(run("build", folder, "--json", env=renamed))
    assert second["options"]["timing_cache"] == {"state": "usable", "sha256": recorded.sha256}
    assert second["warnings"] == []
    content = bytearray((folder / CACHE).read_bytes())
    content[40] ^= 1
    (folder / CACHE).write_bytes(content)
    done = run("build", folder, "--json", env=renamed)
    (third,) = _built(done)
    assert third["options"]["timing_cache"] == {"state": "ignored", "sha256": None}
    assert "warning: timing cache not used: " in done.stderr
    assert "does not match" in done.stderr
    (again,) = read_engines(folder).timing_caches  # replaced by what this build measured
    assert read_cache(folder, CACHE, read_engines(folder)).state == "usable"
    assert again.size == (folder / CACHE).stat().st_size


@needs_rtx
def test_cache_that_tensorrt_cannot_read_is_left_out(tmp_path: Path, renamed: dict[str, str]) -> None:
    """The record fits, the content does not: TensorRT-RTX itself refuses it, and the build goes on."""
    folder = make_bundle(tmp_path / "b.gamma").folder
    publish(folder, [], 1.0, lambda _: (CACHE, b"from somewhere else " * 50))
    done = run("build", folder, "--json", env=renamed)
    (entry,) = _built(done)
    assert "timing cache not used: TensorRT cannot read it" in done.stderr
    assert entry["options"]["timing_cache"] == {"state": "ignored", "sha256": None}
    assert (folder / CACHE).stat().st_size < 1000


@needs_rtx
def test_no_timing_cache_and_none_for_rtx(tmp_path: Path, renamed: dict[str, str]) -> None:
    folder = make_bundle(tmp_path / "b.gamma").folder
    (entry,) = _built(run("build", folder, "--json", "--no-timing-cache", env=renamed))
    assert entry["options"]["timing_cache"]["state"] == "off"
    (rtx,) = _built(run("build", folder, "--json", "--engine", "tensorrt-rtx"))
    assert rtx["options"]["timing_cache"]["state"] == "none"
    assert read_engines(folder).timing_caches == []
    assert not list(folder.glob("timing-*"))


def test_cache_names() -> None:
    assert cache_name("10.3.0.26", "8.7") == "timing-trt10.3.0-sm87.cache"


def test_foreign_and_missing_caches(tmp_path: Path) -> None:
    engines = Engines(schema_version=1, engines=[])
    assert read_cache(tmp_path, CACHE, engines) == TimingCache(CACHE, "absent")
    (tmp_path / CACHE).write_bytes(b"copied from another board")
    found = read_cache(tmp_path, CACHE, engines)
    assert (found.state, found.content) == ("ignored", None)
    assert f"{ENGINES} does not record {CACHE}" in str(found.warning)


@needs_rtx
def test_caches_of_two_builds_are_merged(tmp_path: Path) -> None:
    """Another build published in the meantime; TensorRT-RTX merges for real, and refuses garbage."""
    folder = make_bundle(tmp_path / "b.gamma").folder
    script = "import sys, tensorrt_rtx as t; b = t.Builder(t.Logger(t.Logger.ERROR)); c = b.create_builder_config();"
    script += "sys.stdout.buffer.write(bytes(memoryview(c.create_timing_cache(b'').serialize())))"
    empty = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, check=True).stdout
    publish(folder, [], 1.0, lambda _: (CACHE, b"theirs"))
    with Timings(folder, dataclasses.replace(RTX), []) as timings:
        timings._now = TimingCache(CACHE, "usable", empty)
        assert timings.merge(read_engines(folder)) == (CACHE, empty)
    with Timings(folder, RTX, []) as timings:
        assert timings.merge(read_engines(folder)) is None  # nothing new to say


# The watchdog


def test_build_without_a_sign_of_life_is_stopped(tmp_path: Path) -> None:
    """A `tensorrt` that hangs when it is imported stands for a hang in the driver."""
    bundle = make_bundle(tmp_path / "b.gamma")
    before = snapshot(bundle.folder)
    hang = "import os, pathlib, time\npathlib.Path(os.environ['PID']).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    env = {**stub_driver(tmp_path / "driver"), "PYTHONPATH": fake_tensorrt(tmp_path / "fake", hang)}
    env["PID"] = str(tmp_path / "pid")
    done = run("build", bundle.folder, "--stall-timeout", "2", env=env)
    assert done.returncode == 5
    assert "no sign of life for 2 s in 'starting TensorRT', limit 2 s" in done.stderr
    assert "raise --stall-timeout" in done.stderr
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert snapshot(bundle.folder) == before


def test_a_build_that_says_something_is_alive(tmp_path: Path) -> None:
    """The control: it takes longer than the stall limit, but its log grows; it fails for another reason."""
    talk = "import sys, time\nfor _ in range(8):\n    time.sleep(0.5)\n    print('busy', file=sys.stderr, flush=True)\n"
    env = {**stub_driver(tmp_path / "driver"), "PYTHONPATH": fake_tensorrt(tmp_path / "fake", talk)}
    done = run("build", make_bundle(tmp_path / "b.gamma").folder, "--stall-timeout", "2", env=env)
    assert "no sign of life" not in done.stderr
    assert "the TensorRT build process failed" in done.stderr


# The command


@needs_rtx
def test_dry_run_says_what_would_be_built(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b.gamma", precisions=("fp16", "fp32")).folder
    before = snapshot(folder)
    done = run("build", folder, "--engine", "tensorrt-rtx", "--dry-run", "--json", "--low-memory")
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert [(b["graph"], b["precision"], b["fits"]) for b in data["builds"]] == [
        ("joint", "fp16", True),
        ("joint", "fp32", True),
    ]
    assert data["builds"][0]["workspace_mib"] == 256
    assert data["builds"][0]["earlier_seconds"] is None
    table = run("build", folder, "--engine", "tensorrt-rtx", "--dry-run").stdout
    assert "joint fp16" in table
    assert "nothing was built; memory predicted from: 350 MiB and 2.6 times the weights" in table
    assert snapshot(folder) == before


@needs_rtx
def test_low_memory_and_level_reach_the_builder(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (entry,) = build_engines(bundle, dataclasses.replace(RTX, low_memory=True, optimization_level=2))
    log = (bundle.folder / entry.log).read_text()
    assert "WORKSPACE: 256.00 MiB" in log
    assert "DISABLE_COMPILATION_CACHE" in log
    assert (entry.options["workspace_mib"], entry.options["optimization_level"]) == (256, 2)
    assert entry.options["low_memory"] is True


@needs_rtx
def test_the_second_build_is_estimated_from_the_first(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (first,) = build_engines(bundle, RTX)
    events: list[BuildProgress] = []
    build_engines(bundle, RTX, events.append)
    assert events[0].remaining is not None
    assert 0.0 <= events[0].remaining <= first.seconds
    assert earlier_seconds(open_engines(bundle.folder), "joint", "fp16", "tensorrt-rtx", {}) is not None
    other = {"low_memory": True}
    assert earlier_seconds(open_engines(bundle.folder), "joint", "fp16", "tensorrt-rtx", other) is None


def open_engines(folder: Path) -> list[EngineEntry]:
    """What engines.json lists."""
    open_bundle(folder)
    return read_engines(folder).engines
