"""Engines in C++ against Python: which one fits, what is written and read by both; TensorRT itself where it is given.

GAMMA_TRT_HEADERS names a folder with one folder for each version of TensorRT's public headers (11.1/include/NvInfer.h);
without it, or without CUDA's headers, what needs TensorRT is skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.bundle import ENGINES, Bundle, read_engines
from gamma_runtime.cuda_probe import probe
from gamma_runtime.engines import Device, EngineOptions, build_engines, fitting_engine
from gamma_runtime.engines.host import host_os
from gamma_runtime.engines.store import read_plan
from gamma_runtime.errors import GammaError
from gamma_runtime.files import LOCK, locked
from tests.cpp.conftest import ROOT, build
from tests.cpp.test_cpp import run
from tests.runtime.engine_bundle import SCENES, make_bundle


def record(bundle: Bundle, graph: str = "joint", **changes: Any) -> dict[str, Any]:
    """What engines.json says of a plan; the tests need no TensorRT for it."""
    entry = next(g for g in bundle.manifest.graphs if g.name == graph)
    hashes = {file.name: file.sha256 for file in bundle.manifest.files}
    made = {
        "file": f"{graph}-{entry.precision}-trt10.3.0-sm87-{'0' * 8}.plan",
        "size": 1,
        "sha256": "0" * 64,
        "flavour": "tensorrt",
        "version": "10.3.0.30",
        "compute_capabilities": ["8.7"],
        "graph": graph,
        "scenes": entry.scenes,
        "precision": entry.precision,
        "onnx_sha256": hashes[entry.onnx],
        "weights_sha256": hashes[entry.weights],
        "batch": list(entry.batch),
        "options": {"low_memory": False},
        "log": "x.log",
        "seconds": 1.5,
        "created": "2026-01-01T00:00:00+00:00",
        "os": host_os(),
    }
    return made | changes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("engines") / "b.gamma")


def fit(tools: Path, bundle: Bundle, folder: Path, device: Device, scene: str, precision: str) -> str | int:
    words = (device.flavour, device.version, device.compute_capability, device.os, scene, precision)
    done = run(tools / "tests", "engines", "fit", bundle.folder, folder, *words)
    return done.stdout.strip() if done.returncode == 0 else done.returncode


DEVICES = [
    Device("tensorrt", "10.3.0", "8.7", host_os()),
    Device("tensorrt", "10.3.0.30", "8.9", host_os()),
    Device("tensorrt", "10.30.0", "8.7", host_os()),
    Device("tensorrt-rtx", "1.7.1.116", "12.0", host_os()),
    Device("tensorrt-rtx", "1.7.1.116", "7.5", host_os()),
    Device("tensorrt", "10.3.0", "8.7", "Linux-riscv64"),
]


def test_the_engine_that_fits_is_pythons(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    own = bundle.graph(SCENES[1], None).name
    rtx = {"flavour": "tensorrt-rtx", "version": "1.7.1.116", "compute_capabilities": ["8.0+"]}
    entries = [
        record(bundle, file="a.plan"),
        record(bundle, file="b.plan", created="2026-02-01T00:00:00+00:00"),
        record(bundle, own, file="c.plan"),
        record(bundle, file="d.plan", onnx_sha256="1" * 64, created="2026-03-01T00:00:00+00:00"),
        record(bundle, file="e.plan", **rtx),
        record(bundle, file="f.plan", compute_capabilities=["8.6", "8.9"]),
        record(bundle, file="g.plan") | {"graph": "gone"},
    ]
    engines = {"schema_version": 1, "engines": entries}
    (tmp_path / ENGINES).write_text(json.dumps(engines))
    found = set()
    for device in DEVICES:
        for scene in SCENES:
            for precision in ("", entries[0]["precision"], "bf16"):
                try:
                    flavour: Any = device.flavour
                    wanted: str | int = fitting_engine(
                        bundle, tmp_path, flavour, device, scene=scene, precision=precision or None
                    ).file
                except GammaError as error:
                    wanted = error.exit_code
                assert fit(tools, bundle, tmp_path, device, scene, precision) == wanted
                found.add(wanted)
    assert found == {"b.plan", "c.plan", "e.plan", "f.plan", 5}


BROKEN: dict[str, tuple[int, Any]] = {
    "no list": (4, {"schema_version": 1, "engines": {}}),
    "newer": (3, {"schema_version": 2, "engines": []}),
    "unknown key": (4, {"schema_version": 1, "engines": [], "surprise": 1}),
    "no schema": (4, {"engines": []}),
}
FAULTS = [
    {"file": "../x.plan"},
    {"file": "/etc/passwd"},
    {"sha256": "0"},
    {"flavour": "openvino"},
    {"compute_capabilities": ["eight"]},
    {"batch": [2, 1, 1]},
    {"size": -1},
    {"version": "1\n2"},
    {"unheard_of": True},
]


@pytest.mark.parametrize("name", [*BROKEN, *map(str, range(len(FAULTS)))])
def test_a_broken_engines_json_is_refused_alike(tools: Path, bundle: Bundle, tmp_path: Path, name: str) -> None:
    code, content = BROKEN.get(name, (4, None))
    if content is None:
        content = {"schema_version": 1, "engines": [record(bundle) | FAULTS[int(name)]]}
    (tmp_path / ENGINES).write_text(json.dumps(content))
    with pytest.raises(GammaError) as caught:
        read_engines(tmp_path)
    assert caught.value.exit_code == code
    assert fit(tools, bundle, tmp_path, DEVICES[0], SCENES[0], "") == code


def published(tools: Path, folder: Path, entry: dict[str, Any], plan: bytes, *more: str) -> tuple[int, str]:
    scratch = next(place for place in folder.parents if place.is_dir())
    (scratch / "plan").write_bytes(plan)
    (scratch / "record.json").write_text(json.dumps(entry))
    done = run(tools / "tests", "engines", "publish", folder, scratch / "plan", scratch / "record.json", *more)
    return done.returncode, done.stdout.strip() or done.stderr


def test_what_is_published_python_reads(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    (tmp_path / "cache").write_bytes(b"measured")
    code, name = published(
        tools, folder, record(bundle), b"first", "1", "timing-trt10.3.0-sm87.cache", str(tmp_path / "cache")
    )
    assert code == 0, name
    (entry,) = read_engines(folder).engines
    assert (entry.file, read_plan(folder, entry), entry.options) == (name, b"first", {"low_memory": False})
    assert (folder / entry.log).read_text() == "what TensorRT said\n"
    (cache,) = read_engines(folder).timing_caches
    assert (folder / cache.name).read_bytes() == b"measured"
    assert run(tools / "tests", "engines", "read", folder, name).stdout == "5\n"
    # Another GPU's engine is kept with all that its record says, the replaced one goes, and so does what a crash left.
    other = record(bundle, compute_capabilities=["8.9"], proof={"network": {"products": {"fp16": 3}}}, peak_rss=7)
    (folder / "joint-fp16-trt10.3.0-sm87-00000000.plan").write_bytes(b"left by a crash")
    assert published(tools, folder, other, b"other", "1")[0] == 0
    code, newer = published(tools, folder, record(bundle), b"second", "1")
    kept, replaced = sorted(read_engines(folder).engines, key=lambda one: one.compute_capabilities, reverse=True)
    assert (kept.proof, kept.peak_rss, replaced.file) == (other["proof"], 7, newer)
    wanted = {ENGINES, LOCK, cache.name, kept.file, kept.log, replaced.file, replaced.log}
    assert {path.name for path in folder.iterdir()} == wanted


def test_a_changed_plan_is_never_read(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    _, name = published(tools, folder, record(bundle), b"plan", "1")
    good = folder / name
    for content in (b"plam", b"plans", b""):
        good.write_bytes(content)
        assert run(tools / "tests", "engines", "read", folder, name).returncode == 4
    good.unlink()
    assert run(tools / "tests", "engines", "read", folder, name).returncode == 4
    (tmp_path / "elsewhere").write_bytes(b"plan")
    good.symlink_to(tmp_path / "elsewhere")
    assert run(tools / "tests", "engines", "read", folder, name).returncode == 4


def test_the_lock_is_pythons(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    assert published(tools, folder, record(bundle), b"first", "1")[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with locked(folder, 1.0):
        code, said = published(tools, folder, record(bundle), b"second", "0.3")
    assert (code, "another process is writing there" in said) == (6, True)
    (temporary,) = {path.name for path in folder.iterdir()} - set(before)  # swept when it is old
    (folder / temporary).unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert published(tools, tmp_path / "file", record(bundle), b"x", "1")[0] == 6
    assert published(tools, tmp_path / "no" / "where", record(bundle), b"x", "1")[0] == 6


def test_without_tensorrt_it_says_so(tools: Path, bundle: Bundle) -> None:
    photo = ROOT / "gamma_export" / "data" / "photos" / "01-astronaut.jpg"
    done = run(tools, "gamma-run-cpp", bundle.folder, photo, "--backend", "tensorrt")
    assert (done.returncode, "built without tensorrt" in done.stderr) == (5, True)
    done = run(tools, "gamma-build-cpp", bundle.folder)
    assert (done.returncode, "built without TensorRT" in done.stderr) == (5, True)
    assert not (bundle.folder / ENGINES).exists()


def test_crops_on_the_gpu_are_opencvs(tools: Path) -> None:
    """The kernel's arithmetic, run on the CPU; with a share that is 2 % off the same comparison must fail."""
    done = run(tools / "tests", "area_pixel")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 bytes differ")
    assert run(tools / "tests", "area_pixel", "--off").returncode == 1


