"""Rows 43 and 46 of the hostile list: where a bundle can be put, what is refused before the work, odd names."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gamma_runtime
from gamma_export.exporter import ExportReport, export
from gamma_export.photos import packaged_golden
from gamma_export.publish import check_space
from gamma_runtime.bundle import MANIFEST, open_bundle
from gamma_runtime.commands import doctor as doctor_command
from gamma_runtime.errors import InputError, OutputError, UsageError
from tests import tiny_export
from tests.tiny_export import copy, export_command, publish_again, snapshot, spawn

PHOTO = packaged_golden()[0]


def again(out: Path, **options: object) -> ExportReport:
    return export(tiny_export.checkpoint(8), out, tiny_export.options(**options))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy(tmp_path / "b.gamma")


# Row 43: refused before any work


@pytest.fixture
def places(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".bashrc").write_text("mine")
    website = tmp_path / "website"
    website.mkdir()
    (website / MANIFEST).write_text('{"name": "My app", "icons": []}')
    (website / "golden-01-12345678.png").write_text("mine")
    broken = tmp_path / "broken-website"
    shutil.copytree(website, broken)
    (broken / MANIFEST).write_text('{"name":')
    (broken / "index.html").write_text("mine")
    return tmp_path


REFUSED = {
    "file": "exists and is not a folder",
    "dangling": "exists and is not a folder",
    "loop": "exists and is not a folder",
    "file/b.gamma": "no such folder",
    "missing/b.gamma": "no such folder",
    "photos": r"holds other things \(a.jpg\)",
    "home": r"holds other things \(.bashrc\)",
    "website": r"holds other things \(manifest.json\)",
    "broken-website": r"holds other things \(index.html\)",
    "x" * 300: "cannot be used",
    "checkpoint.pth": "output and checkpoint are the same path",
    "link.pth": "output and checkpoint are the same path",
}


@pytest.mark.parametrize("name", REFUSED)
def test_places_that_cannot_hold_a_bundle(places: Path, name: str) -> None:
    checkpoint = places / "checkpoint.pth"
    checkpoint.write_bytes(b"not a checkpoint: the place is refused before it is read")
    (places / "link.pth").symlink_to(checkpoint)
    before = snapshot(places)
    with pytest.raises(OutputError, match=REFUSED[name]) as caught:
        export(checkpoint, places / name, tiny_export.options())
    assert caught.value.hint
    assert snapshot(places) == before


def test_the_command_gives_code_6_and_does_not_even_load_torch(places: Path) -> None:
    script = (
        "import sys; from gamma_export.commands.export import main; code = main();"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    argv = [sys.executable, "-c", script, *tiny_export.arguments(), "-o", str(places / "photos")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (6, "False\n")
    assert "error: " in done.stderr
    assert "\nhint: " in done.stderr


def test_an_empty_folder_is_a_place(tmp_path: Path) -> None:
    (tmp_path / "b.gamma").mkdir()
    assert again(tmp_path / "b.gamma").published


def test_a_bad_checkpoint_leaves_no_folder_behind(tmp_path: Path, bundle: Path) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"garbage")
    before = snapshot(bundle)
    for out in (tmp_path / "new.gamma", bundle):
        with pytest.raises(InputError):
            export(bad, out, tiny_export.options())
    assert not (tmp_path / "new.gamma").exists()
    assert snapshot(bundle) == before


def test_gate_not_met_is_code_7_and_publishes_nothing(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(bundle)
    for out in (tmp_path / "new.gamma", bundle):
        assert export_command("-o", out, gate="1e-9") == 7
        said = capsys.readouterr()
        assert "FAIL" in said.out
        assert "nothing was published" in said.err
    assert not (tmp_path / "new.gamma").exists()
    assert snapshot(bundle) == before


def test_free_space_is_asked_first(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(OutputError, match=r"MiB free, about 1048576 MiB needed"):
        check_space(tmp_path, 1 << 40)


@pytest.mark.parametrize("wait", [-1.0, float("nan"), float("inf")])
def test_a_time_to_wait_that_is_none(tmp_path: Path, wait: float) -> None:
    with pytest.raises(UsageError, match="--lock-timeout"):
        again(tmp_path / "b.gamma", lock_timeout=wait)


def _without_capabilities() -> None:
    """Root in a child process becomes an ordinary owner: the kernel forgets what root may do at the next exec."""
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    copy(folder / "b.gamma")
    for path in (folder / "b.gamma", folder):
        path.chmod(0o555)
    probe = ["touch", str(folder / "x")]
    if subprocess.run(probe, preexec_fn=_without_capabilities, capture_output=True, check=False).returncode == 0:
        pytest.skip("permissions bind nobody here")
    yield folder
    for path in (folder, folder / "b.gamma"):
        path.chmod(0o755)


def test_a_read_only_folder_is_code_6_and_a_read_only_bundle_scores(read_only: Path) -> None:
    before = snapshot(read_only)
    for out in (read_only / "new.gamma", read_only / "b.gamma"):
        done = spawn("export", [*tiny_export.arguments(), "-o", out], preexec_fn=_without_capabilities)
        assert done.returncode == 6, done.stderr
        assert "not writable" in done.stderr
    assert snapshot(read_only) == before
    args = [read_only / "b.gamma", PHOTO, "--threads", "1", "--json"]
    assert spawn("run", args, preexec_fn=_without_capabilities).returncode == 0
    assert snapshot(read_only) == before


# Row 46: names


NAMES = {
    "relative": "b.gamma",
    "with a dot": "./b.gamma",
    "up and down": "sub/../b.gamma",
    "home": "~/b.gamma",
    "spaces and quotes": 'my "best" bundle\'s.gamma',
    "unicode": "bündel-图像-🙂.gamma",
    "leading dash": "./-rf.gamma",
    "newline": "two\nlines.gamma",
    "escape": "red\x1b[31m.gamma",
    "shell": "$(touch owned);`id`&.gamma",
    "long": "x" * 249 + ".gamma",
    "through a link": "link/b.gamma",
    "a link": "link-to-empty",
    "trailing slash": "b.gamma/",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_bundle_may_have_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("sub")
    (tmp_path / "link-to-empty").symlink_to("empty")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if name.startswith("~"):
        assert again(name).bundle == tmp_path / "b.gamma"
    else:
        publish_again(Path(name).absolute(), tiny_export.exported())
    with gamma_runtime.load(name, threads=1) as scorer:
        assert 0 < scorer.score(PHOTO).value < 1
    assert not (tmp_path / "owned").exists()


def test_names_are_printed_harmlessly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "red\x1b[31m\nline.gamma"
    assert export_command("-o", out) == 0
    assert tiny_export.command("run", out, str(PHOTO)) == 0
    assert tiny_export.command("verify", out, str(PHOTO)) == 0
    assert doctor_command.doctor(doctor_command.DoctorOptions(bundles=(out,))) == 0
    (out / MANIFEST).unlink()
    assert tiny_export.command("run", out, str(PHOTO)) == 4
    assert doctor_command.doctor(doctor_command.DoctorOptions(bundles=(out,))) == 4
    said = capsys.readouterr()
    assert r"red\x1b[31m\nline.gamma" in said.out
    assert r"red\x1b[31m\nline.gamma" in said.err
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))


def test_the_next_command_can_be_pasted(tmp_path: Path) -> None:
    done = spawn("export", [*tiny_export.arguments(), "-o", "./-my 'best' bundle.gamma"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = done.stderr.splitlines()[-1].removeprefix("next: ")
    assert command.startswith("gamma-run ")
    again = spawn("run", [shlex.split(command)[1], PHOTO, "--threads", "1", "--json"], cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_path_that_is_not_utf8_is_a_usage_error(tmp_path: Path) -> None:
    """ONNX, ONNX Runtime and OpenVINO take none; the name is shown as bytes."""
    name = tmp_path / os.fsdecode(b"latin-\xe4.gamma")
    with pytest.raises(UsageError, match="a NUL in it"):
        again(tmp_path / "a\0b")
    with pytest.raises(UsageError, match=r"latin-\\xe4\.gamma"):
        again(name)
    copy(name)
    with pytest.raises(UsageError, match="not UTF-8"):
        gamma_runtime.load(name)


def test_a_dash_without_a_folder_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        export_command("-o", "-rf.gamma")
    assert list(tmp_path.iterdir()) == []


def test_without_o_the_checkpoint_names_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert export_command() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-7.gamma"]


def test_text_of_the_checkpoint_cannot_reach_a_terminal(tmp_path: Path) -> None:
    evil = tmp_path / "a\x1b[2J\nb.pth"
    shutil.copy(tiny_export.checkpoint(), evil)
    report = export(evil, tmp_path / "b.gamma", tiny_export.options(licence="CC\x1b]0;owned\x07 \udcff\n" + "x" * 900))
    assert report.published
    info = open_bundle(tmp_path / "b.gamma").manifest.checkpoint
    assert info.file == r"a\x1b[2J\nb.pth"
    assert info.licence is not None
    assert info.licence.isprintable()
    assert len(info.licence) == 500
