"""Which part of the model a node belongs to, by its name: the exporter names every node after what it does.

The shared and the adaptive experts of a block are one merged product (columns of the first, rows of the second), so
what cannot be told apart there is divided by their numbers: of 1 + 3 experts, a quarter is the shared one's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["ADAPTIVE", "ATTENTION", "HEAD", "MLP", "OTHER", "PARTS", "PATCH", "SHARED", "Parts", "parts_of"]

PATCH, ATTENTION, MLP, HEAD, OTHER = "patch", "attention", "mlp", "head", "other"
SHARED, ADAPTIVE = "shared expert", "adaptive experts"
PARTS = (PATCH, ATTENTION, MLP, SHARED, ADAPTIVE, HEAD, OTHER)  # mlp: of the blocks that have no experts

Shares = Mapping[str, Fraction]

_BLOCK = re.compile(r"blocks\.(\d{1,6})[./](.*)", re.ASCII | re.DOTALL)
_WHOLE = (
    (PATCH, r"(crops|frames|frame|patch|tokens|ln_pre)(?=[/._:]|$)"),
    (HEAD, r"(head|score|crop_scores)(?=[/._:]|$)"),
)
_SHARED, _ADAPTIVE = re.compile(r"(.*/)?shared_"), re.compile(r"(.*/)?adaptive_|gate(?!d)|softmax|out/scaled")
# out/scaled: where the halves of a merged product are apart, the scale is the adaptive half's.
_STOPS = re.compile(r"[\s,+(){}\[\]\x1e\x1f]+")  # between the names in a fused node's


@dataclasses.dataclass(frozen=True)
class Parts:
    """How names are read for one graph.

    Attributes:
        experts: adaptive experts of the blocks that have any, by block, e.g. ``{"blocks.6": 3}``.
        macs: multiply-adds by node: of the nodes that were fused into one, those with products divide its time.
    """

    experts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    macs: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def of(self, name: str) -> Shares | None:
        """The parts that share a node, adding up to 1; None where its name does not say.

        Example:
            >>> Parts({"blocks.6": 3}).of("blocks.6/moae/in")
            {'shared expert': Fraction(1, 4), 'adaptive experts': Fraction(3, 4)}
        """
        found = _BLOCK.match(name)
        if not found:
            return next(({part: Fraction(1)} for part, names in _WHOLE if re.match(names, name)), None)
        block = f"blocks.{found[1]}"
        kind, _, inside = found[2].replace(".", "/").partition("/")  # weights have dots where nodes have slashes
        if kind in ("attn", "ln_1"):
            return {ATTENTION: Fraction(1)}
        if kind == "mlp" or (kind == "ln_2" and self.experts and block not in self.experts):
            return {MLP: Fraction(1)}
        if kind not in ("moae", "ln_2"):
            return None
        if _SHARED.match(inside):
            return {SHARED: Fraction(1)}
        if _ADAPTIVE.match(inside):
            return {ADAPTIVE: Fraction(1)}
        number = self.experts.get(block)
        return {SHARED: Fraction(1, 1 + number), ADAPTIVE: Fraction(number, 1 + number)} if number else None

    def of_all(self, names: Iterable[str]) -> Shares:
        """The same for a node that several were fused into: by their multiply-adds, or evenly where none has any.

        Names that say nothing count only where no other does, as ``other``.
        """
        known = {name: shares for name in dict.fromkeys(names) if (shares := self.of(name))}
        if not known:
            return {OTHER: Fraction(1)}
        weights = {name: self.macs.get(name, 0) for name in known}
        if not any(weights.values()):
            weights = dict.fromkeys(known, 1)
        total = sum(weights.values())
        found: dict[str, Fraction] = {}
        for name, shares in known.items():
            for part, share in shares.items():
                found[part] = found.get(part, Fraction(0)) + share * Fraction(weights[name], total)
        return {part: share for part, share in found.items() if share}

    def origins(self, name: str) -> tuple[str, ...]:
        """The names in a fused node's name, as TensorRT joins them: ``a + b``, ``PWN(a, b)``, ``... to a``.

        A range such as ``{ForeignNode[a...b]}`` names its ends only, which say nothing of what lies between.
        """
        if "ForeignNode" in name or "..." in name:
            return ()
        return tuple(word for word in _STOPS.split(name) if word and self.of(word))


def parts_of(model: onnx.ModelProto) -> Parts:
    """How to read the names of a graph of ours; weights need not be loaded."""
    from gamma_calib.products import node_macs

    experts = {}
    for tensor in model.graph.initializer:
        found = re.fullmatch(r"(blocks\.\d+)\.moae\.out\.bias", tensor.name)
        if found and len(tensor.dims) == 2 and tensor.dims[0] > 1:
            experts[found[1]] = int(tensor.dims[0]) - 1
    return Parts(experts, node_macs(model))
