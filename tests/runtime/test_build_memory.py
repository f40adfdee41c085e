"""Whether a build fits: predictions, recorded machines, the refusal, and real builds that run out of memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gamma_runtime.bundle import ENGINES, read_engines
from gamma_runtime.engines import EngineOptions, build_engines
from gamma_runtime.engines.memory import (
    Free,
    Need,
    check_memory,
    free_memory,
    looks_like_no_memory,
    oom_kills,
    predict,
    refuse,
    workspace,
)
from gamma_runtime.engines.nvml import free_gpu_bytes
from tests.runtime.engine_bundle import make_bundle, needs_rtx, run

MIB = 1 << 20


def _machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_jetson_shares_its_memory(tmp_path: Path) -> None:
    """Hand-written after an Orin Nano's /proc, not recorded on one."""
    root = _machine(
        tmp_path,
        {"proc/meminfo": "MemTotal: 7802448 kB\nMemAvailable: 5242880 kB\n", "etc/nv_tegra_release": "# R36\n"},
    )
    free = free_memory(None, root)
    assert free == Free(host=5120 * MIB, gpu=None, unified=True)
    need = predict("tensorrt", 344_850_452)
    assert need.gpu > 0
    assert check_memory("joint fp16", "tensorrt", need, free) is None
    assert workspace(free, need, low_memory=False) == (5120 * MIB - need.total) // 2 // MIB
    assert workspace(free, need, low_memory=True) == 256
    small = Free(host=2048 * MIB, gpu=None, unified=True)
    assert f"about {need.total // MIB} MiB of memory, 2048 MiB are available" in str(
        check_memory("joint fp16", "tensorrt", need, small)
    )
    assert workspace(small, need, low_memory=False) == 64


def test_host_and_gpu_memory_are_apart_elsewhere() -> None:
    need = Need(host=1000 * MIB, gpu=500 * MIB, rule="a rule")
    assert check_memory("x", "tensorrt", need, Free(1200 * MIB, 600 * MIB, unified=False)) is None
    text = check_memory("x", "tensorrt", need, Free(1200 * MIB, 400 * MIB, unified=False))
    assert text == "x: a TensorRT build takes about 500 MiB of GPU memory, 400 MiB are free; predicted: a rule"
    assert check_memory("x", "tensorrt", need, Free(None, None, unified=False)) is None  # nothing is known
    assert workspace(Free(1200 * MIB, 600 * MIB, unified=False), need, low_memory=False) is None
    assert "--low-memory" in str(refuse("x", low_memory=False).hint)
    assert "--low-memory" not in str(refuse("x", low_memory=True).hint)


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/box\n",
            "sys/fs/cgroup/box/memory.max": "1048576000\n",
            "sys/fs/cgroup/box/memory.current": "48576000\n",
            "sys/fs/cgroup/box/memory.events": "low 0\noom 4\noom_kill 3\n",
        },
        {
            "proc/self/cgroup": "4:cpuset,memory:/box\n0::/\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1048576000\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "48576000\n",
            "sys/fs/cgroup/memory/box/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        },
    ],
    ids=["cgroup2", "cgroup1"],
)
def test_a_control_group_limits_and_counts_kills(tmp_path: Path, files: dict[str, str]) -> None:
    root = _machine(tmp_path, {"proc/meminfo": "MemAvailable: 8000000 kB\n", "proc/vmstat": "oom_kill 9\n", **files})
    assert free_memory(None, root).host == 1_000_000_000
    assert oom_kills(root) == 3


def test_without_a_control_group(tmp_path: Path) -> None:
    root = _machine(tmp_path, {"proc/vmstat": "pgfault 12\noom_kill 9\n", "proc/self/cgroup": "0::/\n"})
    assert oom_kills(root) == 9
    assert free_memory(None, root) == Free(None, None, unified=False)
    unlimited = {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}
    assert free_memory(None, _machine(tmp_path, unlimited)).host is None


def test_this_machine_answers() -> None:
    free = free_memory()
    assert free.host is not None
    assert free.host > 64 * MIB


