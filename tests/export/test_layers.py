"""gamma-verify --layers: intact graphs are in line everywhere, and each fault names exactly its own stage."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import fidelity
from gamma_export import fold
from gamma_export.layers import compare_stages
from gamma_export.layers.drift import LEAST_FLOOR, MARGIN, StageDrift
from gamma_export.layers.kits import exact_kit
from gamma_export.layers.reference import centred, reference_taps
from gamma_export.layers.report import LayerReport
from gamma_export.layers.stages import gamma_stages
from gamma_export.layers.taps import open_tapped
from gamma_export.parity import torch_threads
from gamma_runtime.bundle import open_bundle
from gamma_runtime.cli import run_command
from gamma_runtime.errors import EnvironmentFault, InputError, OutputError
from gamma_runtime.steps import Steps
from tests import tiny_export

Tiny = fidelity.Candidate
Edit = Callable[[Any], None]
LAYERS = fidelity.TINY.vision.layers
FIRST_MOAE = fidelity.TINY.vision.first_moae
LAST = LAYERS - 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(fidelity.TINY, tmp_path_factory.mktemp("layers"))


def drifts(
    tiny: Tiny, path: Path, precision: str, backend: str = "onnxruntime", crops: tuple[int, ...] = (0, 5)
) -> dict[str, StageDrift]:
    """The comparison on a few crops; a call takes two, and a last short one is filled up."""
    stages = gamma_stages(tiny.dims)
    entry: Any = SimpleNamespace(
        name="joint", precision=precision, batch=(1, 1, 1), crops=2, inputs={"crops": ("uint8", [1, 2, 224, 224, 3])}
    )
    logits = fold.fold_text(tiny.text, tiny.model.clip_model.logit_scale)
    # Two threads of several libraries in one test process wait for each other more than they work.
    with open_tapped(backend, path, [stage.tap for stage in stages], 1) as tapped, torch_threads(1):
        chosen = tiny.wanted.crops[list(crops)]
        found = compare_stages(tiny.model, tiny.text, logits, stages, entry, tapped, chosen, chosen, Steps())
    np.testing.assert_allclose(found.wanted, tiny.wanted.scores[list(crops)], atol=1e-6)
    return {stage.stage: stage for stage in found.stages}


def out_of_line(found: dict[str, StageDrift]) -> list[str]:
    return [name for name, stage in found.items() if stage.out_of_line]


# Intact graphs.


@pytest.mark.parametrize("case", fidelity.CASES, ids=lambda c: " ".join([c[0], c[1], *c[2].values()]))
def test_an_intact_graph_is_in_line(tiny: Tiny, case: tuple[str, str, dict[str, str]]) -> None:
    precision, backend, options = case
    found = drifts(tiny, tiny.graph(precision, **options), precision, backend, crops=(0, 5, 9))
    assert out_of_line(found) == []
    assert all(stage.finite and stage.floor >= LEAST_FLOOR for stage in found.values())


def test_a_ranged_graph_of_one_scene_is_in_line(tiny: Tiny) -> None:
    from dataclasses import replace

    stages = gamma_stages(tiny.dims)
    path = tiny.graph("fp16", slice(1, 2), batch=(1, 2, 4))
    logits = fold.fold_text(tiny.text[5:10], tiny.model.clip_model.logit_scale)
    entry: Any = SimpleNamespace(
        name="one", precision="fp16", batch=(1, 2, 4), crops=2, inputs={"crops": ("uint8", ["N", 2, 224, 224, 3])}
    )
    with open_tapped("onnxruntime", path, [stage.tap for stage in stages], 1) as tapped:
        crops = tiny.wanted.crops[:2]
        found = compare_stages(tiny.model, tiny.text[5:10], logits, stages, entry, tapped, crops, crops, Steps())
    assert not any(stage.out_of_line for stage in found.stages)
    assert found.wanted.shape == (2, 1)
    worse = replace(found.stages[-1], own=found.stages[-1].floor * MARGIN * 1.01)
    assert worse.out_of_line


def frames_instead(places: list[tuple[int, int]], height: int, width: int) -> Edit:
    """Let the graph take frames and cut the crops itself, one below the other."""
    from onnx import helper

    def edit(model: Any) -> None:
        graph = model.graph
        graph.input[0].CopyFrom(helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, [1, height, width, 3]))
        (cast,) = [node for node in graph.node if "crops" in node.input]
        made = cast.output[0]
        cast.input[0], cast.output[0] = "frames", "frames/cast"
        cuts = []
        for index, (top, left) in enumerate(places):
            ends = {"start": [top, left], "end": [top + 224, left + 224]}
            graph.initializer.extend(
                onnx.numpy_helper.from_array(np.array(value), f"{name}_{index}") for name, value in ends.items()
            )
            inputs = ["frames/cast", f"start_{index}", f"end_{index}", "cut.axes"]
            cuts.append(helper.make_node("Slice", inputs, [f"cut_{index}"]))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2]), "cut.axes"))
        cuts.append(helper.make_node("Concat", [cut.output[0] for cut in cuts], [made], axis=1))
        for offset, node in enumerate(cuts):
            graph.node.insert(list(graph.node).index(cast) + 1 + offset, node)

    return edit


@pytest.mark.parametrize("shift", [0, 1])
def test_a_graph_that_takes_frames_is_fed_frames(tiny: Tiny, shift: int) -> None:
    """A crop cut one pixel beside its place is the pixels' fault."""
    stages, places = gamma_stages(tiny.dims), [(0, 0), (76, 100)]
    frame = np.tile(tiny.wanted.crops[3], (2, 2, 1))[None, :300, :400]
    crops = np.stack([frame[0, y : y + 224, x : x + 224] for y, x in places])
    path = tiny.graph("fp16", edit=frames_instead([(y, x + shift * (x > 0)) for y, x in places], 300, 400))
    logits = fold.fold_text(tiny.text, tiny.model.clip_model.logit_scale)
    entry: Any = SimpleNamespace(
        name="f", precision="fp16", batch=(1, 1, 1), crops=2, inputs={"frames": ("uint8", [1, 300, 400, 3])}
    )
    with open_tapped("onnxruntime", path, [stage.tap for stage in stages], 1) as tapped, torch_threads(1):
        found = compare_stages(tiny.model, tiny.text, logits, stages, entry, tapped, frame, crops, Steps())
    assert [stage.stage for stage in found.stages if stage.out_of_line] == ["pixels"] * shift


