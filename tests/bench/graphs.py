"""Graphs of a Gamma with any dimensions and no weights: only their shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from gamma_calib.external import Place, WeightsFile
from gamma_export.vision import GraphOptions, build_graph
from gamma_training.dims import GammaDims

TOKENS = 197


def shapes(dims: GammaDims) -> dict[str, tuple[int, ...]]:
    """The weights of the deployed graph, by name; products are those of two dimensions that are not a constant."""
    tower = dims.vision
    width, hidden, both = tower.width, tower.hidden, 1 + tower.experts
    found: dict[str, tuple[int, ...]] = {
        "patch.weight": (dims.patch**2 * 3, width),
        "tokens.constant": (TOKENS, width),
        "head.proj": (width, dims.embed),
        "head.adapter_in": (dims.embed, dims.adapter),
        "head.adapter_out": (dims.adapter, dims.embed),
        "head.levels": (dims.levels,),
    }
    norms = ["ln_pre", "ln_post"]
    for index in range(tower.layers):
        block = f"blocks.{index}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        linear = {"attn.qkv": (width, 3 * width), "attn.out": (width, width)}
        if index < tower.first_moae:
            linear |= {"mlp.in": (width, hidden), "mlp.out": (hidden, width)}
        else:
            linear |= {"moae.gate": (width, tower.experts), "moae.in": (width, both * hidden)}
            found[f"{block}.moae.out.weight"] = (both * hidden, width)
            found[f"{block}.moae.out.bias"] = (both, width)
        for name, shape in linear.items():
            found |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[1:]}
    return found | {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}


def graph(dims: GammaDims, scenes: int = 1, **options: Any) -> onnx.ModelProto:
    """The exporter's own graph; its weights are places in a file that nobody wrote."""
    chosen = GraphOptions(**({"precision": "fp32"} | options))
    size = {"fp32": 4}.get(chosen.precision, 2)
    places = {}
    for name, shape in shapes(dims).items():
        exact = name.startswith(("head.", "tokens.")) or ".ln_" in f".{name}"
        places[name] = Place("fp32" if exact else chosen.precision, shape, 0, math.prod(shape) * (4 if exact else size))
    text = np.zeros((dims.embed, dims.levels * scenes))
    return build_graph("unweighted", WeightsFile("weights.bin", 1, "0" * 64, places), dims, text, chosen)