_GPU_LIBRARIES = {
    "libcuda.so.1": """
int cuInit(unsigned flags) { return (int)(flags & 0); }
int cuDeviceGetPCIBusId(char *text, int size, int device) { text[0] = 'b'; text[1] = 0; return size < 2 || device; }
""",
    "libnvidia-ml.so.1": """
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) { *device = (void *)7; return bus[0] != 'b'; }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *info) {
    info[0] = 8ull << 30; info[1] = 5ull << 30; info[2] = 3ull << 30; return device != (void *)7;
}
""",
}


def test_free_gpu_memory_comes_from_the_drivers_library(tmp_path: Path) -> None:
    """Stub libraries stand for the driver; the calls, their arguments and the struct are real."""
    for name, source in _GPU_LIBRARIES.items():
        (tmp_path / f"{name}.c").write_text(source)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / name), str(tmp_path / f"{name}.c")], check=True)
    ask = "from gamma_runtime.engines.nvml import free_gpu_bytes; print(free_gpu_bytes())"
    env = {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{5 << 30}\n"


def test_no_gpu_library_is_no_answer() -> None:
    found = free_gpu_bytes()
    assert found is None or found > 0


def test_words_of_a_full_memory() -> None:
    assert looks_like_no_memory("Unexpected exception std::bad_alloc")
    assert looks_like_no_memory("Skipping tactic 3 due to insufficient memory on requested size of 68719476736")
    assert not looks_like_no_memory("no importer registered for op: NoSuchOperator")


@needs_rtx
def test_a_build_that_cannot_fit_is_refused_and_can_be_forced(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (entry,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx"))
    assert entry.peak_rss is not None
    assert 100 * MIB < entry.peak_rss < 2048 * MIB  # its libraries alone are 110 MiB
    path = bundle.folder / ENGINES
    engines = json.loads(path.read_text())
    engines["engines"][0]["peak_rss"] = 1 << 50
    path.write_text(json.dumps(engines))
    before = path.read_bytes()
    for extra in ([], ["--dry-run"]):
        done = run("build", bundle.folder, "--engine", "tensorrt-rtx", *extra)
        assert done.returncode == 5
        assert "joint fp16: a TensorRT-RTX build takes about 1181116006 MiB of memory, " in done.stderr
        assert "the peak of an earlier build here and a tenth" in done.stderr
        assert "hint: --low-memory, " in done.stderr
        assert path.read_bytes() == before
    done = run("build", bundle.folder, "--engine", "tensorrt-rtx", "--force", "--json")
    assert done.returncode == 0
    assert "warning: joint fp16: a TensorRT-RTX build takes about" in done.stderr
    (forced,) = json.loads(done.stdout)["engines"]
    assert forced["warnings"]
    assert forced["peak_rss"] < 2048 * MIB
    assert read_engines(bundle.folder).engines[0].peak_rss == forced["peak_rss"]


@needs_rtx
def test_a_build_that_really_runs_out_of_memory_says_so(tmp_path: Path) -> None:
    """RLIMIT_AS stands for the board: TensorRT-RTX starts in 370 MiB of addresses, and its compiler does not.

    One arena and small stacks: else it depends on luck whether a thread cannot be started, where the compiler may hang.
    """
    bundle = make_bundle(tmp_path / "b.gamma")
    before = sorted(path.name for path in bundle.folder.iterdir())
    limited = (
        f"import resource; resource.setrlimit(resource.RLIMIT_STACK, ({MIB}, resource.RLIM_INFINITY));"
        f"resource.setrlimit(resource.RLIMIT_AS, ({370 * MIB},) * 2);"
        "from gamma_runtime.commands.build import main; raise SystemExit(main())"
    )
    command = [sys.executable, "-c", limited, str(bundle.folder), "--engine", "tensorrt-rtx", "--quiet"]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 5, done.stderr
    assert "out of memory" in done.stderr
    assert "bad_alloc" in done.stderr
    assert "hint: --low-memory, lower --workspace-mib" in done.stderr
    assert sorted(path.name for path in bundle.folder.iterdir() if path.name != ".lock") == before
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
