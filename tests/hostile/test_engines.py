"""Rows 17 to 21 of the hostile list, as far as engines can meet them without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gamma_runtime.bundle import ENGINES, read_engines
from gamma_runtime.engines import BuildProgress, EngineOptions, build_engines, load_engine, read_plan, require_flavour
from gamma_runtime.engines.store import publish
from gamma_runtime.errors import EnvironmentFault, InputError, IntegrityError, OutputError, UsageError
from gamma_runtime.files import locked
from tests.runtime.engine_bundle import (
    Fault,
    fake_tensorrt,
    make_bundle,
    mismatched_tensorrt,
    needs_rtx,
    no_driver,
    run,
    snapshot,
    stub_driver,
)

pytestmark = needs_rtx
RTX = EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",))


@pytest.fixture(autouse=True)
def _temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of failed builds stay inside the test's own folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)


# Row 17: tampered or swapped engines


@pytest.mark.parametrize("where", [0, 0.5, -1], ids=["first", "middle", "last"])
def test_any_changed_byte_is_refused_before_loading(tmp_path: Path, where: float) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (entry,) = build_engines(bundle, RTX)
    plan = bundle.folder / entry.file
    content = bytearray(plan.read_bytes())
    content[int(where * len(content)) if where > 0 else int(where)] ^= 1
    plan.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"does not match .* it was not loaded") as caught:
        load_engine(bundle, entry)
    assert caught.value.exit_code == 4


def test_cut_swapped_linked_and_missing_plans_are_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma", precisions=("fp32", "fp16"))
    fp32, fp16 = build_engines(bundle, RTX)
    plan, other = bundle.folder / fp32.file, bundle.folder / fp16.file
    good = plan.read_bytes()
    plan.write_bytes(good[:-1])
    with pytest.raises(IntegrityError, match=f"{len(good) - 1} bytes, engines.json says {len(good)}"):
        read_plan(bundle.folder, fp32)
    plan.write_bytes(other.read_bytes())
    with pytest.raises(IntegrityError, match=r"engines\.json says"):
        read_plan(bundle.folder, fp32)
    plan.unlink()
    with pytest.raises(IntegrityError, match="No such file"):
        read_plan(bundle.folder, fp32)
    (tmp_path / "elsewhere").write_bytes(good)
    plan.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="symbolic links"):
        read_plan(bundle.folder, fp32)
    plan.unlink()
    os.link(tmp_path / "elsewhere", plan)
    with pytest.raises(IntegrityError, match="not a plain file of its own"):
        read_plan(bundle.folder, fp32)
    plan.unlink()
    os.mkfifo(plan)
    with pytest.raises(IntegrityError, match="not a plain file of its own"):
        read_plan(bundle.folder, fp32)


@pytest.mark.parametrize("name", ["../outside.plan", "/etc/passwd", "a/b.plan", ".hidden"])
def test_names_in_engines_json_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    build_engines(bundle, RTX)
    data = json.loads((bundle.folder / ENGINES).read_text())
    data["engines"][0]["file"] = name
    (bundle.folder / ENGINES).write_text(json.dumps(data))
    with pytest.raises(IntegrityError, match="faults"):
        read_engines(bundle.folder)


def test_changed_graph_is_refused_before_the_parser(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    graph = next(g for g in bundle.manifest.graphs if g.name == "joint")
    weights = bundle.folder / graph.weights
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    events: list[BuildProgress] = []
    with pytest.raises(IntegrityError, match="sha256"):
        build_engines(bundle, RTX, events.append)
    assert events == []  # no process was started


# Rows 15 and 19: TensorRT refuses


def test_refused_operator_is_named_in_the_parsers_words(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma", fault=Fault(operator="Det"))
    before = snapshot(bundle.folder)
    with pytest.raises(InputError) as caught:
        build_engines(bundle, RTX)
    assert "In node 5 with name: squash and operator: Det" in caught.value.message
    assert snapshot(bundle.folder) == before


def test_wrong_outputs_show_both_tables(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma", fault=Fault(declared="int32"))
    with pytest.raises(InputError, match=r"\('score', 'float32'\)\], the manifest says .*\('score', 'int32'\)"):
        build_engines(bundle, RTX)


def test_none_from_the_builder_carries_its_words_and_keeps_the_old_engines(tmp_path: Path) -> None:
    """bf16 does not exist for compute capability 7.5: the fp16 plan of the same call must not be published either."""
    bundle = make_bundle(tmp_path / "b.gamma", precisions=("fp16", "bf16"))
    build_engines(bundle, RTX)
    before = snapshot(bundle.folder)
    with pytest.raises(EnvironmentFault) as caught:
        build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("7.5",)))
    assert "Cannot compile for target(s) sm75" in caught.value.message
    assert snapshot(bundle.folder) == before
    log = Path(str(caught.value.hint).rsplit("build log: ", 1)[1])
    assert "Cannot compile for target(s) sm75" in log.read_text()


def test_unknown_compute_capability_names_the_known_ones(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    with pytest.raises(UsageError, match=r"cannot compile for compute capability 8\.7") as caught:
        build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6", "8.7")))
    assert "it knows 7.5, 8.0, 8.6" in str(caught.value.hint)


# Row 20: no driver, old driver, no GPU, hidden GPU, no library, libraries that do not match


@pytest.mark.parametrize(
    ("stub", "words"),
    [
        ({"STUB_INIT": "100"}, "but no GPU"),
        ({"STUB_COUNT": "0"}, "but no GPU"),
        ({"STUB_INIT": "100", "CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides every GPU"),
        ({"STUB_INIT": "803"}, "driver too old"),
        ({"STUB_INIT": "34"}, "no NVIDIA driver, only the stub library"),
        ({"STUB_INIT": "999"}, "CUDA does not start (cuInit: CUDA error 999, stub words)"),
        ({}, "TensorRT is not installed"),
    ],
    ids=["no-gpu", "count-0", "hidden", "old-driver", "toolkit-stub", "unknown", "not-installed"],
)
def test_cause_is_named(tmp_path: Path, stub: dict[str, str], words: str) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    env = {**stub_driver(tmp_path / "driver"), **stub}
    if words == "TensorRT is not installed":
        env["PYTHONPATH"] = fake_tensorrt(tmp_path / "fake", "raise ModuleNotFoundError(name='tensorrt')\n")
    done = run("build", bundle.folder, env=env)
    assert done.returncode == 5, done.stderr
    assert words in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_no_driver_is_named_with_the_next_command(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    before = snapshot(bundle.folder)
    done = run("build", bundle.folder, env=no_driver(tmp_path / "driver"))
    assert done.returncode == 5
    assert "TensorRT needs a GPU here: no NVIDIA driver" in done.stderr
    assert "gamma-build BUNDLE --engine tensorrt-rtx" in done.stderr
    assert snapshot(bundle.folder) == before


def test_export_can_ask_before_it_starts(tmp_path: Path) -> None:
    require_flavour(RTX)
    ask = (
        "from gamma_runtime.engines import EngineOptions, require_flavour\n"
        "from gamma_runtime.errors import GammaError\n"
        "try: require_flavour(EngineOptions(flavour='tensorrt'))\n"
        "except GammaError as error: print(error.exit_code, error.message)\n"
    )

    def said(env: dict[str, str]) -> str:
        done = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True)
        return done.stdout

    assert said(no_driver(tmp_path / "none")).startswith("5 TensorRT needs a GPU here: no NVIDIA driver")
    env = {**stub_driver(tmp_path / "driver"), "PYTHONPATH": fake_tensorrt(tmp_path / "fake", "")}
    assert said(env) == ""


def test_driver_older_than_the_wheel_is_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    metadata = tmp_path / "path" / "tensorrt_cu13-11.4.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt-cu13\nVersion: 11.4.0\n")
    env = {**stub_driver(tmp_path / "driver"), "STUB_VERSION": "12060", "PYTHONPATH": str(tmp_path / "path")}
    done = run("build", bundle.folder, env=env)
    assert done.returncode == 5
    assert "it offers CUDA 12.6, the installed TensorRT needs CUDA 13" in done.stderr


def test_libraries_that_do_not_match_are_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    env = {**stub_driver(tmp_path / "driver"), "PYTHONPATH": mismatched_tensorrt(tmp_path / "fake")}
    done = run("build", bundle.folder, env=env)
    assert done.returncode == 5
    assert "TensorRT is installed but does not load: its Python part and its native library do not match" in done.stderr
    assert "getBuilderOfAnotherVersion" in done.stderr


def test_crash_inside_tensorrt_is_explained(tmp_path: Path) -> None:
    """What TensorRT 11 does without a driver: a bogus pointer, then SIGSEGV."""
    bundle = make_bundle(tmp_path / "b.gamma")
    crash = "import sys, ctypes\nprint('last words', file=sys.stderr, flush=True)\nctypes.string_at(0)\n"
    env = {**stub_driver(tmp_path / "driver"), "PYTHONPATH": fake_tensorrt(tmp_path / "fake", crash)}
    done = run("build", bundle.folder, env=env)
    assert done.returncode == 5
    assert "TensorRT crashed in the build (SIGSEGV)" in done.stderr
    assert "last words" in done.stderr


# Rows 21, 23, 42, 44, 45: killed, hung, disk full, interrupted, two writers


def test_killed_child_is_explained(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    build_engines(bundle, RTX)
    before = snapshot(bundle.folder)

    def kill(event: BuildProgress) -> None:
        os.kill(event.pid, signal.SIGKILL)

    with pytest.raises(EnvironmentFault, match=r"build was killed \(signal 9\) after .* MiB are free") as caught:
        build_engines(bundle, RTX, kill)
    assert "lower --workspace-mib" in str(caught.value.hint)
    assert snapshot(bundle.folder) == before


def test_build_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    pids: set[int] = set()

    def remember(event: BuildProgress) -> None:
        pids.add(event.pid)

    options = EngineOptions(flavour="tensorrt-rtx", build_timeout=0.01)
    with pytest.raises(EnvironmentFault, match=r"was stopped after .* \(limit 0.01 s"):
        build_engines(bundle, options, remember)
    assert pids
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not list(bundle.folder.glob(".gamma-tmp-*"))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted_command_leaves_the_old_engines(tmp_path: Path, signum: signal.Signals) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    build_engines(bundle, RTX)
    before = snapshot(bundle.folder)
    command = [sys.executable, "-m", "gamma_runtime.commands.build", str(bundle.folder), "--engine", "tensorrt-rtx"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("building joint fp16")
        children = psutil.Process(process.pid).children()
        process.send_signal(signum)
        process.stderr.read()
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert len(children) == 1
    assert psutil.wait_procs(children, timeout=10)[1] == []
    after = snapshot(bundle.folder)
    if signum == signal.SIGKILL:  # nobody could remove our temporary file; the next build does, an hour later
        after = {name: content for name, content in after.items() if not name.startswith(".gamma-tmp-")}
    assert after == before


def test_full_disk_leaves_the_old_engines(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: the plan of 1.1 MB does not fit into 0.5 MB."""
    bundle = make_bundle(tmp_path / "b.gamma")
    build_engines(bundle, RTX)
    before = snapshot(bundle.folder)
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500000, 500000));"
        "from gamma_runtime.commands.build import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", limited, str(bundle.folder), "--engine", "tensorrt-rtx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "File too large" in done.stderr
    assert snapshot(bundle.folder) == before


