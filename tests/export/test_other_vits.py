"""A Gamma on a ViT that is not CLIP's: GELU, no ln_pre, epsilon 1e-6, patches of 14, mean and std of its own.

The same checks as for CLIP's, and for each of the differences a graph that ignores it and is caught.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import fidelity
from benchmarks.judge import macs_per_crop
from gamma_export import fold, lint, vision
from gamma_export.layers.kits import exact_kit
from gamma_export.layers.reference import centred, reference_taps
from gamma_export.layers.stages import gamma_stages
from gamma_runtime.errors import InputError
from gamma_training.checkpoint import write_safetensors
from gamma_training.dims import FULL_SIZE, GammaDims
from gamma_training.initialise import random_state, smaller
from gamma_training.scenes import SCENES
from gamma_training.tokens import compact_tokens
from tests import tiny_export
from tests.gpu.interpreter import Interpreter
from tests.runtime.engine_bundle import needs_rtx

CLIP = smaller(FULL_SIZE, width=64, layers=2, first_moae=1)
VIT = dataclasses.replace(
    CLIP,
    vision=dataclasses.replace(CLIP.vision, activation="gelu", epsilon=1e-6),
    patch=14,
    embed=64,
    ln_pre=False,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
SOFT = 3.2  # ln 25. An imported base starts at ln 14, not at CLIP's ln 100, which multiplies what rounding does


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> fidelity.Candidate:
    return fidelity.Candidate(VIT, tmp_path_factory.mktemp("vit"), SOFT)


@pytest.mark.parametrize("case", fidelity.CASES, ids=lambda c: " ".join([c[0], c[1], *c[2].values()]))
def test_parity(vit: fidelity.Candidate, case: tuple[str, str, dict[str, str]]) -> None:
    precision, backend, options = case
    path = vit.graph(precision, **options)
    lint.check_graph(path, VIT, vision.GraphOptions(precision=precision, crops=2, **options))
    assert vit.difference(path, backend, fidelity.CONTROL_CROPS).max_abs <= fidelity.LIMITS[precision]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_node_rounded_to_its_own_type(vit: fidelity.Candidate, precision: str) -> None:
    """As a GPU computes it and a CPU's runtime does not: GELU's own steps are rounded too."""
    crops = vit.wanted.crops[:4]
    found = Interpreter(vit.graph(precision)).run(crops.reshape(2, 2, *crops.shape[1:]))["crop_scores"]
    assert np.abs(found.reshape(4, -1) - vit.wanted.scores[:4]).max() <= fidelity.LIMITS[precision]


def _as(vit: fidelity.Candidate, dims: GammaDims, precision: str) -> Path:
    """A graph built as for other dimensions, on the right weights."""
    right, vit.dims = vit.dims, dims
    try:
        return vit.graph(precision)
    finally:
        vit.dims = right


IGNORED: dict[str, Callable[[], GammaDims]] = {
    "activation": lambda: dataclasses.replace(VIT, vision=dataclasses.replace(VIT.vision, activation="quick_gelu")),
    "epsilon": lambda: dataclasses.replace(VIT, vision=dataclasses.replace(VIT.vision, epsilon=1e-5)),
}


@pytest.mark.parametrize("what", IGNORED)
def test_a_graph_that_ignores_it_is_caught(vit: fidelity.Candidate, what: str) -> None:
    path = _as(vit, IGNORED[what](), "fp32")
    broken = vit.difference(path, "onnxruntime", fidelity.CONTROL_CROPS)
    assert broken.max_abs > fidelity.LIMITS["fp32"]
    with pytest.raises(InputError, match="epsilon 1e-05, expected 1e-06" if what == "epsilon" else "activations by"):
        lint.check_graph(path, VIT, vision.GraphOptions(precision="fp32", crops=2))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clips_mean_and_std_are_caught(vit: fidelity.Candidate, precision: str) -> None:
    clip = dataclasses.replace(VIT, mean=FULL_SIZE.mean, std=FULL_SIZE.std)
    wrong = {folded.name: folded.make() for folded in fold.fold_vision(vit.state, clip)[:2]}
    with (
        vit.patched(precision, "patch.weight", lambda _: wrong["patch.weight"]),
        vit.patched(precision, "tokens.constant", lambda _: wrong["tokens.constant"]),
    ):
        broken = vit.difference(vit.graph(precision), "onnxruntime", fidelity.CONTROL_CROPS)
    assert broken.max_abs > fidelity.LIMITS[precision]


def test_gelu_is_no_tanh_approximation(vit: fidelity.Candidate) -> None:
    """The smallest of the mistakes: 5e-4 in a hidden value at most, and still over the limit."""

    def edit(model: Any) -> None:
        for node in model.graph.node:
            if node.name.endswith("/gelu"):
                (first,) = [n for n in model.graph.node if n.name == f"{node.name}/gated"]
                node.op_type = "Gelu"
                del node.input[:]
                node.input.append(first.input[0])
                node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))

    path = vit.graph("fp32", edit=edit)
    assert vit.difference(path, "onnxruntime", fidelity.CONTROL_CROPS).max_abs > fidelity.LIMITS["fp32"]


def test_the_stages_one_after_another_are_the_module(vit: fidelity.Candidate) -> None:
    import torch

    stages = gamma_stages(VIT)
    assert "ln_pre" not in {stage.name for stage in stages}
    kit = exact_kit(vit.model, fold.fold_text(vit.text, vit.model.clip_model.logit_scale))
    crops = vit.wanted.crops[:1]
    seen = reference_taps(vit.model, vit.text, crops, stages)
    chained = {"pixels": centred(crops).double()}
    with torch.inference_mode():
        for stage in stages[1:]:
            chained[stage.name] = stage.run(kit, *(chained[name] for name in stage.inputs))
            torch.testing.assert_close(chained[stage.name].float(), seen[stage.name], rtol=1e-4, atol=1e-5)


def test_multiplications_are_those_of_the_graph(vit: fidelity.Candidate) -> None:
    """Product by product, one crop's."""
    graph = vit.graph("fp32", slice(0, 1), batch=(1, 1, 1))
    model = onnx.shape_inference.infer_shapes(onnx.load(graph, load_external_data=False), data_prop=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    total = 0
    for node in model.graph.node:
        if node.op_type == "MatMul":
            total += int(np.prod(shapes[node.input[0]])) * shapes[node.input[1]][-1]
    assert total == 2 * macs_per_crop(VIT)  # two crops an image


# The whole way: a checkpoint of ours, exported, verified layer by layer, built.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In half precision, and with only the built-in scenes' words."""
    words = [prompt for scene in SCENES.values() for prompt in scene.prompts]
    state, dims = compact_tokens(random_state(VIT, seed=4), VIT, words)
    path = tmp_path_factory.mktemp("checkpoint") / "vit.safetensors"
    write_safetensors(path, state, dims=dims, prompts="sdp", label="untrained", dtype="float16")
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gamma_export.exporter import export

    out = tmp_path_factory.mktemp("bundle") / "vit.gamma"
    assert export(checkpoint, out, tiny_export.options(precision=("fp32", "fp16"))).published
    return out


def _verify(bundle: Path, *arguments: str | Path) -> int:
    from gamma_export.commands.verify import VerifyOptions, verify_command
    from gamma_runtime.cli import run_command

    argv = [str(bundle), *map(str, arguments), "--threads", "1", "--quiet", "--json"]
    return run_command("gamma-verify", verify_command, VerifyOptions, argv)


def test_bundle_is_verified_stage_by_stage(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dims = json.loads((bundle / "manifest.json").read_bytes())["checkpoint"]["dims"]
    assert GammaDims.from_json(dims) == GammaDims.from_json(
        json.loads(checkpoint.with_suffix(".json").read_bytes())["dims"]
    )
    assert _verify(bundle, "--against", checkpoint, "--layers", "--photos", tiny_export.photos()) == 0
    assert "ln_pre" not in capsys.readouterr().out


def test_a_word_it_never_learned(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gamma_export.commands import export
    from gamma_runtime.cli import run_command

    levels = ("bad", "poor", "fair", "good", "perfect")

    def exit_code(name: str, template: str) -> int:
        scene = tmp_path / f"{name}.yaml"
        scene.write_text(f"name: {name}\nprompts: [{', '.join(template.format(level) for level in levels)}]\n")
        flags = ["--crops", "centre", "--photos", str(tiny_export.photos()), "--threads", "1", "--quiet"]
        argv = [str(checkpoint), "-o", str(tmp_path / f"{name}.gamma"), "--scene-file", str(scene), *flags]
        return run_command("gamma-export", export.export_command, export.ExportCommand, argv)

    assert exit_code("products", "{} product photo") == 3
    said = capsys.readouterr().err
    assert "this checkpoint never learned the word 'product' of the prompt 'bad product photo'; it knows: " in said
    assert all(word in said for word in ("bad", "perfect", "underwater", "aesthetics"))
    assert not (tmp_path / "products.gamma").exists()
    assert exit_code("faces", "{} face image") == 0
    assert json.loads((tmp_path / "faces.gamma" / "manifest.json").read_bytes())["default_scene"] == "faces"


@needs_rtx
def test_tensorrt_rtx_builds_it(bundle: Path, tmp_path: Path) -> None:
    """Real plans, compiled without a GPU: one of each precision."""
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.engines import EngineOptions, build_engines

    shutil.copytree(bundle, tmp_path / "vit.gamma")
    made = open_bundle(tmp_path / "vit.gamma")
    sizes = {entry.name: entry.size for entry in made.manifest.files}
    weights = {graph.precision: sizes[graph.weights] for graph in made.manifest.graphs}
    plans = build_engines(made, EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",)))
    assert {plan.precision for plan in plans} == {"fp32", "fp16"}
    for plan in plans:
        assert plan.graph == "joint"
        assert plan.size > 0.9 * weights[plan.precision]
