"""Rows 11, 13, 25 and 46 of the hostile list: files of a bundle that are not what they should be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gamma_runtime
from gamma_export.commands import verify as verify_command
from gamma_export.photos import packaged_golden
from gamma_export.verify import verify
from gamma_runtime.bundle import MANIFEST, open_bundle
from gamma_runtime.cli import run_command
from gamma_runtime.commands import run as run_module
from gamma_runtime.doctor import diagnose
from gamma_runtime.engines import EngineOptions, build_engines
from gamma_runtime.errors import GammaError, InputError, IntegrityError
from tests import tiny_export
from tests.hostile.file_faults import FAULTS, cut, flip, missing
from tests.tiny_export import COMMANDS, SCENES, command, graph, manifest, vouch

RTX = EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",))
JOINT = "joint"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_export.copy(tmp_path / "b.gamma")


@pytest.fixture(scope="module")
def photo() -> str:
    return str(packaged_golden()[0])


def names(bundle: Path) -> list[str]:
    return [entry["name"] for entry in manifest(bundle)["files"]]


GRAPH_OF = {"run": SCENES[0], "build": JOINT}  # run and build open one graph; verify and doctor hash every file


# Row 13: a file that is not the one that was exported


@pytest.mark.parametrize("fault", FAULTS)
def test_no_file_of_the_bundle_can_be_another(tmp_path: Path, photo: str, fault: str) -> None:
    for index, name in enumerate([*names(tiny_export.exported()), MANIFEST]):
        bundle = tiny_export.copy(tmp_path / f"{index}" / "b.gamma")
        FAULTS[fault](bundle / name)
        with pytest.raises(IntegrityError, match=name.replace(".", r"\.")) as caught:
            verify(open_bundle(bundle))
        assert caught.value.exit_code == 4
        assert caught.value.hint
        (facts,) = diagnose([bundle]).bundles
        assert (facts.valid, facts.exit_code) == (False, 4)
        used = graph(tiny_export.exported())
        if name in (used["onnx"], used["weights"], MANIFEST):
            with pytest.raises(IntegrityError):
                gamma_runtime.load(bundle)
        used = graph(tiny_export.exported(), JOINT)
        if name in (used["onnx"], used["weights"], MANIFEST):
            with pytest.raises(IntegrityError):
                build_engines(open_bundle(bundle), RTX)
        shutil.rmtree(bundle.parent)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", ["onnx", "weights", MANIFEST])
def test_commands_say_so_and_give_code_4(
    bundle: Path, photo: str, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = kind if kind == MANIFEST else graph(bundle, GRAPH_OF.get(name, JOINT))[kind]
    flip(0.6)(bundle / damaged)
    before = tiny_export.snapshot(bundle)
    assert command(name, bundle, photo) == 4
    said = capsys.readouterr()
    text = said.out if name == "doctor" else said.err
    assert damaged in text
    assert "Traceback" not in said.err
    if name != "doctor":
        assert said.out == ""
        assert "\nhint: " in said.err
    assert tiny_export.snapshot(bundle) == before


def test_no_parser_is_even_imported_before_the_hashes(tmp_path: Path, photo: str) -> None:
    """The libraries come after the digests."""
    script = (
        "import json, sys\n"
        "import gamma_runtime\n"
        "from gamma_runtime.bundle import open_bundle\n"
        "from gamma_runtime.engines import EngineOptions, build_engines\n"
        "from gamma_export.verify import verify\n"
        "what = {'load': lambda p: gamma_runtime.load(p), 'verify': lambda p: verify(open_bundle(p)),\n"
        "  'build': lambda p: build_engines(open_bundle(p), EngineOptions(flavour='tensorrt-rtx'))}\n"
        "try: what[sys.argv[1]](sys.argv[2])\n"
        "except Exception as error: code = getattr(error, 'exit_code', None)\n"
        "parsers = ('onnxruntime', 'openvino', 'cv2', 'simplejpeg', 'onnx', 'tensorrt_rtx', 'polygraphy')\n"
        "print(json.dumps([code, [m for m in parsers if m in sys.modules]]))\n"
    )
    for action, damaged in (("load", "weights"), ("load", "onnx"), ("verify", "golden"), ("build", "onnx")):
        bundle = tiny_export.copy(tmp_path / f"{action}-{damaged}.gamma")
        name = manifest(bundle)["golden"][0]["file"] if damaged == "golden" else graph(bundle)[damaged]
        flip(0.5)(bundle / (graph(bundle, JOINT)["onnx"] if action == "build" else name))
        argv = [sys.executable, "-c", script, action, str(bundle)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == [4, []], action


def test_all_changed_and_missing_files_are_listed(bundle: Path) -> None:
    first, second, third = names(bundle)[:3]
    missing(bundle / first)
    cut(bundle / second)
    flip(0.5)(bundle / third)
    with pytest.raises(IntegrityError, match="3 of 7 files") as caught:
        verify(open_bundle(bundle))
    assert all(name in caught.value.message for name in (first, second, third))


def test_files_that_the_manifest_does_not_name_are_never_opened(bundle: Path, photo: str) -> None:
    wanted = gamma_runtime.load(tiny_export.exported(), threads=1).score(photo).value
    os.mkfifo(bundle / "natural-quality-fp16-00000000.onnx")
    (bundle / "weights-fp16-00000000.bin").write_bytes(b"garbage")
    (bundle / "sub").mkdir()
    assert gamma_runtime.load(bundle, threads=1).score(photo).value == wanted
    assert verify(open_bundle(bundle)).passed
    with pytest.raises(IntegrityError, match="does not name"):
        open_bundle(bundle).file("weights-fp16-00000000.bin")


# Row 25: NaN


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nan_is_an_error_with_code_7_and_never_in_the_json(
    bundle: Path, photo: str, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = graph(bundle)["weights"]
    vouch(bundle, weights, b"\xff" * (bundle / weights).stat().st_size)  # NaN in fp16 and in fp32
    with gamma_runtime.load(bundle, backend=backend, threads=1) as scorer:
        with pytest.raises(GammaError, match="non-finite score") as caught:
            scorer.score(photo)
        assert caught.value.exit_code == 7
    args = [str(bundle), photo, "--backend", backend, "--threads", "1", "--json", "--quiet"]
    assert run_module.main(args) == 7
    said = capsys.readouterr()
    (record,) = [json.loads(line, parse_constant=pytest.fail) for line in said.out.splitlines()]
    assert record["score"] is None
    assert "non-finite score" in record["error"]
    assert "Traceback" not in said.err
    verify_args = [str(bundle), "--backend", backend, "--threads", "1", "--json", "--quiet"]
    assert run_command("gamma-verify", verify_command.verify_command, verify_command.VerifyOptions, verify_args) == 7
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {(row["drifted"], row["value"]) for row in report["golden"]} == {("model", None)}


# Rows 46: where the bundle lies


def test_a_bundle_may_be_named_in_any_way(bundle: Path, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = gamma_runtime.load(bundle, threads=1).score(photo).value
    (bundle.parent / "elsewhere").mkdir()
    (bundle.parent / "link").symlink_to(bundle.parent)
    monkeypatch.setenv("HOME", str(bundle.parent))
    monkeypatch.chdir(bundle.parent / "elsewhere")
    for name in ("../b.gamma", str(bundle), "../link/b.gamma", "~/b.gamma", Path("../b.gamma"), "../b.gamma/"):
        assert gamma_runtime.load(name, threads=1).score(photo).value == wanted


def test_a_relative_bundle_survives_a_change_of_folder(
    bundle: Path, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    opened = open_bundle("b.gamma")
    scorer = gamma_runtime.load("b.gamma", threads=1)
    wanted = scorer.score(photo).value
    monkeypatch.chdir("/")
    assert scorer.score(photo).value == wanted
    assert verify(opened, backend_names=("onnxruntime",)).passed
    assert gamma_runtime.load(opened, threads=1).score(photo).value == wanted


@pytest.mark.parametrize("name", ["missing.gamma", "~nobody-of-that-name/b.gamma", "a\0b", "x" * 5000, "", "b\x1b[2J"])
def test_a_bundle_that_is_not_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GammaError) as caught:
        gamma_runtime.load(name)
    # "" is the folder itself, which has no manifest.
    assert caught.value.exit_code == {"": 4, "a\0b": 2}.get(name, 3)


def test_a_file_is_no_bundle(bundle: Path) -> None:
    with pytest.raises(InputError, match="no such bundle folder"):
        open_bundle(bundle / MANIFEST)
