"""A tiny ViT as an ONNX file, spelled as exporters spell it: norms and GELU in parts or whole, q, k, v packed or not.

Its position table is of another grid and is resized by the file itself, as DINOv2's is; its numbers are random.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

WIDTH, HIDDEN, PATCH, GRID, TABLE = 64, 128, 56, 4, 5


@dataclasses.dataclass(frozen=True)
class Spelling:
    """``layer_scale``: its size, 0 for none. ``head``: a small decoder behind the backbone, with a norm of its own."""

    blocks: int = 2
    decomposed_norm: bool = True
    activation: str = "erf"  # erf, Gelu, tanh, quick
    packed: bool = False
    gemm: bool = False
    layer_scale: float = 0.5
    epsilon: float = 1e-6
    head_width: int = 64
    registers: int = 0
    image: int = 224
    scale_pixels: bool = False
    head: bool = True
    transposed_keys: bool = True  # False: q and k in one order of heads, v in another


class Writer:
    """Collects nodes and initialisers; every tensor gets a name that says nothing."""

    def __init__(self, spelling: Spelling, seed: int) -> None:
        self.s = spelling
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def const(self, value: Any) -> str:
        name = f"onnx::c_{len(self.initializers)}"
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, *shape: int, spread: float = 0.1, centre: float = 0.0) -> str:
        return self.const(centre + spread * self.rng.standard_normal(shape))

    def op(self, kind: str, *inputs: str, name: str | None = None, outputs: int = 1, **attributes: Any) -> str:
        made = [name or f"t_{len(self.nodes)}"]
        made += [f"{made[0]}_{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=f"/n/{len(self.nodes)}", **attributes))
        return made[0]

    def linear(self, x: str, into: int, out: int, spread: float = 0.12) -> str:
        if self.s.gemm:
            flat = self.op("Reshape", x, self.const(np.array([-1, into])))
            made = self.op("Gemm", flat, self.normal(out, into, spread=spread), self.normal(out), transB=1)
            return self.op("Reshape", made, self.const(np.array([-1, GRID * GRID + 1, out])))
        product = self.op("MatMul", x, self.normal(into, out, spread=spread))
        return self.op("Add", self.normal(out), product)

    def norm(self, x: str, name: str | None = None) -> str:
        weight, bias = self.normal(WIDTH, centre=1.0), self.normal(WIDTH)
        if not self.s.decomposed_norm:
            return self.op("LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=self.s.epsilon)
        centred = self.op("Sub", x, self.op("ReduceMean", x, self.const(np.array([-1]))))
        squares = self.op("Pow", centred, self.const(np.float32(2)))
        variance = self.op("ReduceMean", squares, self.const(np.array([-1])))
        deviation = self.op("Sqrt", self.op("Add", variance, self.const(np.float32(self.s.epsilon))))
        return self.op("Add", self.op("Mul", self.op("Div", centred, deviation), weight), bias, name=name)

    def act(self, x: str) -> str:
        if self.s.activation == "Gelu":
            return self.op("Gelu", x)
        if self.s.activation == "tanh":
            return self.op("Gelu", x, approximate="tanh")
        if self.s.activation == "quick":
            return self.op("Mul", x, self.op("Sigmoid", self.op("Mul", x, self.const(np.float32(1.702)))))
        erf = self.op("Erf", self.op("Div", x, self.const(np.float32(2**0.5))))
        gated = self.op("Mul", x, self.op("Add", erf, self.const(np.float32(1))))
        return self.op("Mul", gated, self.const(np.float32(0.5)))

    def scaled(self, x: str) -> str:
        return self.op("Mul", x, self.normal(WIDTH, centre=self.s.layer_scale)) if self.s.layer_scale else x

    def heads(self, x: str, order: list[int]) -> str:
        heads = WIDTH // self.s.head_width
        shape = self.const(np.array([0, -1, heads, self.s.head_width]))
        return self.op("Transpose", self.op("Reshape", x, shape), perm=order)

    def attention(self, z: str) -> str:
        if self.s.packed:
            parts = self.op("Split", self.linear(z, WIDTH, 3 * WIDTH), outputs=3, axis=-1, num_outputs=3)
            q, k, v = (f"{parts}{suffix}" for suffix in ("", "_1", "_2"))
        else:
            k, v, q = (self.linear(z, WIDTH, WIDTH) for _ in range(3))
        root = self.const(np.float32(self.s.head_width**-0.25))
        q = self.op("Mul", self.heads(q, [0, 2, 1, 3]), root)
        k = self.op("Mul", self.heads(k, [0, 2, 3, 1]), root)
        mixed = self.op("MatMul", self.op("Softmax", self.op("MatMul", q, k), axis=-1), self.heads(v, [0, 2, 1, 3]))
        merged = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        if not self.s.transposed_keys:  # the values of a head are turned round: a permutation that no ViT has
            merged = self.op("Transpose", mixed, perm=[0, 3, 1, 2])
        return self.linear(self.op("Reshape", merged, self.const(np.array([0, -1, WIDTH]))), WIDTH, WIDTH)

    def embeddings(self, image: str) -> str:
        if self.s.scale_pixels:
            image = self.op("Mul", image, self.const(np.float32(1 / 255)))
        weight, bias = self.normal(WIDTH, 3, PATCH, PATCH, spread=0.02), self.normal(WIDTH)
        patches = self.op("Conv", image, weight, bias, kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH])
        patches = self.op("Reshape", patches, self.const(np.array([0, WIDTH, -1])))
        patches = self.op("Transpose", patches, perm=[0, 2, 1])
        front = [self.normal(1, 1 + self.s.registers, WIDTH)]
        tokens = self.op("Concat", *front, patches, axis=1)
        table = self.op("Transpose", self.normal(1, TABLE, TABLE, WIDTH), perm=[0, 3, 1, 2])
        grid = self.s.image // PATCH
        sizes = self.const(np.array([1, WIDTH, grid, grid]))
        resized = self.op(
            "Resize", table, "", "", sizes, mode="cubic", cubic_coeff_a=-0.75,
            coordinate_transformation_mode="half_pixel",
        )  # fmt: skip
        square = self.op(
            "Reshape", self.op("Transpose", resized, perm=[0, 2, 3, 1]), self.const(np.array([1, -1, WIDTH]))
        )
        positions = self.op("Concat", self.normal(1, 1 + self.s.registers, WIDTH), square, axis=1)
        return self.op("Add", tokens, positions, name="embeddings")

    def write(self, path: Path) -> Path:
        x = self.embeddings("pixels")
        for _ in range(self.s.blocks):
            x = self.op("Add", self.scaled(self.attention(self.norm(x))), x)
            hidden = self.act(self.linear(self.norm(x), WIDTH, HIDDEN))
            x = self.op("Add", self.scaled(self.linear(hidden, HIDDEN, WIDTH)), x)
        out = self.norm(x, name="features")
        if self.s.head:
            out = self.norm(self.op("Relu", self.linear(out, WIDTH, WIDTH)))
        side = self.s.image
        pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, side, side])
        result = helper.make_tensor_value_info(out, TensorProto.FLOAT, ["N", "T", "D"])
        graph = helper.make_graph(self.nodes, "vit", [pixels], [result], self.initializers)
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
        checker.check_model(model)
        save(model, path)
        return path


def write_vit(path: Path, seed: int = 3, **spelling: Any) -> Path:
    """Write the file; see `Spelling`."""
    return Writer(Spelling(**spelling), seed).write(path)
