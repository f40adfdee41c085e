"""The manifest's text: where the weights came from, what was asked for, what was measured and with what."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_export.int8 import moae_scales
from gamma_runtime.cli import printable

if TYPE_CHECKING:
    from gamma_export.int8 import Int8Graphs
    from gamma_export.plan import ExportOptions, Plan
    from gamma_runtime.manifest import FileEntry, Golden, GraphEntry, Manifest, Parity
    from gamma_training.checkpoint import Checkpoint

__all__ = ["describe"]


def describe(
    checkpoint: Checkpoint,
    plan: Plan,
    options: ExportOptions,
    files: list[FileEntry],
    graphs: list[GraphEntry],
    parity: list[Parity],
    golden: list[Golden],
    int8: Int8Graphs | None = None,
) -> Manifest:
    """The manifest of a bundle whose files are written and measured."""
    from gamma_runtime import __version__
    from gamma_runtime.manifest import SCHEMA_VERSION, CheckpointInfo, Manifest, SceneEntry

    levels = [float(v) for v in checkpoint.state["score_level"]]
    info = CheckpointInfo(
        sha256=checkpoint.sha256,
        file=_line(checkpoint.path.name),
        kind=checkpoint.kind,
        prompts=checkpoint.prompts,
        prompts_assumed=checkpoint.prompts_assumed,
        label=_line(checkpoint.label) if checkpoint.label else None,
        licence=_line(checkpoint.licence) if checkpoint.licence else None,
        parameters=checkpoint.parameters,
        score_levels=levels,
        dims=checkpoint.dims.to_json(),
        moae_scales=moae_scales(checkpoint),
    )
    chosen = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items()}
    for name in ("photos", "labels", "scene_file", "calib", "calib_cache", "recipe"):
        del chosen[name]  # paths of the exporting machine; prompts and recipe are recorded
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        tool=f"gamma-edge {__version__}",
        checkpoint=info,
        scenes=[SceneEntry(name=s.name, prompts=list(s.prompts), kind=s.kind) for s in plan.scenes],
        default_scene=plan.scenes[0].name,
        contract=plan.contract.to_json(),
        contract_sha256=plan.contract.sha256(),
        graphs=graphs,
        parity=parity,
        golden=golden,
        files=list({entry.name: entry for entry in files}.values()),
        quantisation=int8.quantisation if int8 else None,
        libraries=_libraries(),
        options=chosen | {"licence": info.licence},
        warnings=_warnings(checkpoint, plan) + [_line(text) for text in (int8.warnings if int8 else ())],
    )


def _line(text: str) -> str:
    """As the manifest wants it: one line, no control characters."""
    return printable(text)[:500]


def _libraries() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "onnx", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "opencv-python-headless"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _warnings(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    warnings = list(checkpoint.doubts)
    for scene in plan.scenes:
        if scene.kind != checkpoint.prompts:
            warnings.append(
                f"scene {scene.name}: {scene.kind} prompts, the checkpoint was trained with {checkpoint.prompts} ones"
            )
        trained = scene.short_side
        if (frame := plan.contract.crop.frame) and trained and min(frame) > trained:
            warnings.append(
                f"scene {scene.name}: frames of {frame[0]}x{frame[1]} are scored at their own pixels; it was trained "
                f"on photos with a short side of {trained}, so its scores may mean something else"
            )
    return warnings
