"""A bundle is put in place as a whole: names, generations, what is swept, the lock."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gamma_export.exporter import ExportReport, export
from gamma_export.photos import packaged_golden
from gamma_export.publish import check_output
from gamma_runtime.bundle import ENGINES, MANIFEST, open_bundle, read_engines
from gamma_runtime.doctor import diagnose
from gamma_runtime.engines import EngineOptions, build_engines
from gamma_runtime.errors import GammaError, OutputError
from gamma_runtime.files import LOCK, locked, sweep_temporaries
from tests import tiny_export
from tests.runtime.engine_bundle import needs_rtx
from tests.tiny_export import copy, export_command, manifest, publish_again, snapshot, whole

PHOTO = packaged_golden()[0]


def again(out: Path, seed: int = 8, lock_timeout: float = 1.0) -> None:
    """Another export into the same folder, without the work before the publication."""
    publish_again(out, tiny_export.exported(seed), lock_timeout)


def export_again(out: Path, seed: int = 8, **options: object) -> ExportReport:
    return export(tiny_export.checkpoint(seed), out, tiny_export.options(**options))


def listed(bundle: Path) -> set[str]:
    return {entry["name"] for entry in manifest(bundle)["files"]}


def generated(bundle: Path) -> set[str]:
    return {p.name for p in bundle.iterdir()} - {MANIFEST, ENGINES, LOCK}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy(tmp_path / "b.gamma")


# What is published


def test_names_carry_the_content(bundle: Path) -> None:
    for entry in manifest(bundle)["files"]:
        content = (bundle / entry["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert entry["name"].rpartition(".")[0].endswith(f"-{entry['sha256'][:8]}")
    assert generated(bundle) == listed(bundle)
    assert all((bundle / name).stat().st_mode & 0o777 == 0o644 for name in listed(bundle) | {MANIFEST})


def test_the_same_checkpoint_gives_the_same_files(bundle: Path) -> None:
    before = {name: (bundle / name).stat().st_ino for name in listed(bundle)}
    assert export_again(bundle, seed=7).published
    assert {name: (bundle / name).stat().st_ino for name in listed(bundle)} == before  # not even moved


def test_a_new_export_replaces_the_bundle_as_a_whole(bundle: Path) -> None:
    old = open_bundle(bundle)
    assert export_again(bundle).published
    new = open_bundle(bundle)
    assert new.sha256 != old.sha256
    assert new.manifest.checkpoint.file == "tiny-8.pth"
    new.check_files()
    old.check_files()  # a reader that opened it before still finds everything


def test_the_last_two_generations_stay(bundle: Path) -> None:
    generations = [listed(bundle)]
    for seed in (8, 9, 7):
        again(bundle, seed)
        generations.append(listed(bundle))
        assert generated(bundle) == generations[-1] | generations[-2]
    assert not (generations[1] - generations[3]) & generated(bundle)
    whole(bundle)


def test_a_failed_gate_leaves_the_older_generation_too(bundle: Path) -> None:
    again(bundle)
    before = snapshot(bundle)
    assert not export_again(bundle, 9, gate=1e-9).published
    assert snapshot(bundle) == before


@needs_rtx
def test_engines_outlive_the_export_and_are_called_stale(bundle: Path) -> None:
    (entry,) = build_engines(open_bundle(bundle), EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("8.6",)))
    plans = {name: (bundle / name).read_bytes() for name in (entry.file, entry.log, ENGINES)}
    for seed in (8, 9):
        again(bundle, seed)
    assert {name: (bundle / name).read_bytes() for name in plans} == plans
    assert read_engines(bundle).engines == [entry]
    (facts,) = diagnose([bundle]).bundles
    assert facts.valid
    assert "stale" in (facts.engines[0].why or "")
    again(bundle, 7)  # back to the graph that it was built from
    (facts,) = diagnose([bundle]).bundles
    assert "stale" not in (facts.engines[0].why or "")


def test_only_our_own_files_are_swept(bundle: Path) -> None:
    strangers = ("holiday-20240131.jpg", "notes.txt", "model-12345678.onnx", "weights-int4-12345678.bin", "my.plan")
    for name in strangers:
        (bundle / name).write_text("mine")
    (bundle / "golden-09-12345678.png").mkdir()
    for seed in (8, 9, 7):
        again(bundle, seed)
    assert all((bundle / name).read_text() == "mine" for name in strangers)
    assert (bundle / "golden-09-12345678.png").is_dir()  # in the way, and no reason to fail


def _damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "hard link":
        os.link(path, path.parent.parent / f"another {path.name}")
        return
    path.unlink()
    if kind == "changed":
        path.write_bytes(content[:-1] + b"x")
    elif kind == "symlink":
        (path.parent.parent / path.name).write_bytes(content)
        path.symlink_to(path.parent.parent / path.name)
    elif kind == "pipe":
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["changed", "missing", "symlink", "hard link", "pipe"])
def test_exporting_again_repairs_a_damaged_bundle(bundle: Path, kind: str) -> None:
    for name in sorted(listed(bundle))[:3]:
        _damage(bundle / name, kind)
    with pytest.raises(GammaError):
        whole(bundle)
    again(bundle, seed=7)
    whole(bundle)
    assert kind != "symlink" or all((bundle.parent / name).exists() for name in sorted(listed(bundle))[:3])


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": 1, "files": [{}], "graphs": 3}', b"[" * 100_000])
def test_exporting_again_replaces_a_broken_manifest(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    again(bundle)
    whole(bundle)


def test_a_folder_in_a_files_place_is_an_error_and_the_bundle_stays(bundle: Path) -> None:
    other = copy(bundle.parent / "other.gamma", seed=8)
    (bundle / sorted(listed(other) - listed(bundle))[-1]).mkdir()
    before = snapshot(bundle)
    with pytest.raises(OutputError, match="cannot be written"):
        again(bundle)
    assert snapshot(bundle) == before
    whole(bundle)


def test_nothing_that_no_reader_would_take_is_published(bundle: Path, tmp_path: Path) -> None:
    from gamma_export.publish import publish, staging

    before = snapshot(bundle)
    good = open_bundle(bundle).manifest
    for wrong in (
        good.model_copy(update={"default_scene": "underwater-quality"}),
        good.model_copy(update={"files": good.files[1:]}),
        good.model_copy(update={"contract_sha256": "0" * 64}),
    ):
        with pytest.raises(GammaError), staging(bundle) as stage:
            publish(stage, bundle, wrong, 1.0)
    assert snapshot(bundle) == before


# Row 45: the lock


def test_a_second_writer_waits_and_gives_up(bundle: Path) -> None:
    before = snapshot(bundle)
    start = time.monotonic()
    with locked(bundle, 1.0), pytest.raises(OutputError, match="another process is writing there"):
        again(bundle, lock_timeout=0.5)
    assert time.monotonic() - start > 0.5
    assert snapshot(bundle) == before
    again(bundle, lock_timeout=0.0)  # a lock file that nobody holds is no lock


def test_the_command_gives_code_6_for_a_lock(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(bundle, 1.0):
        assert export_command("-o", bundle, "--lock-timeout", "0.1") == 6
    assert "raise --lock-timeout" in capsys.readouterr().err


def test_a_second_writer_goes_on_when_the_first_is_done(bundle: Path) -> None:
    free = threading.Event()

    def hold() -> None:
        with locked(bundle, 1.0):
            free.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    timer = threading.Timer(0.5, free.set)
    timer.start()
    again(bundle, lock_timeout=30.0)
    assert free.is_set()
    thread.join()
    timer.join()


@pytest.mark.parametrize("kind", ["folder", "symlink", "symlink loop"])
def test_a_lock_that_is_none(bundle: Path, kind: str) -> None:
    if kind == "folder":
        (bundle / LOCK).unlink(missing_ok=True)
        (bundle / LOCK).mkdir()
    else:
        (bundle / LOCK).unlink(missing_ok=True)
        (bundle / LOCK).symlink_to(bundle.parent / "elsewhere" if kind == "symlink" else LOCK)
    with pytest.raises(OutputError, match=r"\.lock: cannot be locked"):
        again(bundle)
    assert not (bundle.parent / "elsewhere").exists()
    whole(bundle)


def test_who_waits_for_a_lock_that_is_taken_away_takes_the_new_one(tmp_path: Path) -> None:
    """Else two writers would each hold a lock of their own."""
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path, 10.0):
            order.append("second")

    with locked(tmp_path, 1.0):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        (tmp_path / LOCK).unlink()
        with locked(tmp_path, 1.0):
            time.sleep(0.3)
            order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_two_exporters_of_which_one_fails_share_a_new_folder(tmp_path: Path) -> None:
    """The failing one made the folder, and must not take it away from under the other."""
    from gamma_export.publish import staging

    out = tmp_path / "b.gamma"
    failing, other = staging(out), staging(out)
    failing.__enter__()
    stage = other.__enter__()
    (stage / "file").write_text("work")
    failing.__exit__(None, None, None)
    assert (stage / "file").read_text() == "work"
    other.__exit__(None, None, None)
    assert list(out.iterdir()) == []


# Row 44: what a killed exporter left


def _leftover(folder: Path, pid: int, hours: float, kind: str = "file") -> Path:
    path = folder / f".gamma-tmp-{pid}-{kind[:4]}{hours:g}"
    if kind == "folder":
        path.mkdir()
        (path / "weights").write_bytes(b"half")
    elif kind == "link":
        (folder.parent / "precious").mkdir(exist_ok=True)
        (folder.parent / "precious" / "file").write_text("mine")
        path.symlink_to(folder.parent / "precious")
    else:
        path.write_bytes(b"half")
    then = time.time() - hours * 3600
    os.utime(path, (then, then), follow_symlinks=False)
    return path


@pytest.fixture
def dead() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_leftovers_of_the_dead_are_swept_after_an_hour(bundle: Path, dead: int) -> None:
    swept = [_leftover(bundle, dead, 2, kind) for kind in ("file", "folder", "link")]
    kept = [
        _leftover(bundle, dead, 0.5),  # perhaps on another machine that shares the folder
        _leftover(bundle, dead, 0.5, "folder"),
        _leftover(bundle, os.getpid(), 2),  # alive
        _leftover(bundle, os.getpid(), 2, "folder"),
        _leftover(bundle, dead, -2),  # the clock jumped
    ]
    again(bundle)
    assert not any(os.path.lexists(path) for path in swept)
    assert all(os.path.lexists(path) for path in kept)
    assert (bundle.parent / "precious" / "file").read_text() == "mine"
    whole(bundle)


def test_sweeping_a_folder_that_is_gone_is_nothing(tmp_path: Path) -> None:
    sweep_temporaries(tmp_path / "missing")


def test_a_place_that_holds_only_leftovers_is_a_place(tmp_path: Path, dead: int) -> None:
    out = tmp_path / "b.gamma"
    out.mkdir()
    _leftover(out, dead, 2, "folder")
    (out / LOCK).write_text("")
    check_output(out, None)
    again(out)
    assert generated(out) == listed(out)


def test_report_and_manifest_agree(bundle: Path) -> None:
    report = export_again(bundle)
    data = manifest(bundle)
    assert report.bytes == sum(entry["size"] for entry in data["files"])
    assert json.loads(json.dumps(dataclasses.asdict(report)["scenes"])) == [s["name"] for s in data["scenes"]]
