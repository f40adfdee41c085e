"""gamma-eval from its flags to its files and exit codes, on tiny models and the packaged photos."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gamma_export.exporter import export
from gamma_export.photos import packaged_photos
from gamma_training.checkpoint import read_checkpoint, write_authors
from gamma_training.commands.evaluate import main
from tests import tiny_export

TEST, VAL = 8, 3


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Opinions on twelve packaged photos: eight of the test split, three of val, one of train."""
    splits = ["test"] * TEST + ["val"] * VAL + ["train"]
    rows = [
        f"{path.name},{(7 * i) % 16},{split},natural-quality"
        for i, (path, split) in enumerate(zip(packaged_photos()[4:], splits, strict=True))
    ]
    path = tmp_path / "mos.csv"
    path.write_text("\n".join(["path,mos,split,scene", *rows]) + "\n")
    return path


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--threads", "1", "--draws", "100"])


def of_table(table: Path) -> list[object]:
    return ["--table", table, "--root", packaged_photos()[0].parent, "--range", "0", "16"]


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_after_export_is_one_command(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint against its fp32 and fp16 bundles: the SRCC stays; against other weights it does not."""
    checkpoint = tiny_export.checkpoint()
    for precision in ("fp32", "fp16"):
        bundle = tiny_export.exported(precision=precision)
        assert run(checkpoint, "--against", bundle, "--json", "--gate", "5e-3", *of_table(table)) == 0
        made = answer(capsys)
        [row] = made["comparison"]
        assert made["passed"] is True
        assert (row["photos"], row["name"]) == (TEST, "mos")
        assert abs(row["difference"]) <= 0.001
        assert 0 < row["max_abs"] < 5e-3
        assert [source["file"] for source in made["sources"]] == [checkpoint.name, bundle.name]
    other = tiny_export.checkpoint(seed=8)
    assert run(checkpoint, "--against", other, *of_table(table)) == 7
    said = capsys.readouterr()
    assert "gate not met: mos: SRCC differs" in said.err
    assert "difference of SRCC" in said.out
    assert run(checkpoint, "--against", bundle, "--gate", "1e-9", *of_table(table)) == 7
    assert "a score differs by" in capsys.readouterr().err
    two = ["--limit", "2", *of_table(table)]
    assert run(checkpoint, "--against", bundle, *two) == 8
    assert "nothing was compared" in capsys.readouterr().err


def test_prompts_that_a_checkpoint_does_not_say(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a bundle they are the bundle's; alone they are said, or assumed aloud."""
    silent, bundle = tmp_path / "silent.pth", tmp_path / "plain.gamma"
    write_authors(silent, read_checkpoint(tiny_export.checkpoint()).state)
    assert export(silent, bundle, tiny_export.options(precision=("fp32",), prompts="plain", scene=("plain",))).published
    assert run(silent, "--against", bundle, "--gate", "1e-4", "--json", *of_table(table)) == 0
    assert "assumed" not in str(answer(capsys)["notes"])
    assert run(silent, "--json", *of_table(table)) == 0
    assumed = answer(capsys)
    assert "silent.pth: the checkpoint does not say which prompts" in str(assumed["notes"])
    assert run(silent, "--prompts", "plain", "--json", *of_table(table)) == 0
    said = answer(capsys)
    assert "does not say" not in str(said["notes"])
    assert said["sets"][0]["srcc"] != assumed["sets"][0]["srcc"]
    assert run(bundle, "--prompts", "plain", *of_table(table)) == 2
    assert "are for checkpoints" in capsys.readouterr().err


def test_two_precisions_or_backends_of_bundles(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_export.exported(precision="fp32")
    flags = ["--backend", "onnxruntime", "--against-backend", "openvino", "--json", *of_table(table)]
    assert run(bundle, "--against", bundle, *flags) == 0
    backends = [source["run_by"].split()[0] for source in answer(capsys)["sources"]]
    assert backends == ["onnxruntime", "openvino"]
    assert run(bundle, "--precision", "fp16", *of_table(table)) == 3
    assert "no graph for scene natural-quality (fp16)" in capsys.readouterr().err


def test_the_folder_holds_everything(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "one"
    broken = table.with_name("broken.csv")
    broken.write_text(table.read_text() + "missing.jpg,3,test,natural-quality\n")
    assert run(tiny_export.checkpoint(), *of_table(broken), "--split", "all", "--out", out) == 3
    assert "missing.jpg" in capsys.readouterr().err
    assert list(out.iterdir()) == []
    (out / "report.json").write_text("of an earlier run")
    assert run(tiny_export.checkpoint(), *of_table(broken), "--split", "all", "--out", out, "--skip-bad") == 0
    said = capsys.readouterr()
    assert "next: gamma-export" in said.err
    assert sorted(path.name for path in out.iterdir()) == [
        "report.json",
        "scatter.png",
        "scores.csv",
        "table.md",
        "worst.png",
    ]
    report = json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)
    assert (report["photos"], len(report["skipped"]), report["sets"][0]["photos"]) == (12, 1, 12)
    assert "untrained; its scores say nothing about images" in said.out
    rows = list(csv.DictReader(io.StringIO((out / "scores.csv").read_text())))
    assert len(rows) == 13
    for row in rows[:12]:
        assert float(row["error"]) == pytest.approx(float(row["score"]) - float(row["mos"]) / 16, abs=1e-5)
    assert rows[12]["score"] == ""
    assert (Path(rows[12]["path"]).name, rows[12]["skipped"]) == ("missing.jpg", "not there")
    assert (out / "table.md").read_text().startswith("| set | photos | SRCC |")
    for name in ("scatter.png", "worst.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_disk_that_fails_at_the_end_takes_no_scores_along(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gamma_training import evaluate_figures

    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluate_figures, "scatter_png", full)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("of an earlier run")
    assert run(tiny_export.checkpoint(), *of_table(table), "--limit", "3", "--out", tmp_path / "out") == 6
    said = capsys.readouterr()
    assert "SRCC" in said.out
    assert "No space left" in said.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scores.csv", "table.md"]


def test_data_from_yaml_with_sets_of_one_name(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"table": "mos.csv", "root": str(packaged_photos()[0].parent), "range": [0, 16]}
    config = tmp_path / "train.yaml"
    config.write_text(json.dumps({"out": "runs/mine", "epochs": 3, "data": [entry, entry | {"range": [0, 32]}]}))
    assert run(tiny_export.checkpoint(), "--data", config, "--split", "val", "--crops", "random10:seed0", "--json") == 0
    made = answer(capsys)
    assert [(row["name"], row["photos"]) for row in made["sets"]] == [("mos", VAL), ("mos-2", VAL)]
    assert made["sets"][0]["srcc"] == made["sets"][1]["srcc"] == made["mean"]["srcc"]
    assert made["sets"][0]["rmse"] != made["sets"][1]["rmse"]
    assert made["protocol"]["crops"] == "random10:seed0"
    assert run(tiny_export.checkpoint(), *of_table(table), "--limit", "5", "--json") == 0
    assert answer(capsys)["photos"] == 5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "exactly one of --data, --table"),
        (["--table", "mos.csv", "--set", "koniq10k"], 2, "exactly one of"),
        (["--data", "x.yaml", "--scene", "plain"], 2, "--scene belongs into the file"),
        (["--table", "mos.csv", "--gate", "1"], 2, "--gate is for --against"),
        (["--table", "mos.csv", "--draws", "0"], 2, "at least 1"),
        (["--table", "mos.csv", "--against", "b", "--gate-srcc", "-1"], 2, "not negative"),
        (["--table", "mos.csv", "--against", "b", "--gate-srcc", "nan"], 2, "not negative"),
        (["--table", "mos.csv", "--range", "0", "1", "--batch", "0"], 2, "batch of 0"),
        (["--table", "mos.csv", "--range", "0", "1", "--crops", "seven"], 2, "unknown crop policy 'seven'"),
        (["--data", "missing.yaml"], 3, "missing.yaml: cannot be read"),
    ],
)
def test_wrong_flags(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["source.pth", *arguments]) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "epochs: 3", "data: photos", "data: []", "data: [7]", "data: {", "\xff"])
def test_a_config_without_data(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(content.encode("latin-1"))
    assert main(["source.pth", "--data", str(config)]) == 3
    assert "config.yaml" in capsys.readouterr().err


def test_a_config_that_never_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert main(["source.pth", "--data", str(tmp_path / "pipe.yaml")]) == 3
    assert "not a regular file" in capsys.readouterr().err


def test_what_cannot_be_evaluated(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, bundle = tiny_export.checkpoint(), tiny_export.exported(precision="fp32")
    flags = of_table(table)
    (tmp_path / "file").write_text("")
    refused: list[tuple[list[object], int, str]] = [
        ([checkpoint, *flags, "--precision", "fp16"], 2, "are for bundles"),
        ([checkpoint, *flags, "--backend", "openvino"], 2, "are for bundles"),
        ([bundle, *flags, "--device", "cuda"], 2, "are for checkpoints"),
        ([bundle, *flags, "--scene-file", "scenes.yaml"], 3, "scenes.yaml"),
        ([checkpoint, *flags, "--out", tmp_path / "file"], 6, "cannot be written"),
        ([tmp_path / "missing.pth", *flags], 3, "missing.pth"),
        ([checkpoint, "--table", tmp_path / "missing.csv", "--range", "0", "1"], 3, "missing.csv"),
    ]
    for arguments, code, words in refused:
        assert run(*arguments) == code, arguments
        assert words in capsys.readouterr().err
    only = tmp_path / "only.csv"
    only.write_text("path,mos,split\n01-astronaut.jpg,3,train\n")
    assert run(checkpoint, *of_table(only)) == 3
    assert "no photo in the split test" in capsys.readouterr().err
    strange = tmp_path / "strange.csv"
    strange.write_text("path,mos,split,scene\n01-astronaut.jpg,3,test,underwater-quality\n")
    assert run(bundle, *of_table(strange)) == 2
    assert "has no scene 'underwater-quality'" in capsys.readouterr().err


def test_a_device_needs_no_torch_to_evaluate_its_bundle(table: Path) -> None:
    """Nor what only training or pictures need."""
    absent = ("torch", "onnx", "scipy", "skimage", "openpyxl", "yaml", "matplotlib", "safetensors")
    arguments = [*map(str, [tiny_export.exported(precision="fp32"), *of_table(table), "--limit", "3", "--json"])]
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] in {absent}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"from gamma_training.commands.evaluate import main\nsys.exit(main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["photos"] == 3
