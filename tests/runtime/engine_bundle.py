"""A bundle with tiny typed graphs, and stand-ins for drivers and libraries that this machine does not have."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from gamma_runtime.bundle import MANIFEST, Bundle, open_bundle
from gamma_runtime.contract import Contract, CropPolicy

PIXELS = 224 * 224 * 3
SCENES = ("natural-quality", "face-quality")
_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

needs_rtx = pytest.mark.skipif(
    platform.machine() != "x86_64", reason=f"tensorrt-rtx has wheels for x86-64 only, this is {platform.machine()}"
)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with a graph: an operator that the parser refuses, or a manifest that declares another output."""

    operator: str | None = None
    declared: str = "float32"


def _weights(precision: str, columns: int, seed: int) -> TensorProto:
    values = np.random.default_rng(seed).standard_normal((PIXELS, columns)).astype(np.float32) * 1e-5
    if precision == "bf16":
        high = (values.view(np.uint32) >> 16).astype(np.uint16)
        return helper.make_tensor("w", TensorProto.BFLOAT16, values.shape, high.tobytes(), raw=True)
    return numpy_helper.from_array(values.astype(np.float16) if precision == "fp16" else values, "w")


def _model(precision: str, scenes: int, ranged: bool, weights: TensorProto, fault: Fault) -> onnx.ModelProto:
    batch: int | str = "N" if ranged else 1
    tail = [] if scenes == 1 else [scenes]
    shape = numpy_helper.from_array(np.array([-1, PIXELS]), "flat")
    crops = numpy_helper.from_array(np.array([-1, 1, *tail]), "crops_shape")
    axis = numpy_helper.from_array(np.array([1]), "axis")
    nodes = [
        helper.make_node("Cast", ["crops"], ["x"], "cast", to=_TYPES[precision]),
        helper.make_node("Reshape", ["x", "flat"], ["rows"], "rows"),
        helper.make_node("MatMul", ["rows", "w"], ["product"], "product"),
        helper.make_node("Cast", ["product"], ["wide"], "wide", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["wide", "crops_shape"], ["head"], "head"),
        helper.make_node(fault.operator or "Sigmoid", ["head"], ["crop_scores"], "squash"),
        helper.make_node("ReduceMean", ["crop_scores", "axis"], ["score"], "mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, [batch, 1, 224, 224, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [batch, *tail]),
            helper.make_tensor_value_info("crop_scores", TensorProto.FLOAT, [batch, 1, *tail]),
        ],
        [weights, shape, crops, axis],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _store(folder: Path, stem: str, suffix: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    name = f"{stem}-{digest[:8]}{suffix}"
    (folder / name).write_bytes(content)
    return {"name": name, "size": len(content), "sha256": digest}


def _graph(
    folder: Path,
    name: str,
    scenes: tuple[str, ...],
    precision: str,
    batch: tuple[int, int, int],
    fault: Fault,
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The manifest's entry of one graph, and those of its two files."""
    tensor = _weights(precision, len(scenes), seed)
    weights = _store(folder, f"weights-{precision}", ".bin", tensor.raw_data)
    external_data_helper.set_external_data(tensor, weights["name"], offset=0, length=weights["size"])
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    ranged = batch[0] != batch[2]
    model = _model(precision, len(scenes), ranged, tensor, fault)
    onnx_file = _store(folder, f"{name}-{precision}", ".onnx", model.SerializeToString())
    n: int | str = "N" if ranged else 1
    tail = [] if len(scenes) == 1 else [len(scenes)]
    entry = {
        "name": name,
        "scenes": list(scenes),
        "precision": precision,
        "attention": "decomposed",
        "opset": 20,
        "moae": "exact",
        "onnx": onnx_file["name"],
        "weights": weights["name"],
        "crops": 1,
        "batch": batch,
        "inputs": {"crops": ("uint8", [n, 1, 224, 224, 3])},
        "outputs": {"score": (fault.declared, [n, *tail]), "crop_scores": ("float32", [n, 1, *tail])},
    }
    return entry, [onnx_file, weights]


def make_bundle(
    folder: Path,
    *,
    precisions: tuple[str, ...] = ("fp16",),
    scenes: tuple[str, ...] = SCENES,
    joint: bool = True,
    batch: tuple[int, int, int] = (1, 1, 1),
    fault: Fault = Fault(),
    seed: int = 0,
) -> Bundle:
    """Write NAME.gamma with a graph for each scene, and the joint one, in each precision."""
    folder.mkdir(exist_ok=True)
    wanted = [((scene,), scene) for scene in scenes] + ([(scenes, "joint")] if joint else [])
    made = [_graph(folder, name, group, p, batch, fault, seed) for p in precisions for group, name in wanted]
    files = {entry["name"]: entry for _, pair in made for entry in pair}
    return write_manifest(folder, [entry for entry, _ in made], list(files.values()), scenes)


def write_manifest(
    folder: Path, graphs: list[dict[str, Any]], files: list[dict[str, Any]], scenes: tuple[str, ...]
) -> Bundle:
    """A manifest that names these graphs and files, and the opened bundle."""
    from gamma_runtime.manifest import SCHEMA_VERSION, Manifest

    contract = Contract(short_sides=dict.fromkeys(scenes, 384), crop=CropPolicy("centre"))
    manifest = Manifest.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "created": "2026-11-21T00:00:00+00:00",
            "tool": "tests",
            "checkpoint": {
                "sha256": "0" * 64,
                "file": "tiny.pth",
                "kind": "authors",
                "prompts": "sdp",
                "prompts_assumed": False,
                "label": "untrained",
                "parameters": PIXELS,
                "score_levels": [0.2, 0.4, 0.6, 0.8, 1.0],
                "dims": {},
            },
            "scenes": [
                {"name": scene, "prompts": ["bad", "poor", "fair", "good", "perfect"], "kind": "sdp"}
                for scene in scenes
            ],
            "default_scene": scenes[0],
            "contract": contract.to_json(),
            "contract_sha256": contract.sha256(),
            "graphs": graphs,
            "parity": [],
            "golden": [],
            "files": files,
            "libraries": {},
            "options": {},
        }
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    return open_bundle(folder)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Name and content of every file except the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


_DRIVER = r"""
#include <stdlib.h>
#include <string.h>
static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == 100 ? "no CUDA-capable device is detected" : "stub words";
    return 0;
}
int cuDriverGetVersion(int *version) { *version = number("STUB_VERSION", 13000); return 0; }
int cuInit(unsigned flags) { return number("STUB_INIT", 0) + (int)(flags & 0); }
int cuDeviceGetCount(int *count) { *count = number("STUB_COUNT", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stub Orin", size); return device < 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return device < 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)8 << 30; return device < 0; }
"""


def _compile(folder: Path, source: str, library: Path) -> None:
    text = folder / f"{library.name}.c"
    text.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(text)], check=True)