def test_every_tap_exists_in_every_spelling(tiny: Tiny) -> None:
    taps = {stage.tap for stage in gamma_stages(tiny.dims)}
    for options in ({}, {"attention": "op"}, {"residual": "fp16"}):
        model = onnx.load(tiny.graph("fp16", **options), load_external_data=False)
        assert taps <= {name for node in model.graph.node for name in node.output}


def test_a_graph_without_a_tap_is_refused(tiny: Tiny) -> None:
    with (
        pytest.raises(InputError, match="no tensor 'blocks"),
        open_tapped("onnxruntime", tiny.graph("fp16"), ["blocks.9/ln_1"], 1),
    ):
        pass


def test_the_stages_one_after_another_are_the_module(tiny: Tiny) -> None:
    """What judges a stage, chained from the pixels on, gives what the hooks see in the module's own pass."""
    import torch

    stages = gamma_stages(tiny.dims)
    kit = exact_kit(tiny.model, fold.fold_text(tiny.text, tiny.model.clip_model.logit_scale))
    crops = tiny.wanted.crops[:1]
    seen = reference_taps(tiny.model, tiny.text, crops, stages)
    assert seen.keys() == {stage.name for stage in stages}
    chained = {"pixels": centred(crops).double()}
    with torch.inference_mode():
        for stage in stages[1:]:
            chained[stage.name] = stage.run(kit, *(chained[name] for name in stage.inputs))
            torch.testing.assert_close(chained[stage.name].float(), seen[stage.name], rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.model.modules())


# Faults: each names its stage, and no other.


def _nodes(*names: str) -> Callable[[Any], list[Any]]:
    return lambda model: [node for node in model.graph.node if node.name in names]


def epsilon(name: str) -> Edit:
    def edit(model: Any) -> None:
        (node,) = _nodes(name)(model)
        (attribute,) = [a for a in node.attribute if a.name == "epsilon"]
        attribute.f = 1e-6

    return edit


def gelu(block: int) -> Edit:
    def edit(model: Any) -> None:
        kind = "moae" if block >= FIRST_MOAE else "mlp"
        (node,) = _nodes(f"blocks.{block}/{kind}/quick_gelu")(model)
        node.op_type = "Gelu"
        del node.input[1]

    return edit


