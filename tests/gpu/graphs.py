"""Conditioned models, the graphs built from them, and crops of real photos: what the checks on any device share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from gamma_calib.external import write_external
from gamma_calib.lint import check_qdq
from gamma_calib.products import find_attention, find_products, taps_of
from gamma_calib.qdq import Recipe, Source, packed, place
from gamma_export.fold import fold_text, fold_vision
from gamma_export.lint import check_graph
from gamma_export.parity import verification_crops
from gamma_export.photos import packaged_photos
from gamma_export.untrained import conditioned_model
from gamma_export.vision import GraphOptions, build_graph
from gamma_export.weights import write_weights
from gamma_runtime.selftest import GATES
from gamma_training.dims import FULL_SIZE, GammaDims
from gamma_training.initialise import smaller
from gamma_training.model import Gamma
from tests.gpu.interpreter import Interpreter, exact_products

__all__ = [
    "GATES",
    "SPELLINGS",
    "TINY",
    "Measured",
    "Subject",
    "judge",
    "make_subject",
    "max_difference",
    "subject_of",
    "torch_scores",
    "write_eight_bits",
    "write_graph",
]

TINY = smaller(FULL_SIZE, width=128, layers=4, first_moae=2)
SPELLINGS = [("fp32", "decomposed"), ("fp16", "decomposed"), ("bf16", "decomposed"), ("fp16", "op"), ("bf16", "op")]
_BATCH = 8

Scores = NDArray[np.float64]
Measured = Callable[..., None]
Change = Callable[[dict[str, Tensor]], None]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with its text features [25, embed], uint8 crops [P, 224, 224, 3] and fp32 CPU scores [P, 5]."""

    model: Gamma
    text: Tensor
    crops: NDArray[np.uint8]
    scores: Scores
    spread: float

    def scored_by(self, run: Callable[[NDArray[np.uint8]], Any], batch: int = _BATCH) -> Scores:
        """Crop scores [P, 5] of something that takes uint8 [N, 1, 224, 224, 3] and gives [N, 1, 5]."""
        parts = [self.crops[i : i + batch, None] for i in range(0, len(self.crops), batch)]
        return np.concatenate([np.asarray(run(part), dtype=np.float64)[:, 0] for part in parts])


def make_subject(dims: GammaDims, photos: int = 16) -> Subject:
    """Seeded, conditioned on the packaged photos; scored on the first of them and their two degraded copies."""
    model, text, spread = conditioned_model(dims, 0)
    return subject_of(model, text, photos, spread)


def subject_of(model: Gamma, text: Tensor, photos: int, spread: float = 0.0) -> Subject:
    """Score a model in fp32 on the CPU."""
    crops = verification_crops(packaged_photos()[:photos])
    return Subject(model, text, crops, torch_scores(model, text, crops), spread)


def torch_scores(model: Gamma, text: Tensor, crops: NDArray[np.uint8]) -> Scores:
    """Scores [P, 5] by the PyTorch module, on the device that holds it."""
    made = []
    with torch.inference_mode(), exact_products():
        for start in range(0, len(crops), _BATCH):
            part = torch.from_numpy(crops[start : start + _BATCH]).to(text.device)
            made.append(model.score(part, text).cpu())
    return torch.cat(made).numpy().astype(np.float64)


def write_graph(
    folder: Path,
    model: Gamma,
    text: Tensor,
    precision: str,
    attention: str,
    change: Callable[[Any], None] | None = None,
) -> Path:
    """The joint graph of the five scenes for one crop an image, N free; ``change`` edits a copy of the weights."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if change is not None:
        change(state)
    options = GraphOptions(precision=precision, attention=attention, crops=1, batch=(1, _BATCH, _BATCH))
    folder.mkdir(exist_ok=True)
    weights = write_weights(folder, fold_vision(state, model.dims), precision)
    folded = fold_text(text, state["clip_model.logit_scale"])
    path = folder / f"joint-{precision}-{attention}.onnx"
    path.write_bytes(build_graph("joint", weights, model.dims, folded, options).SerializeToString())
    if (precision, attention) in SPELLINGS:
        check_graph(path, model.dims, options)
    return path


def write_eight_bits(folder: Path, subject: Subject, kind: str) -> Path:
    """The graph for TensorRT with every group in int8 or fp8, ranges from the peaks on the subject's own crops.

    ``kind`` int4: int8, with the adaptive experts' weights in 4 bits.
    """
    names = {p: write_graph(folder, subject.model, subject.text, p, "decomposed") for p in ("fp32", "fp16")}
    models = {p: onnx.load(path, load_external_data=False) for p, path in names.items()}
    products = [product for product in find_products(models["fp32"]) if product.by_default]
    taps = taps_of(products)
    groups, ranges = {product.group for product in products}, dict.fromkeys((tap.name for tap in taps), 0.0)
    if kind == "fp8":
        inside = find_attention(models["fp32"])
        groups |= {attention.group for attention in inside}
        taps += [tap for attention in inside for tap in attention.taps]
        ranges |= {attention.group.replace("products", "softmax"): 1.0 for attention in inside}

    def observe(name: str, value: Tensor) -> None:
        for tap in taps:
            if tap.tensor == name:
                part = value if tap.columns is None else value[:, slice(*tap.columns)]
                ranges[tap.name] = max(ranges.get(tap.name, 0.0), float(part.abs().max()))

    interpreter = Interpreter(names["fp32"])
    subject.scored_by(lambda crops: interpreter.run(crops, observe)["crop_scores"])
    state = subject.model.state_dict()
    tower = subject.model.dims.vision
    home = "clip_model.visual.transformer.resblocks.{}.mlp.scale"
    scales = {f"blocks.{i}": float(state[home.format(i)]) for i in range(tower.first_moae, tower.layers)}
    four = frozenset(group for group in groups if kind == "int4" and "/moae/adaptive_" in group)
    recipe = Recipe(frozenset(groups), ranges, "int8" if four else kind, int4=four)
    source = Source(models["fp32"], folder, scales)
    weights = write_external(folder, f"weights-{kind}", packed(models["fp16"], source, recipe))
    path = folder / f"joint-{kind}.onnx"
    path.write_bytes(place(models["fp16"], source, recipe, weights, "fp16").SerializeToString())
    check_qdq(path, recipe, "fp16")
    return path


def max_difference(wanted: Scores, found: Scores) -> float:
    """Largest |difference| in score units."""
    return float(np.abs(wanted - found).max())


def judge(measured: Measured, wanted: Scores, found: Scores, gate: float) -> None:
    """Note the differences for the report, then hold them against the gate."""
    gap = np.abs(wanted - found)
    measured(max_abs=float(gap.max()), mean_abs=float(gap.mean()), scores_std=float(wanted.std()), gate=gate)
    assert gap.max() <= gate
