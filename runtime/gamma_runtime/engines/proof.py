"""What was built: the types in the parsed network, before any GPU is asked, and in the engine, where one can be loaded.

"Asked for fp16, got fp32" is a build that ends well and an engine that is twice as slow; so the types are counted, not
believed (user_pains.md row 5).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gamma_runtime.errors import EnvironmentFault

__all__ = ["check_engine", "check_products", "count_engine", "count_products"]

_LEAST_SHARE = 0.9  # of the products' weights outside the head
_HEAD = "head/"  # our graphs' names for what stays in fp32 by design: 0.8 % of the full model, most of a tiny one
_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4"}
# How the engine inspector calls them. TensorRT 10 writes "Half", "Half(197,1:8,...)" or a sentence such as "Row major
# linear FP16 format"; 11 has the type in a key of its own.
_INSPECTOR = {
    "fp32": ("float", "fp32"),
    "fp16": ("half", "fp16"),
    "bf16": ("bf16", "bfloat16"),
    "int8": ("int8",),
    "fp8": ("fp8",),
}
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4}
_THROUGH = ("SHUFFLE", "CAST", "IDENTITY", "QUANTIZE", "DEQUANTIZE")  # what lies between a constant and its product


def count_products(network: Any) -> dict[str, dict[str, int]]:
    """Matrix products of a parsed network by the type they compute in, and the bytes of the weights they take.

    A weight counts in the type in which it reaches the product, so an fp16 file behind a Cast to fp32 is fp32; but
    where it is dequantised on the way, in the type of its codes.

    Returns:
        ``{"products": {"fp16": 85, "fp32": 4}, "weight_bytes": {"fp16": 340982784}, "head_bytes": {"fp32": 2641920}}``.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    products: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    head: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name != "MATRIX_MULTIPLY":
            continue
        products[_type(layer.get_input(0))] += 1
        for operand in (layer.get_input(0), layer.get_input(1)):
            if _is_constant(operand, makers):
                place = head if layer.name.startswith(_HEAD) else weights
                stored = _stored(operand, makers)
                place[stored] += _elements(operand) * _BITS.get(stored, 8) // 8
    return {"products": dict(products), "weight_bytes": dict(weights), "head_bytes": dict(head)}


def _type(tensor: Any) -> str:
    name = str(tensor.dtype.name)
    return _NAMES.get(name, name.lower())


def _elements(tensor: Any) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _is_constant(tensor: Any, makers: Mapping[str, Any]) -> bool:
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in _THROUGH:
        layer = makers.get(layer.get_input(0).name)
    return layer is not None and layer.type.name == "CONSTANT"


def _stored(tensor: Any, makers: Mapping[str, Any]) -> str:
    """The type of a constant's codes where it is dequantised, else the type in which it arrives."""
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in _THROUGH:
        if layer.type.name == "DEQUANTIZE":
            return _type(layer.get_input(0))
        layer = makers.get(layer.get_input(0).name)
    return _type(tensor)


def check_products(counted: Mapping[str, Mapping[str, int]], precision: str, int8_share: float | None = None) -> None:
    """The network's products take their weights in the precision that was asked for.

    ``int8_share``: what an int8 graph promises, as a share of the multiply-adds; None where it is all of them.

    Raises:
        EnvironmentFault: with the shares found.
    """
    weights: Mapping[str, float] = counted["weight_bytes"]
    if precision in ("int8", "fp8"):  # multiply-adds go with the number of weights, not with their bytes
        weights = {name: 8 * count / _BITS.get(name, 8) for name, count in weights.items()}
    total, promised = sum(weights.values()), 1.0 if int8_share is None else int8_share
    if total == 0 or weights.get(precision, 0) >= _LEAST_SHARE * promised * total:
        return
    unit = "number" if precision in ("int8", "fp8") else "bytes"
    shares = ", ".join(f"{share / total:.0%} {name}" for name, share in sorted(weights.items()))
    raise EnvironmentFault(
        f"asked for {precision}, got {shares} ({unit} of the products' weights in the parsed network)",
        hint="re-run gamma-export; if this stays, build another --precision",
    )


def count_engine(text: str) -> dict[str, Any]:
    """What the engine inspector's JSON says, in the schema of TensorRT 10 or of 11.

    Returns:
        ``schema`` 10 or 11, number of ``layers`` and of ``reformats``, ``outputs`` (layers by the type they write) and
        ``weight_bytes`` by type, where layers state weights.

    Raises:
        EnvironmentFault: no JSON object with layers, or one without details.
    """
    try:
        data = json.loads(text)
        layers = data["Layers"]
        detailed = [layer for layer in layers if isinstance(layer, dict)]
    except (ValueError, TypeError, KeyError) as error:
        raise EnvironmentFault(f"the engine inspector's answer is not understood ({error})") from error
    if layers and not detailed:
        raise EnvironmentFault("the engine was built without details: its inspector names layers, not types")
    outputs: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for layer in detailed:
        outputs.update({kind for tensor in layer.get("Outputs", ()) if (kind := _inspected(tensor))})
        stated = layer.get("Weights")
        if isinstance(stated, dict) and (kind := _named(str(stated.get("Type", "")))):
            weights[kind] += int(stated.get("Count", 0)) * _BITS[kind] // 8
    reformats = sum(str(layer.get("LayerType", "")).lower() == "reformat" for layer in detailed)
    return {
        "schema": 11 if "I/O Tensors" in data else 10,
        "layers": len(detailed),
        "reformats": reformats,
        "outputs": dict(outputs),
        "weight_bytes": dict(weights),
    }


def _inspected(tensor: Mapping[str, Any]) -> str | None:
    for key in ("DataType", "Datatype", "Format/Datatype"):
        if key in tensor:
            return _named(str(tensor[key]))
    return None


def _named(text: str) -> str | None:
    """The type in the inspector's words; None for integers, booleans and ``N/A due to dynamic shapes``."""
    lower = text.lower()
    for kind in ("bf16", "fp16", "fp8", "int8", "fp32"):  # "bfloat16" holds "float"
        if any(word in lower for word in _INSPECTOR[kind]):
            return kind
    return None


def check_engine(counted: Mapping[str, Any], precision: str) -> None:
    """An engine that was asked for in 16 bits has layers or weights in them; where no type is stated it passes.

    Raises:
        EnvironmentFault: everything that states a type is wider.
    """
    weights, outputs = counted["weight_bytes"], counted["outputs"]
    found = weights or outputs
    if precision == "fp32" or not found or found.get(precision):
        return
    listed = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    raise EnvironmentFault(
        f"asked for {precision}, got {listed} ({'weight bytes' if weights else 'layers'} in the engine)",
        hint="the build log says which tactics were taken; report it with the log",
    )