def test_failed_publication_is_undone(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (entry,) = build_engines(bundle, RTX)
    before = snapshot(bundle.folder)
    blocked = entry.model_copy(update={"file": f"{entry.graph}-new.plan", "log": f"{entry.graph}-new.log"})
    plan = bundle.folder / "plan"
    plan.write_bytes(b"plan")
    with pytest.raises(OutputError, match="cannot be written"):
        publish(bundle.folder, [(plan, "log", blocked), (bundle.folder / "missing", "log", blocked)], 1.0)
    assert snapshot(bundle.folder) == before


def test_second_writer_waits_and_gives_up(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    build_engines(bundle, RTX)
    before = snapshot(bundle.folder)
    start = time.monotonic()
    with locked(bundle.folder, 1.0), pytest.raises(OutputError, match="another process is writing there"):
        build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", lock_timeout=0.3))
    assert time.monotonic() - start > 0.3
    assert snapshot(bundle.folder) == before


def test_place_that_cannot_be_written_is_refused_before_the_build(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (tmp_path / "file").write_text("")
    events: list[BuildProgress] = []
    for folder in (tmp_path / "file", tmp_path / "missing" / "deep", Path("/proc/self")):
        with pytest.raises(OutputError) as caught:
            build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", engine_dir=folder), events.append)
        assert "--engine-dir" in str(caught.value.hint)
    assert events == []