HEADERS = Path(os.environ.get("GAMMA_TRT_HEADERS", "nowhere"))
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
needs_headers = pytest.mark.skipif(
    not HEADERS.is_dir() or not (CUDA / "include").is_dir(),
    reason="no TensorRT headers (GAMMA_TRT_HEADERS=FOLDER) or no CUDA headers (CUDA_HOME) here",
)


@pytest.mark.long
@needs_headers
def test_every_set_of_headers() -> None:
    script = ROOT / "runtime" / "cpp" / "scripts" / "check-trt-headers"
    done = subprocess.run([script, HEADERS, CUDA], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list(HEADERS.glob("*/include/NvInfer.h")))


def linked(folder: Path, flavour: str, module: str) -> Path:
    """Built with a library from a Python wheel and the newest headers."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"no {module} here: its wheel has the library")
    newest = max(HEADERS.glob("*/include"), key=lambda path: [int(part) for part in path.parent.name.split(".")])
    place = next(iter(spec.submodule_search_locations))
    flags = [f"-DTensorRT_FLAVOR={flavour}", f"-DTensorRT_ROOT={newest.parent}", f"-DTensorRT_LIBRARY_DIR={place}"]
    return build(folder, *flags, f"-DCUDAToolkit_ROOT={CUDA}")


@pytest.mark.long
@needs_headers
def test_the_lean_runtime_links_and_says_that_there_is_no_gpu(tmp_path: Path, bundle: Bundle) -> None:
    if probe().usable:
        pytest.skip("this machine has a GPU")
    tools = linked(tmp_path / "build", "LEAN", "tensorrt_lean_libs")
    refuses_without_gpu(tools, bundle, "tensorrt")
    done = run(tools, "gamma-build-cpp", bundle.folder)
    assert (done.returncode, "needs a GPU" in done.stderr) == (5, True), done.stderr


def refuses_without_gpu(tools: Path, bundle: Bundle, backend: str) -> None:
    photo = ROOT / "gamma_export" / "data" / "photos" / "01-astronaut.jpg"
    done = run(tools, "gamma-run-cpp", bundle.folder, photo, "--backend", backend)
    assert (done.returncode, "CUDA does not start" in done.stderr) == (5, True), done.stderr


@pytest.mark.long
@needs_headers
def test_tensorrt_rtx_builds_the_plan_that_python_builds(tmp_path: Path) -> None:
    """A real builder, without a GPU: the same bytes, and each reads what the other wrote."""
    tools = linked(tmp_path / "build", "RTX", "tensorrt_rtx_libs")
    bundle = make_bundle(tmp_path / "b.gamma", precisions=("fp32", "fp16"))
    done = run(tools, "gamma-build-cpp", bundle.folder, "--engine-dir", tmp_path / "cpp", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    made = read_engines(tmp_path / "cpp").engines
    assert [entry["file"] for entry in said["engines"]] == [entry.file for entry in made]
    options = EngineOptions(flavour="tensorrt-rtx", engine_dir=tmp_path / "python")
    theirs = build_engines(bundle, options)
    assert [one.precision for one in made] == ["fp32", "fp16"]
    for mine, wanted in zip(made, theirs, strict=True):
        assert read_plan(tmp_path / "cpp", mine) == read_plan(tmp_path / "python", wanted)
        same = {"options", "seconds", "created", "peak_rss", "log", "proof"}
        assert mine.model_dump(exclude=same) == wanted.model_dump(exclude=same)
        assert mine.proof["network"] == wanted.proof["network"]
        settings = {key: value for key, value in wanted.options.items() if key != "polygraphy"}
        assert mine.options == {**settings, "builder": "C++"}
    if not probe().usable:
        refuses_without_gpu(tools, bundle, "tensorrt-rtx")
        if (tools / "tests" / "gpu").is_file():  # nvcc is here
            done = run(tools / "tests", "gpu", ROOT / "gamma_export" / "data" / "photos" / "01-astronaut.jpg")
            assert (done.returncode, "skipped: CUDA does not start" in done.stderr) == (77, True)
    # A second build of one precision replaces that engine only, in a folder that Python wrote.
    done = run(
        tools, "gamma-build-cpp", bundle.folder, "--engine-dir", tmp_path / "python", "--precision", "fp16", "--quiet"
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = {entry.file for entry in read_engines(tmp_path / "python").engines}
    assert names == {entry.file for entry in theirs}
