"""What an ONNX file points at, read before any library opens it (hostile_inputs.md rows 11, 12, 15 and 16).

The manifest's digest says that a graph is the one that was exported; it does not say that the graph may be trusted.
ONNX libraries follow the paths of external data by rules of their own, and load operators that one of them alone knows.
A few lines that walk the protobuf fields refuse both, without the onnx package and without copying a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from gamma_runtime.cli import printable
from gamma_runtime.errors import InputError, IntegrityError

__all__ = ["MAX_GRAPH", "check_graph_file"]

MAX_GRAPH = 256 * 2**20  # bytes; a graph is some kilobytes, its weights lie beside it (protobuf ends at 2 GiB)
_MAX_DEPTH = 16
_LISTED = 5
_STANDARD = ("", "ai.onnx")
_KEYS = {"location", "offset", "length", "checksum"}
# Message -> field number -> message inside it, from onnx.proto. What is not named here carries neither data nor nodes.
_INSIDE = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
}
# Bits of one value by TensorProto.DataType; of the packed types only int4 has a place in a bundle's weights.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 17: 8, 22: 4}


def check_graph_file(path: Path, weights: str, size: int) -> None:
    """Refuse a graph that points anywhere but into its weights file, or that needs more than standard operators.

    Args:
        path: the ONNX file; its digest was compared before.
        weights: name of the one file beside it that it may refer to.
        size: bytes of that file.

    Raises:
        IntegrityError: external data elsewhere, past the end of the file, or with keys that ONNX does not know.
        InputError: not an ONNX file, too large, or operators outside the ONNX standard, which are named.
    """
    foreign: list[str] = []
    try:
        for kind, data in _walk("model", memoryview(_read(path)), 0):
            if kind == "tensor":
                _check_tensor(path, data, weights, size)
            elif kind in ("node", "opset"):
                foreign += _foreign(kind, data)
            elif kind in ("function", "training"):
                foreign.append(f"a {kind} inside the model")
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not an ONNX file ({error})", hint="re-run gamma-export") from error
    if foreign:
        more = f" and {len(foreign) - _LISTED} more" if len(foreign) > _LISTED else ""
        listed = printable(", ".join(foreign[:_LISTED]))  # names come from the file
        raise InputError(
            f"{path}: needs operators outside the ONNX standard: {listed}{more}",
            hint="libraries of custom operators are never loaded",
        )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_GRAPH + 1)
    except OSError as error:  # it was there a moment ago: a new export took it away
        raise IntegrityError(f"{path}: cannot be read: {error.strerror}", hint="try again") from error
    if len(content) > MAX_GRAPH:
        raise InputError(
            f"{path}: a graph file ends at {MAX_GRAPH >> 20} MiB",
            hint="weights belong into the file beside it: re-run gamma-export",
        )
    return content


def _walk(kind: str, data: memoryview, depth: int) -> Iterator[tuple[str, memoryview]]:
    """Every message that matters, with its kind, from the outside in."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    inside = _INSIDE.get(kind, {})
    for number, value in _fields(data):
        if number in inside and isinstance(value, memoryview):
            yield inside[number], value
            yield from _walk(inside[number], value, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or the bytes of a text, a message or packed numbers.

    Raises:
        ValueError: not protobuf. IndexError: cut off.
    """
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            length, place = _varint(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        if number == 0 or length > len(data) - place:
            raise ValueError(f"a field of {length} bytes does not fit at byte {place}")
        yield number, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"a number of more than ten bytes at byte {place}")


def _text(value: int | memoryview) -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, memoryview) else str(value)


def _foreign(kind: str, data: memoryview) -> list[str]:
    """The node or operator set in words, if its domain is not the standard one."""
    fields = {number: _text(value) for number, value in _fields(data)}
    domain = fields.get(7 if kind == "node" else 1, "")
    if domain in _STANDARD:
        return []
    return [f"{fields.get(3, '')!r} ({domain}.{fields.get(4, '')})" if kind == "node" else f"operator set {domain!r}"]


def _check_tensor(path: Path, data: memoryview, weights: str, size: int) -> None:
    """External data must be a range of the weights file that holds exactly the tensor's values."""
    name, kind, dims, entries, external = "", 0, [], [], False
    for number, value in _fields(data):
        if number == 8:
            name = _text(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 1:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == 13 and isinstance(value, memoryview):
            entries.append({n: _text(v) for n, v in _fields(value)})
        elif number == 14:
            external = value == 1
    if not external and not entries:
        return

    def refuse(why: str) -> NoReturn:
        raise IntegrityError(f"{path}: weight {name!r} {why}", hint="re-run gamma-export")

    keys = {entry.get(1, ""): entry.get(2, "") for entry in entries}
    if len(keys) != len(entries) or set(keys) - _KEYS:
        refuse(f"has the external-data keys {sorted(entry.get(1, '') for entry in entries)}")
    if keys.get("location") != weights:
        refuse(f"lies in {keys.get('location', '')!r}, not in {weights}")
    offset, length = (keys.get(key, "0") for key in ("offset", "length"))
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in (offset, length)):
        refuse(f"has offset {offset!r} and length {length!r}")
    if kind not in _BITS or int(length) != -(-math.prod(dims) * _BITS[kind] // 8):
        refuse(f"has length {length}, which does not hold {dims} values of type {kind}")
    if int(offset) + int(length) > size:
        refuse(f"ends at byte {int(offset) + int(length)}; {weights} has {size}")


def _packed(data: memoryview) -> list[int]:
    numbers, place = [], 0
    while place < len(data):
        number, place = _varint(data, place)
        numbers.append(number)
    return numbers
