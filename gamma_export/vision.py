"""The deployed graph: uint8 crops or camera frames in, scores out (design.md section 3). Built, not traced.

Spelled the way TensorRT compiles well (tensorrt.md 3 and 4): tokens are 2-D ``[N*C*197, D]`` around every product,
LayerNormalization is the fused op in fp32, a MoAE block is two merged products, attention is decomposed (or the
opset-23 ``Attention`` op). Shapes in comments: B = N*C crops, T = 197 tokens, M = B*T rows, D width, X = 1 + experts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from gamma_export.fold import PIXEL_CENTRE
from gamma_export.graph import GraphWriter
from gamma_training.dims import HEAD_WIDTH, GammaDims
from gamma_training.model import QUICK_GELU

if TYPE_CHECKING:
    import onnx

    from gamma_calib.external import WeightsFile
    from gamma_runtime.contract import CropPolicy

__all__ = ["GraphOptions", "build_graph", "graph_io"]

_GELU = {"root": 2**0.5, "one": 1.0, "half": 0.5}
IO = dict[str, tuple[str, list[int | str]]]


@dataclasses.dataclass(frozen=True)
class GraphOptions:
    """What differs between graphs of one checkpoint.

    ``precision`` is that of the products; ``residual`` that of the residual stream between blocks. ``batch`` is
    (least, optimal, most): equal ends make a static graph. ``frame`` is the crop policy where camera frames are the
    graph's input and it cuts the crops; it has the frame's size.
    """

    precision: str = "fp16"
    residual: str = "fp32"
    attention: str = "decomposed"
    crops: int = 5
    batch: tuple[int, int, int] = (1, 1, 1)
    frame: CropPolicy | None = None

    @property
    def places(self) -> list[tuple[int, int]]:
        """Top and left of each crop that the graph cuts; none where it takes crops."""
        from gamma_runtime.crops import positions

        return positions(self.frame, self.frame.width, self.frame.height) if self.frame else []

    @property
    def opset(self) -> int:
        """20, or 23 for the Attention op."""
        return 23 if self.attention == "op" else 20


def graph_io(options: GraphOptions, dims: GammaDims, scenes: int) -> tuple[IO, IO]:
    """Names, types and shapes of the graph's inputs and outputs; ``N`` is a name when the batch is a range."""
    n: int | str = options.batch[0] if options.batch[0] == options.batch[2] else "N"
    many: list[int | str] = [scenes] if scenes > 1 else []
    inputs: IO = {"crops": ("uint8", [n, options.crops, dims.image, dims.image, 3])}
    if options.frame:
        inputs = {"frames": ("uint8", [n, options.frame.height, options.frame.width, 3])}
    outputs: IO = {"score": ("fp32", [n, *many]), "crop_scores": ("fp32", [n, options.crops, *many])}
    return inputs, outputs


def build_graph(
    name: str, weights: WeightsFile, dims: GammaDims, text: np.ndarray[Any, Any], options: GraphOptions
) -> onnx.ModelProto:
    """One scene's graph, or the joint one.

    Args:
        name: the graph's name.
        weights: the written weights of this precision.
        dims: the model's dimensions.
        text: float64 [embed, 5 * K], `fold_text` of the K scenes.
        options: precision, attention, crops and batch.
    """
    return _VisionGraph(name, weights, dims, text, options).model()