@contextlib.contextmanager
def adaptive(tiny: Tiny, precision: str, block: int, factors: list[float]) -> Iterator[None]:
    """Multiply the rows of the adaptive experts: 0 leaves one out, a factor for all is another scale."""
    name, hidden = f"blocks.{block}.moae.out.", tiny.dims.vision.hidden
    keep = np.array([1.0, *factors])
    with (
        tiny.patched(precision, f"{name}weight", lambda w: w * keep.repeat(hidden)[:, None]),
        tiny.patched(precision, f"{name}bias", lambda b: b * keep[:, None]),
    ):
        yield


PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "fp16"])


@PRECISIONS
@pytest.mark.parametrize("name", ["ln_pre", "blocks.0/ln_1", f"blocks.{LAST}/ln_2", "head/ln_post"])
def test_another_epsilon_names_its_norm(tiny: Tiny, precision: str, name: str) -> None:
    found = drifts(tiny, tiny.graph(precision, edit=epsilon(name)), precision)
    assert out_of_line(found) == [name.removeprefix("head/").replace("/", " ")]


@PRECISIONS
@pytest.mark.parametrize("block", [1, FIRST_MOAE])
def test_gelu_names_its_block(tiny: Tiny, precision: str, block: int) -> None:
    found = drifts(tiny, tiny.graph(precision, edit=gelu(block)), precision)
    assert out_of_line(found) == [f"blocks.{block} {'moae' if block >= FIRST_MOAE else 'mlp'}"]


@PRECISIONS
@pytest.mark.parametrize("factors", [[1, 0, 1], [1.05, 1.05, 1.05], [0, 0, 0]], ids=["expert", "scale", "branch"])
def test_a_broken_mixture_names_its_block(tiny: Tiny, precision: str, factors: list[float]) -> None:
    with adaptive(tiny, precision, FIRST_MOAE, factors):
        found = drifts(tiny, tiny.graph(precision), precision)
    assert out_of_line(found) == [f"blocks.{FIRST_MOAE} moae"]
    later = [found[f"blocks.{LAST} {stage}"] for stage in ("ln_1", "attn", "moae")]
    assert all(stage.relative > 5 * stage.own for stage in later)  # the drift is carried on; the blame is not


@PRECISIONS
def test_other_gates_name_the_gates(tiny: Tiny, precision: str) -> None:
    with tiny.patched(precision, f"blocks.{LAST}.moae.gate.weight", lambda w: w[:, ::-1]):
        assert out_of_line(drifts(tiny, tiny.graph(precision), precision)) == [f"blocks.{LAST} gates"]


@PRECISIONS
def test_an_unscaled_query_names_its_attention(tiny: Tiny, precision: str) -> None:
    width = tiny.dims.vision.width
    factors = np.repeat([8.0, 1.0, 1.0], width)
    with tiny.patched(precision, "blocks.1.attn.qkv.weight", lambda w: w * factors):
        assert out_of_line(drifts(tiny, tiny.graph(precision), precision)) == ["blocks.1 attn"]


@PRECISIONS
def test_unfolded_normalisation_names_the_patches(tiny: Tiny, precision: str) -> None:
    with fidelity.normalisation_unfolded(tiny, precision) as path:
        assert out_of_line(drifts(tiny, path, precision)) == ["patch embedding"]


@PRECISIONS
def test_the_text_of_another_scene_names_the_logits(tiny: Tiny, precision: str) -> None:
    def edit(model: Any) -> None:
        (text,) = [tensor for tensor in model.graph.initializer if tensor.name == "head.text"]
        columns = onnx.numpy_helper.to_array(text)
        text.CopyFrom(onnx.numpy_helper.from_array(np.roll(columns, 5, axis=1), "head.text"))

    assert out_of_line(drifts(tiny, tiny.graph(precision, edit=edit), precision)) == ["logits"]


def test_an_overflow_names_its_stage(tiny: Tiny) -> None:
    with tiny.patched("fp16", "blocks.1.mlp.out.weight", lambda w: w * 1e5):
        found = drifts(tiny, tiny.graph("fp16", residual="fp16"), "fp16")
    assert out_of_line(found)[0] == "blocks.1 mlp"
    assert not found["blocks.1 mlp"].finite
    report = LayerReport("g", ("s",), "fp16", "fp32", "op", "b", "1", 1, tuple(found.values()), np.inf, 1e-3, 0.0)
    assert report.verdict.startswith("blocks.1 mlp overflows")
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["score_max_abs"] is None