def stub_driver(folder: Path) -> dict[str, str]:
    """Environment in which `libcuda.so.1` is a stub that answers as STUB_INIT, STUB_COUNT and STUB_VERSION say."""
    folder.mkdir(exist_ok=True)
    _compile(folder, _DRIVER, folder / "libcuda.so.1")
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**clean, "LD_LIBRARY_PATH": str(folder)}


def no_driver(folder: Path) -> dict[str, str]:
    """Environment in which `libcuda.so.1` does not load, also on a machine that has a GPU."""
    folder.mkdir(exist_ok=True)
    (folder / "libcuda.so.1").write_bytes(b"")
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**clean, "LD_LIBRARY_PATH": str(folder)}


def fake_tensorrt(folder: Path, source: str) -> str:
    """A folder for PYTHONPATH whose `tensorrt` package is the given source."""
    package = folder / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    return str(folder)


def mismatched_tensorrt(folder: Path) -> str:
    """A folder for PYTHONPATH whose `tensorrt` extension wants a symbol that no library has."""
    path = fake_tensorrt(folder, "from .bindings import *\n")
    source = "extern int getBuilderOfAnotherVersion(void); int (*PyInit_bindings)(void) = getBuilderOfAnotherVersion;"
    _compile(folder, source, folder / "tensorrt" / "bindings.so")
    return path


def run(module: str, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command of gamma_runtime in a process of its own."""
    command = [sys.executable, "-m", f"gamma_runtime.commands.{module}", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