class _VisionGraph:
    def __init__(
        self, name: str, weights: WeightsFile, dims: GammaDims, text: np.ndarray[Any, Any], options: GraphOptions
    ) -> None:
        self.g = GraphWriter(name, weights, options.opset)
        self.dims, self.options, self.text = dims, options, text
        self.scenes = text.shape[1] // dims.levels
        self.half = options.precision
        self.residual = options.residual if options.precision != "fp32" else "fp32"

    def model(self) -> onnx.ModelProto:
        x = self.embed()
        for index in range(self.dims.vision.layers):
            x = self.block(x, index)
        self.head(x)
        return self.g.model(*graph_io(self.options, self.dims, self.scenes))

    def embed(self) -> str:
        """uint8 [N, C, 224, 224, 3], or frames [N, H, W, 3] -> tokens, after ln_pre where there is one, [M, D]."""
        g, d = self.g, self.dims
        side = d.image // d.patch
        source = "frames" if self.options.frame else "crops"
        g.dtype[source] = "uint8"
        x = g.cast(source, self.half, "pixels")  # TensorRT wants the Cast first
        if self.options.frame:
            x = self.cut(x)
        for op, sign in (("Sub", 1.0), ("Mul", -1.0)):  # exact: see fold.PIXEL_CENTRE
            scalar = g.constant(f"patch.{op.lower()}", np.array(PIXEL_CENTRE**sign), self.half)
            x = g.node(op, f"patch/{op.lower()}", [x, scalar], dtype=self.half)
        x = g.reshape(x, "patch/grid", (-1, side, d.patch, side, d.patch, 3))
        x = g.transpose(x, "patch/order", (0, 1, 3, 2, 4, 5))
        x = g.reshape(x, "patch/pixels", (-1, d.tokens - 1, d.patch * d.patch * 3))
        # A zero row in front becomes the class token: its constant holds the class embedding.
        pads = g.constant("patch.pads", np.array([0, 1, 0, 0, 0, 0]), "int64")
        x = g.node("Pad", "patch/class_row", [x, pads], dtype=self.half)
        x = self.product(g.reshape(x, "patch/rows", (-1, d.patch * d.patch * 3)), "patch/product", "patch.weight")
        x = g.cast(x, "fp32", "norm")
        x = g.reshape(x, "tokens/sequence", (-1, d.tokens, d.vision.width))
        x = g.node("Add", "tokens/add", [x, g.weight("tokens.constant")], dtype="fp32")
        x = g.reshape(x, "tokens/rows", (-1, d.vision.width))
        x = self.norm(x, "ln_pre", "ln_pre") if d.ln_pre else x
        return g.cast(x, self.residual, "residual")

    def cut(self, x: str) -> str:
        """Frames [N, H, W, 3] -> their crops one below the other, [N, C*224, 224, 3]; in memory [N, C, 224, ...]."""
        g, side = self.g, self.dims.image
        axes = g.constant("frame.axes", np.array([1, 2]), "int64")
        crops = []
        for index, place in enumerate(self.options.places):
            start = g.constant(f"frame.start_{index}", np.array(place), "int64")
            end = g.constant(f"frame.end_{index}", np.array(place) + side, "int64")
            crops.append(g.node("Slice", f"frame/crop_{index}", [x, start, end, axes], dtype=self.half))
        if len(crops) == 1:
            return crops[0]
        return g.node("Concat", "frame/crops", crops, dtype=self.half, attributes={"axis": 1})

    def block(self, x: str, index: int) -> str:
        """Residual stream [M, D] -> [M, D]."""
        name = f"blocks.{index}"
        x = self.add(x, self.attention(self.normed(x, f"{name}/ln_1"), name), f"{name}/attn/add")
        z = self.normed(x, f"{name}/ln_2")
        moae = index >= self.dims.vision.first_moae
        return self.add(x, self.moae(z, name) if moae else self.mlp(z, name), f"{name}/{'moae' if moae else 'mlp'}/add")

    def attention(self, z: str, name: str) -> str:
        """Self-attention of every crop; 1/sqrt(64) is in the query weights."""
        g, heads, width = self.g, self.dims.vision.heads, self.dims.vision.width
        packed = self.linear(z, f"{name}/attn/qkv", f"{name}.attn.qkv")
        sizes = g.constant("shape.qkv", np.full(3, width), "int64")
        g.node("Split", f"{name}/attn/split", [packed, sizes], dtype=self.half, outputs=3, attributes={"axis": 1})
        q, k, v = (f"{name}/attn/split{suffix}" for suffix in ("", ":1", ":2"))
        q, k, v = (
            g.transpose(
                g.reshape(part, f"{name}/attn/{label}_heads", (-1, self.dims.tokens, heads, HEAD_WIDTH)),
                f"{name}/attn/{label}",
                order,
            )
            for part, label, order in ((q, "q", (0, 2, 1, 3)), (k, "k", self._key_order), (v, "v", (0, 2, 1, 3)))
        )
        mixed = self._attention_op(q, k, v, name) if self.options.attention == "op" else self._decomposed(q, k, v, name)
        mixed = g.reshape(g.transpose(mixed, f"{name}/attn/merge", (0, 2, 1, 3)), f"{name}/attn/rows", (-1, width))
        return self.linear(mixed, f"{name}/attn/out", f"{name}.attn.out")

    @property
    def _key_order(self) -> tuple[int, ...]:
        return (0, 2, 1, 3) if self.options.attention == "op" else (0, 2, 3, 1)  # [B, h, T, d] or transposed

    def _decomposed(self, q: str, k: str, v: str, name: str) -> str:
        g = self.g
        logits = g.node("MatMul", f"{name}/attn/scores", [q, k], dtype=self.half)  # [B, h, T, T]
        shares = g.node(
            "Softmax",
            f"{name}/attn/softmax",
            [g.cast(logits, "fp32", "softmax")],
            dtype="fp32",
            attributes={"axis": -1},
        )
        return g.node("MatMul", f"{name}/attn/mix", [g.cast(shares, self.half, "product"), v], dtype=self.half)

    def _attention_op(self, q: str, k: str, v: str, name: str) -> str:
        # TensorRT's parser refuses softmax_precision; its fused kernels accumulate in fp32 by themselves.
        attributes = {"scale": 1.0}
        return self.g.node("Attention", f"{name}/attn/attention", [q, k, v], dtype=self.half, attributes=attributes)

    def mlp(self, z: str, name: str) -> str:
        hidden = self.activation(self.linear(z, f"{name}/mlp/in", f"{name}.mlp.in"), f"{name}/mlp")
        return self.linear(hidden, f"{name}/mlp/out", f"{name}.mlp.out")

    def moae(self, z: str, name: str) -> str:
        """Shared and adaptive experts as two merged products; the gate multiplies the hidden blocks (1 for shared)."""
        g, tower = self.g, self.dims.vision
        blocks = 1 + tower.experts
        gates = self.gates(z, name)  # [M, X]
        hidden = self.activation(self.linear(z, f"{name}/moae/in", f"{name}.moae.in"), f"{name}/moae")
        hidden = g.reshape(hidden, f"{name}/moae/experts", (-1, blocks, tower.hidden))
        column = g.reshape(gates, f"{name}/moae/gate_column", (-1, blocks, 1))
        hidden = g.node("Mul", f"{name}/moae/gated", [hidden, column], dtype=self.half)
        hidden = g.reshape(hidden, f"{name}/moae/gated_rows", (-1, blocks * tower.hidden))
        out = self.product(hidden, f"{name}/moae/out", f"{name}.moae.out.weight")
        bias = self.product(gates, f"{name}/moae/bias", f"{name}.moae.out.bias")
        return g.node("Add", f"{name}/moae/biased", [out, bias], dtype=self.half)

    def gates(self, z: str, name: str) -> str:
        """Per-token softmax over the adaptive experts in fp32, with the shared expert's 1 in front: [M, X]."""
        g = self.g
        logits = g.cast(self.linear(z, f"{name}/moae/gate", f"{name}.moae.gate"), "fp32", "softmax")
        shares = g.node("Softmax", f"{name}/moae/softmax", [logits], dtype="fp32", attributes={"axis": -1})
        pads = g.constant("moae.pads", np.array([0, 1, 0, 0]), "int64")
        one = g.constant("moae.shared_gate", np.array(1.0), "fp32")
        return g.cast(g.node("Pad", f"{name}/moae/gates", [shares, pads, one], dtype="fp32"), self.half, "product")

    def head(self, x: str) -> None:
        """Class token -> projection, adapter, L2 norm, softmax, weighted sum, mean over crops; all fp32."""
        g, d = self.g, self.dims
        x = g.reshape(x, "head/sequence", (-1, d.tokens, d.vision.width))
        x = g.node(
            "Gather",
            "head/class_token",
            [x, g.constant("head.zero", np.array(0), "int64")],
            dtype=self.residual,
            attributes={"axis": 1},
        )
        x = self.norm(g.cast(x, "fp32", "norm"), "head/ln_post", "ln_post")
        v = self.product(x, "head/proj", "head.proj")  # [B, embed]
        a = v
        for step in ("in", "out"):
            a = g.node(
                "Relu",
                f"head/adapter_{step}/relu",
                [self.product(a, f"head/adapter_{step}", f"head.adapter_{step}")],
                dtype="fp32",
            )
        v = g.node("Add", "head/adapter_add", [v, a], dtype="fp32")
        axis = g.constant("head.last", np.array([-1]), "int64")
        length = g.node("ReduceL2", "head/length", [v, axis], dtype="fp32", attributes={"keepdims": 1})
        v = g.node("Div", "head/unit", [v, length], dtype="fp32")
        text = g.constant("head.text", self.text, "fp32")
        logits = g.node("MatMul", "head/logits", [v, text], dtype="fp32")  # [B, K*5]
        logits = g.reshape(logits, "head/by_scene", (-1, self.scenes, d.levels))
        shares = g.node("Softmax", "head/softmax", [logits], dtype="fp32", attributes={"axis": -1})
        weighted = g.node("Mul", "head/weighted", [shares, g.weight("head.levels")], dtype="fp32")
        scores = g.node(
            "ReduceSum", "head/scores", [weighted, axis], dtype="fp32", attributes={"keepdims": 0}
        )  # [B, K]
        many = (self.scenes,) if self.scenes > 1 else ()
        crop_scores = g.reshape(scores, "crop_scores", (-1, self.options.crops, *many))
        g.node(
            "ReduceMean",
            "score",
            [crop_scores, g.constant("head.crops", np.array([1]), "int64")],
            dtype="fp32",
            attributes={"keepdims": 0},
        )

    # The pieces.

    def product(self, x: str, name: str, weight: str) -> str:
        return self.g.node("MatMul", name, [x, self.g.weight(weight)], dtype=self.g.dtype[x])

    def linear(self, x: str, name: str, weight: str) -> str:
        bias = self.g.weight(f"{weight}.bias")
        return self.g.node("Add", f"{name}/bias", [self.product(x, name, f"{weight}.weight"), bias], dtype=self.half)

    def norm(self, x: str, name: str, weight: str) -> str:
        inputs = [x, self.g.weight(f"{weight}.weight"), self.g.weight(f"{weight}.bias")]
        attributes = {"axis": -1, "epsilon": self.dims.vision.epsilon, "stash_type": 1}
        return self.g.node("LayerNormalization", name, inputs, dtype="fp32", attributes=attributes)

    def normed(self, x: str, name: str) -> str:
        """LayerNorm in fp32 of the residual stream, cast to the products' precision."""
        normed = self.norm(self.g.cast(x, "fp32", f"{name.rsplit('/', 1)[1]}"), name, name.replace("/", "."))
        return self.g.cast(normed, self.half, "product")

    def add(self, x: str, update: str, name: str) -> str:
        return self.g.node("Add", name, [x, self.g.cast(update, self.residual, "residual")], dtype=self.residual)

    def activation(self, x: str, name: str) -> str:
        return self.gelu(x, name) if self.dims.vision.activation == "gelu" else self.quick_gelu(x, name)

    def quick_gelu(self, x: str, name: str) -> str:
        g = self.g
        factor = g.constant("quick_gelu.factor", np.array(QUICK_GELU), self.half)
        gate = g.node("Mul", f"{name}/quick_gelu/scaled", [x, factor], dtype=self.half)
        gate = g.node("Sigmoid", f"{name}/quick_gelu/sigmoid", [gate], dtype=self.half)
        return g.node("Mul", f"{name}/quick_gelu", [x, gate], dtype=self.half)

    def gelu(self, x: str, name: str) -> str:
        """By Erf, as PyTorch exports it: every TensorRT and TensorRT-RTX parses that, and ONNX Runtime fuses it."""
        g = self.g
        root, one, half = (g.constant(f"gelu.{n}", np.array(v), self.half) for n, v in _GELU.items())
        gate = g.node("Div", f"{name}/gelu/scaled", [x, root], dtype=self.half)
        gate = g.node("Erf", f"{name}/gelu/erf", [gate], dtype=self.half)
        gate = g.node("Add", f"{name}/gelu/shifted", [gate, one], dtype=self.half)
        gated = g.node("Mul", f"{name}/gelu/gated", [x, gate], dtype=self.half)
        return g.node("Mul", f"{name}/gelu", [gated, half], dtype=self.half)
