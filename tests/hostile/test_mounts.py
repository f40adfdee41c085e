"""Rows 42, 43 and 47 of the hostile list: small, read-only and vanished disks, no shared memory, no place for programs.

The disks are real ones, mounted in a namespace of the test's own; where that is not allowed, these tests skip.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_export
from tests.tiny_export import copy, exported, snapshot, whole

NAMESPACE = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]


def _may_mount() -> bool:
    try:
        return (
            subprocess.run([*NAMESPACE, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(not _may_mount(), reason="no mount namespaces here (needs root and unshare)")


def inside(setup: str, command: str, *arguments: str | Path, after: str = "") -> subprocess.CompletedProcess[str]:
    """Run one of our commands behind mounts that only it sees."""
    line = shlex.join([str(Path(sys.executable).parent / f"gamma-{command}"), *map(str, arguments)])
    script = f"{setup}\nset +e\n{line}\ncode=$?\n{after}\nexit $code"
    return subprocess.run([*NAMESPACE, script], capture_output=True, text=True, check=False)


def export_words(out: Path) -> list[str]:
    return [*tiny_export.arguments(), "-o", str(out), "--quiet"]


@needs_mounts
@pytest.mark.parametrize("kilobytes", [300, 1500])
def test_a_full_disk_is_code_6_and_leaves_nothing(tmp_path: Path, kilobytes: int) -> None:
    setup = f"mount -t tmpfs -o size={kilobytes}k tmpfs {tmp_path}"
    done = inside(setup, "export", *export_words(tmp_path / "b.gamma"), after=f"ls -A {tmp_path}")
    assert done.returncode == 6, done.stderr
    assert "hint: " in done.stderr
    assert done.stdout.split() == []


@needs_mounts
def test_a_read_only_disk_is_code_6_for_export_and_fine_for_scoring(tmp_path: Path) -> None:
    bundle = copy(tmp_path / "b.gamma")
    before = snapshot(bundle)
    setup = f"mount --bind {tmp_path} {tmp_path}; mount -o remount,bind,ro {tmp_path}"
    assert inside(setup, "export", *export_words(bundle)).returncode == 6
    photo = next(tiny_export.photos().iterdir())
    assert inside(setup, "run", bundle, photo, "--threads", "1").returncode == 0
    assert snapshot(bundle) == before
    whole(bundle)


@needs_mounts
@pytest.mark.parametrize(
    "setup",
    ["umount -l /dev/shm", "mount -t tmpfs -o noexec,nosuid tmpfs PLACE\nexport TMPDIR=PLACE"],
    ids=["no shared memory", "no programs in TMPDIR"],
)
def test_scoring_and_exporting_need_neither(tmp_path: Path, setup: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    setup = setup.replace("PLACE", str(place))
    photo = next(tiny_export.photos().iterdir())
    done = inside(setup, "run", exported(), photo, "--threads", "1")
    assert done.returncode == 0, done.stderr
    done = inside(setup, "export", *export_words(tmp_path / "b.gamma"))
    assert done.returncode == 0, done.stderr
    whole(tmp_path / "b.gamma")


def test_an_output_folder_that_vanishes_is_code_6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from gamma_export import exporter
    from gamma_runtime.errors import OutputError

    real = exporter._parity

    def late(*arguments: object) -> object:
        shutil.rmtree(tmp_path / "x")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(exporter, "_parity", late)
    (tmp_path / "x").mkdir()
    with pytest.raises(OutputError, match="removed while the bundle was being made") as caught:
        exporter.export(tiny_export.checkpoint(), tmp_path / "x" / "b.gamma", tiny_export.options())
    assert caught.value.exit_code == 6
    assert list(tmp_path.iterdir()) == []