def test_rounding_that_adds_up_is_no_stage_s_fault(tiny: Tiny) -> None:
    found = tuple(drifts(tiny, tiny.graph("fp16"), "fp16").values())
    report = LayerReport("g", ("s",), "fp16", "fp32", "op", "b", "1", 1, found, 2e-4, 1e-4, 0.0)
    assert not report.passed
    assert "rounding alone adds up" in report.verdict
    moved = LayerReport("g", ("s",), "fp16", "fp32", "op", "b", "1", 1, found, 0.0, 1e-4, 2e-4)
    assert not moved.passed
    assert "compiles the two differently" in moved.verdict


# The command.


def verify(bundle: Path, *arguments: str) -> int:
    from gamma_export.commands.verify import VerifyOptions, verify_command

    common = ["--against", str(tiny_export.checkpoint()), "--layers", "--threads", "1", "--quiet"]
    return run_command("gamma-verify", verify_command, VerifyOptions, [str(bundle), *common, *arguments])


def test_command_reports_everything_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, picture = tiny_export.exported(), tmp_path / "layers.png"
    before = tiny_export.snapshot(bundle)
    assert verify(bundle, "--json", "--plot", str(picture), "--crops-count", "2", "--scene", "face-quality") == 0
    said = json.loads(capsys.readouterr().out)
    assert tiny_export.snapshot(bundle) == before
    assert (said["passed"], said["first_out_of_line"], said["graph"]) == (True, None, "face-quality")
    assert said["bundle_sha256"] == open_bundle(bundle).sha256
    assert [row["stage"] for row in said["stages"]][-1] == "scores"
    assert set(said["stages"][0]) >= {"max_abs", "mean_abs", "relative", "cosine", "own", "floor", "peak", "tap"}
    assert said["score_max_abs"] == pytest.approx(said["stages"][-1]["max_abs"], abs=2 * said["taps_max_abs"] + 1e-9)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_command_looks_into_a_bundle_for_camera_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gamma_export.exporter import export

    bundle = tmp_path / "frames.gamma"
    export(tiny_export.checkpoint(), bundle, tiny_export.options(crops="frame320x240:five", scene=("face-quality",)))
    capsys.readouterr()
    assert verify(bundle, "--json", "--crops-count", "2") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["crops"], said["first_out_of_line"]) == (10, None)  # two whole frames


def test_command_names_the_stage_of_a_broken_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_export.copy(tmp_path / "b.gamma")
    name = tiny_export.graph(bundle, "joint")["onnx"]
    model = onnx.load(bundle / name, load_external_data=False)
    epsilon("blocks.1/ln_2")(model)
    tiny_export.vouch(bundle, name, model.SerializeToString())
    assert verify(bundle, "--backend", "openvino") == 7
    said = capsys.readouterr().out
    assert "verdict: blocks.1 ln_2 is the first stage out of line" in said
    assert said.count("OUT OF LINE") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--crops-count", "0"], 2, "below 1"),
        (["--crops-count", "1000"], 2, "make 48 crops"),
        (["--backend", "openvino,onnxruntime"], 2, "one backend"),
        (["--precision", "bf16"], 3, "no graph for bf16"),
        (["--scene", "nothing"], 3, "no graph for nothing"),
        (["--plot", "a.jpg"], 6, "writes PNG"),
    ],
)
def test_command_refuses(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tiny_export.exported(), *arguments) == code
    assert words in capsys.readouterr().err


def test_flags_of_layers_need_layers_and_a_checkpoint() -> None:
    done = tiny_export.spawn("verify", ["x.gamma", "--plot", "a.png"])
    assert (done.returncode, "--plot is for --layers" in done.stderr) == (2, True)
    done = tiny_export.spawn("verify", ["x.gamma", "--layers"])
    assert (done.returncode, "--against CHECKPOINT" in done.stderr) == (2, True)


def test_no_picture_without_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from gamma_export.layers.plot import check_plot\n"
        f"check_plot(Path({str(tmp_path / 'a.png')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert EnvironmentFault.__name__ in done.stderr
    assert "gamma-edge[plot]" in done.stderr


def test_a_picture_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    from gamma_export.layers.plot import check_plot

    with pytest.raises(OutputError, match="no such folder"):
        check_plot(tmp_path / "none" / "a.png")
