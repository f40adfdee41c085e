"""A bundle whose graphs score the mean brightness: every score can be computed by hand."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from gamma_runtime.bundle import MANIFEST, Bundle, open_bundle
from gamma_runtime.contract import Contract, CropPolicy
from gamma_runtime.crops import prepare

# Score of a scene: mean of the crop's pixels / 255, times the scene's factor.
FACTORS = {"natural-quality": 1.0, "face-quality": 0.5, "underwater-quality": 0.25}
SHORT_SIDES: dict[str, int | None] = {"natural-quality": 384, "face-quality": 512, "underwater-quality": 224}
_FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@dataclasses.dataclass(frozen=True)
class Tiny:
    """What the bundle is made of.

    ``dark_is_nan``: crops of a mean under 0.1 score NaN. ``own`` and ``joint``: which graphs there are.
    """

    crop: str = "five"
    batch: tuple[int, int, int] = (1, 1, 1)
    precision: str = "fp32"
    label: str | None = "untrained"
    levels: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    joint: bool = True
    own: bool = True
    dark_is_nan: bool = False
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def model(tiny: Tiny, factors: NDArray[np.float32], crops: int) -> tuple[ModelProto, bytes]:
    """crops -> mean -> times factors -> crop_scores, and their mean; the factors are external data."""
    kind = _FLOATS[tiny.precision]
    batch: int | str = tiny.batch[0] if tiny.batch[0] == tiny.batch[2] else "N"
    joint = len(factors) > 1
    content = factors.astype("<f4").tobytes()
    weights = TensorProto(name="factors", data_type=TensorProto.FLOAT, dims=factors.shape)
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", _name("weights", content, ".bin")), ("offset", "0"), ("length", str(len(content)))):
        weights.external_data.add(key=key, value=value)
    numbers = [
        numpy_helper.from_array(np.array([2, 3, 4]), "pixels"),
        numpy_helper.from_array(np.array([1]), "axis"),
        numpy_helper.from_array(np.array([0, 0, len(factors)] if joint else [0, 0]), "shape"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.float32(1 / 255), "scale"),
        numpy_helper.from_array(np.float32(0.1 if tiny.dark_is_nan else 0), "dark"),
        weights,
    ]
    nodes = [
        helper.make_node("Cast", ["crops"], ["typed"], to=kind),
        helper.make_node("Cast", ["typed"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide", "pixels"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["unit"]),
        # sqrt of a negative number is NaN; times zero it leaves the others alone.
        helper.make_node("Sub", ["unit", "dark"], ["over"]),
        helper.make_node("Sqrt", ["over"], ["root"]),
        helper.make_node("Sub", ["root", "root"], ["nothing"]),
        helper.make_node("Add", ["unit", "nothing"], ["checked"]),
        helper.make_node("Unsqueeze", ["checked", "last"], ["column"]),
        helper.make_node("Mul", ["column", "factors"], ["scores"]),
        helper.make_node("Reshape", ["scores", "shape"], ["crop_scores"]),
        helper.make_node("ReduceMean", ["crop_scores", "axis"], ["score"], keepdims=0),
    ]
    tail = [len(factors)] if joint else []
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, [batch, crops, 224, 224, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [batch, *tail]),
            helper.make_tensor_value_info("crop_scores", TensorProto.FLOAT, [batch, crops, *tail]),
        ],
        numbers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), content


def _name(stem: str, content: bytes, suffix: str) -> str:
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}"


def store(folder: Path, stem: str, content: bytes, suffix: str) -> dict[str, Any]:
    """Write a content-named file; its manifest entry."""
    name = _name(stem, content, suffix)
    (folder / name).write_bytes(content)
    return {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _graph(folder: Path, tiny: Tiny, name: str, scenes: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    crops = CropPolicy.parse(tiny.crop).crops
    made, content = model(tiny, np.array([FACTORS[s] for s in scenes], np.float32), crops)
    files = [store(folder, name, made.SerializeToString(), ".onnx"), store(folder, "weights", content, ".bin")]
    entry = {
        "name": name,
        "scenes": scenes,
        "precision": tiny.precision,
        "attention": "decomposed",
        "opset": 20,
        "moae": "exact",
        "onnx": files[0]["name"],
        "weights": files[1]["name"],
        "crops": crops,
        "batch": tiny.batch,
        "inputs": {},
        "outputs": {},
    }
    return entry, files


def _golden(contract: Contract, images: Mapping[str, bytes]) -> list[dict[str, Any]]:
    result = []
    for name, data in images.items():
        crops = {scene: prepare(data, contract, scene) for scene in SHORT_SIDES}
        result.append(
            {
                "file": name,
                "licence": "CC0-1.0",
                "crops_sha256": {scene: made.sha256() for scene, made in crops.items()},
                "scores": {s: float(made.crops.mean(dtype=np.float64) / 255 * FACTORS[s]) for s, made in crops.items()},
            }
        )
    return result


def make_bundle(folder: Path, tiny: Tiny | None = None, golden: Mapping[str, bytes] | None = None) -> Bundle:
    """Write a bundle of three scenes with their own graphs and the joint one."""
    tiny = tiny or Tiny()
    folder.mkdir()
    scenes = list(SHORT_SIDES)
    wanted = ([(s, [s]) for s in scenes] if tiny.own else []) + ([("joint", scenes)] if tiny.joint else [])
    made = [_graph(folder, tiny, name, group) for name, group in wanted]
    files = {file["name"]: file for _, pair in made for file in pair}
    images = {_name("golden", data, ".png"): data for data in (golden or {}).values()}
    files |= {name: store(folder, "golden", data, ".png") for name, data in images.items()}
    contract = Contract(short_sides=SHORT_SIDES, crop=CropPolicy.parse(tiny.crop))
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "created": "2026-11-21T00:00:00+00:00",
        "tool": "tests",
        "checkpoint": {
            "sha256": "0" * 64,
            "file": "tiny.pth",
            "kind": "authors",
            "prompts": "sdp",
            "prompts_assumed": False,
            "label": tiny.label,
            "parameters": 1,
            "score_levels": tiny.levels,
            "dims": {},
        },
        "scenes": [{"name": s, "prompts": ["bad", "poor", "fair", "good", "perfect"], "kind": "sdp"} for s in scenes],
        "default_scene": scenes[0],
        "contract": contract.to_json(),
        "contract_sha256": contract.sha256(),
        "graphs": [entry for entry, _ in made],
        "parity": [],
        "golden": _golden(contract, images),
        "files": list(files.values()),
        "libraries": {},
        "options": {},
    }
    return write_manifest(folder, manifest | dict(tiny.manifest))


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    """Validate, write, open."""
    from gamma_runtime.manifest import Manifest

    (folder / MANIFEST).write_text(Manifest.model_validate(manifest).model_dump_json(indent=2))
    return open_bundle(folder)
