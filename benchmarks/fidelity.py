"""Does the exported graph score like PyTorch, and would the same check notice if it did not?

A full-size Gamma with seeded random weights, conditioned so that photos get different scores, is exported in fp32, fp16
and bf16 and compared with the PyTorch module on the packaged photos; then the export is broken on purpose in the ways
that exporters break (an expert left out, mean/std not folded, ...), and each fault must exceed the same limit.

    python benchmarks/fidelity.py            full size, writes benchmarks/results/fidelity.json (about 3 minutes)
    python benchmarks/fidelity.py --tiny     a small model, prints only

tests/export/test_fidelity.py runs the same code. Random weights: nothing here says how well a model judges images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gamma_calib.compare import Difference
from gamma_export import fold, parity, untrained, vision, weights
from gamma_runtime import backends, steps
from gamma_training import dims as model_dims
from gamma_training import initialise, scenes

LIMITS = {"fp32": 5e-6, "fp16": 5e-4, "bf16": 5e-3}  # max |difference| in score units, from the issue
MIN_STD = 0.1
CONTROL_CROPS = 6
SEED = 0
TINY = initialise.smaller(model_dims.FULL_SIZE, width=128, layers=4, first_moae=2)
Edit = Callable[[Any], None]


class Candidate:
    """One conditioned random-weight model, its PyTorch scores on the photos, and exports of it in a folder."""

    def __init__(self, dims: model_dims.GammaDims, folder: Path, logit_scale: float | None = None) -> None:
        from gamma_export.photos import packaged_photos

        self.dims, self.folder = dims, folder
        self.model, self.text, _ = untrained.conditioned_model(dims, SEED, logit_scale=logit_scale)
        self.names = [scene.name for scene in scenes.scenes_of("sdp")]
        crops = parity.verification_crops(packaged_photos())[::3]  # the photos; not their degraded copies
        self.wanted = parity.reference(self.model, self.text, self.names, parity.Subjects(crops), steps.Steps())
        self.state = dict(self.model.state_dict())
        self._weights: dict[str, weights.WeightsFile] = {}

    def weights(self, precision: str) -> weights.WeightsFile:
        """Written once a precision."""
        if precision not in self._weights:
            folded = fold.fold_vision(self.state, self.dims)
            self._weights[precision] = weights.write_weights(self.folder, folded, precision)
        return self._weights[precision]

    def graph(self, precision: str, which: slice = slice(None), edit: Edit | None = None, **options: Any) -> Path:
        """Write the graph of some scenes, edited if asked for."""
        chosen = vision.GraphOptions(precision=precision, crops=2, **options)
        features = self.text.view(len(self.names), self.dims.levels, -1)[which].flatten(0, 1)
        folded = fold.fold_text(features, self.model.clip_model.logit_scale)
        model = vision.build_graph("graph", self.weights(precision), self.dims, folded, chosen)
        if edit:
            edit(model)
        path = self.folder / f"{precision}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def scores(self, path: Path, backend: str, crops: int | None = None) -> np.ndarray:
        """float64 [P, K] of the first crops on a backend."""
        with backends.create(backend, path) as runner:
            return parity.graph_scores(runner, 1, self.wanted.crops[:crops], steps.Steps(), "")

    def difference(self, path: Path, backend: str, crops: int | None = None) -> Difference:
        """The check: the worst scene's difference to PyTorch."""
        found = self.scores(path, backend, crops)
        columns = [parity.compare(self.wanted.scores[: len(found), k], found[:, k]) for k in range(found.shape[1])]
        return max(columns, key=lambda d: d.max_abs)

    @contextlib.contextmanager
    def patched(self, precision: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Iterator[None]:
        """Overwrite one tensor of the weights file, and put it back."""
        from onnx import helper

        from gamma_export.graph import DTYPES

        file = self.weights(precision)
        place = file.places[name]
        dtype = helper.tensor_dtype_to_np_dtype(DTYPES[place.dtype])
        tensor = np.memmap(self.folder / file.name, dtype=dtype, mode="r+", offset=place.offset, shape=place.shape)
        before = np.array(tensor)
        tensor[...] = change(before.astype(np.float64)).astype(dtype)
        tensor.flush()
        try:
            yield
        finally:
            tensor[...] = before
            tensor.flush()


# The faults. Each is a context manager that yields the graph of a broken export.


@contextlib.contextmanager
def expert_left_out(candidate: Candidate, precision: str) -> Iterator[Path]:
    """The last adaptive expert of the last block."""
    tower = candidate.dims.vision
    name = f"blocks.{tower.layers - 1}.moae.out."
    keep = (np.arange(1 + tower.experts) < tower.experts).astype(float)
    with (
        candidate.patched(precision, f"{name}weight", lambda w: w * keep.repeat(tower.hidden)[:, None]),
        candidate.patched(precision, f"{name}bias", lambda b: b * keep[:, None]),
    ):
        yield candidate.graph(precision)


@contextlib.contextmanager
def adaptive_branch_left_out(candidate: Candidate, precision: str) -> Iterator[Path]:
    """Only the shared expert of every block."""
    tower = candidate.dims.vision
    keep = (np.arange(1 + tower.experts) < 1).astype(float)
    with contextlib.ExitStack() as stack:
        for index in range(tower.first_moae, tower.layers):
            name = f"blocks.{index}.moae.out."
            change = candidate.patched(precision, f"{name}weight", lambda w: w * keep.repeat(tower.hidden)[:, None])
            stack.enter_context(change)
            stack.enter_context(candidate.patched(precision, f"{name}bias", lambda b: b * keep[:, None]))
        yield candidate.graph(precision)


@contextlib.contextmanager
def normalisation_unfolded(candidate: Candidate, precision: str) -> Iterator[Path]:
    """Pixels in [0, 1] reach the patch product without CLIP's mean and std."""
    unfolded = dataclasses.replace(candidate.dims, mean=(0.0,) * 3, std=(1.0,) * 3)
    wrong = {f.name: f.make() for f in fold.fold_vision(candidate.state, unfolded)[:2]}
    with contextlib.ExitStack() as stack:
        for name, value in wrong.items():
            stack.enter_context(candidate.patched(precision, name, lambda _, value=value: value))
        yield candidate.graph(precision)


@contextlib.contextmanager
def gelu_for_quick_gelu(candidate: Candidate, precision: str) -> Iterator[Path]:
    """The usual GELU in every MLP."""

    def edit(model: Any) -> None:
        for node in model.graph.node:
            if node.name.endswith("/quick_gelu"):
                node.op_type = "Gelu"
                del node.input[1]

    yield candidate.graph(precision, edit=edit)


@contextlib.contextmanager
def layer_norm_epsilon(candidate: Candidate, precision: str) -> Iterator[Path]:
    """1e-6 for CLIP's 1e-5."""

    def edit(model: Any) -> None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    attribute.f = 1e-6

    yield candidate.graph(precision, edit=edit)


CONTROLS = {
    ("one expert left out", "fp32"): expert_left_out,
    ("one expert left out", "fp16"): expert_left_out,
    ("adaptive branch left out", "fp32"): adaptive_branch_left_out,
    ("adaptive branch left out", "fp16"): adaptive_branch_left_out,
    ("mean/std unfolded", "fp32"): normalisation_unfolded,
    ("mean/std unfolded", "fp16"): normalisation_unfolded,
    ("GELU for QuickGELU", "fp32"): gelu_for_quick_gelu,
    ("LayerNorm epsilon 1e-6", "fp32"): layer_norm_epsilon,
}
CASES = (  # precision, backend, options of the graph
    ("fp32", "onnxruntime", {}),
    ("fp32", "openvino", {}),
    ("fp16", "onnxruntime", {}),
    ("fp16", "openvino", {}),
    ("fp16", "onnxruntime", {"residual": "fp16"}),
    ("fp16", "onnxruntime", {"attention": "op"}),
    ("bf16", "openvino", {}),
    ("bf16", "openvino", {"residual": "bf16"}),
)


def scene_graphs_against_joint(candidate: Candidate, crops: int) -> float:
    """Largest |difference| in fp32 between a scene's own graph and its column of the joint graph."""
    joint = candidate.scores(candidate.graph("fp32"), "onnxruntime", crops)
    worst = 0.0
    for k in range(len(candidate.names)):
        own = candidate.scores(candidate.graph("fp32", slice(k, k + 1)), "onnxruntime", crops)
        worst = max(worst, float(np.abs(own[:, 0] - joint[:, k]).max()))
    return worst


def _row(what: str, precision: str, backend: str, difference: Difference, **more: Any) -> dict[str, Any]:
    share = difference.max_abs / difference.score_std
    row = {"what": what, "precision": precision, "backend": backend, **dataclasses.asdict(difference)}
    row |= {"max_abs_share_of_std": share, "limit": LIMITS[precision], **more}
    text = f"max {difference.max_abs:.1e}, {share:.2%} of std, limit {LIMITS[precision]:g}"
    print(f"{what:32} {precision} {backend:11} {text}")
    return row


def run(candidate: Candidate) -> dict[str, Any]:
    """The whole matrix as a JSON-ready record."""
    parity_rows = []
    for precision, backend, options in CASES:
        note = " ".join(f"{k} {v}" for k, v in options.items()) or "default"
        difference = candidate.difference(candidate.graph(precision, **options), backend)
        emulated = precision != "fp32"
        parity_rows.append(
            _row(note, precision, backend, difference, emulated=emulated, met=difference.max_abs <= LIMITS[precision])
        )
    control_rows = []
    for (what, precision), make in CONTROLS.items():
        with make(candidate, precision) as path:
            difference = candidate.difference(path, "onnxruntime", CONTROL_CROPS)
        control_rows.append(
            _row(what, precision, "onnxruntime", difference, caught=difference.max_abs > LIMITS[precision])
        )
    return {
        "checkpoint": f"seeded random weights (seed {SEED}), conditioned, untrained",
        "dims": candidate.dims.to_json(),
        "photos": len(candidate.wanted.crops),
        "scenes": candidate.names,
        "score_std_by_scene": candidate.wanted.scores.std(axis=0).tolist(),
        "parity": parity_rows,
        "negative_controls": control_rows,
        "scene_graphs_against_joint_fp32": scene_graphs_against_joint(candidate, CONTROL_CROPS),
    }


def main(argv: list[str]) -> int:
    tiny = "--tiny" in argv
    with tempfile.TemporaryDirectory() as folder:
        candidate = Candidate(TINY if tiny else model_dims.FULL_SIZE, Path(folder))
        result = run(candidate)
    if tiny:
        print(json.dumps(result["score_std_by_scene"]))
        return 0
    from common import machine_facts

    target = Path(__file__).parent / "results" / "fidelity.json"
    target.write_text(
        json.dumps({"machine": machine_facts(), "command": "python benchmarks/fidelity.py", **result}, indent=1) + "\n"
    )
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
