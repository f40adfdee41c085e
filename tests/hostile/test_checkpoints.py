"""Rows 1 to 8 of the hostile list: checkpoints from strangers, through the library and through gamma-export."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gamma_runtime.errors import GammaError, InputError, IntegrityError
from gamma_training.checkpoint import read_checkpoint
from tests.hostile import checkpoint_files as files
from tests.hostile.checkpoint_files import MARKER, Maker
from tests.hostile.checkpoint_rows import ROW_1, ROW_2, ROW_4, ROW_5, ROW_6, ROW_7, ROW_8

ROWS = {1: ROW_1, 2: ROW_2, 4: ROW_4, 5: ROW_5, 6: ROW_6, 7: ROW_7, 8: ROW_8}
ALL = [pytest.param(*case, id=f"row {row}: {name}") for row, cases in ROWS.items() for name, case in cases.items()]


@pytest.mark.parametrize(("make", "code", "message"), ALL)
def test_refused(tmp_path: Path, make: Maker, code: int, message: str) -> None:
    path = make(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    start = time.monotonic()
    with pytest.raises(GammaError, match=rf"(?m){message}") as caught:
        read_checkpoint(path)
    assert time.monotonic() - start < 10
    assert type(caught.value) is (InputError if code == 3 else IntegrityError)
    assert len(caught.value.message) < 3000
    assert caught.value.message.count("\n") == 0
    assert caught.value.hint
    assert "\x1b" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert MARKER not in before


def test_a_careless_loader_would_have_run_the_code(tmp_path: Path) -> None:
    """The attack is real, so that its failing means something."""
    pickle.loads(files.bare_pickle(2)(tmp_path).read_bytes())
    assert (tmp_path / MARKER).exists()


def test_the_hash_bomb_is_one(tmp_path: Path) -> None:
    """torch's own guard lets it pass; at depth 64 it would never come back."""
    (key,) = torch.load(files.hash_bomb(tmp_path, depth=4), weights_only=True)
    assert key == (((((1,),) * 2,) * 2,) * 2,) * 2
    seconds = []
    for depth in (15, 19):
        start = time.perf_counter()
        torch.load(files.hash_bomb(tmp_path, depth=depth), weights_only=True)
        seconds.append(time.perf_counter() - start)
    assert seconds[1] > 2 * seconds[0]


@pytest.mark.parametrize("make", [files.good_authors, files.good_safetensors])
def test_truncated_anywhere(tmp_path: Path, make: Maker) -> None:
    path = make(tmp_path)
    assert read_checkpoint(path)
    size = path.stat().st_size
    near_the_end = [size - n for n in (1, 2, 21, 22, 23, 100, 1000, 10_000)]
    spread = [size * n // 17 for n in range(16, 0, -1)]
    for offset in (*near_the_end, *spread, 5000, 1000, 100, 64, 30, 9, 8, 7, 4, 2, 1, 0):
        os.truncate(path, offset)
        with pytest.raises((InputError, IntegrityError)):
            read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("beside", [False, True], ids=["checkpoint", "config"])
def test_a_fifo_does_not_hang(tmp_path: Path, suffix: str, beside: bool) -> None:
    path = tmp_path / f"g{suffix}"
    if beside:
        path = files.good_safetensors(tmp_path)
        path.with_suffix(".json").unlink()
    os.mkfifo(path.with_suffix(".json") if beside else path)
    with pytest.raises(InputError, match="not a regular file"):
        read_checkpoint(path)


def test_links_out_of_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("loop", "dangling"):
        with pytest.raises(InputError, match="cannot be read"):
            read_checkpoint(tmp_path / name)


# Row 3: one bit flipped


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("make", [files.good_authors, files.good_safetensors])
def test_a_flipped_bit_is_refused_when_the_digest_is_known(tmp_path: Path, make: Maker) -> None:
    path = make(tmp_path)
    digest = read_checkpoint(path).sha256
    flip(path, path.stat().st_size // 2)
    with pytest.raises(IntegrityError) as caught:
        read_checkpoint(path, expect_sha256=digest)
    assert caught.value.exit_code == 4


def test_a_flipped_bit_is_refused_by_the_digest_in_our_own_config(tmp_path: Path) -> None:
    path = files.good_safetensors(tmp_path)
    flip(path, path.stat().st_size // 2)
    with pytest.raises(IntegrityError, match="given by its config"):
        read_checkpoint(path)


def test_without_a_digest_a_flipped_bit_changes_the_recorded_one(tmp_path: Path) -> None:
    path = files.good_authors(tmp_path)
    digest = read_checkpoint(path).sha256
    flip(path, path.stat().st_size // 2)
    assert read_checkpoint(path).sha256 != digest


# Through the command line

COMMAND = {
    "row 1": ROW_1["git lfs pointer"],
    "row 1, directory": ROW_1["directory"],
    "row 2": ROW_2["bare pickle, protocol 2"],
    "row 2, torch file": ROW_2["pickle in a torch file"],
    "row 4": ROW_4["both, ten of each"],
    "row 5": ROW_5["sparse"],
    "row 6": ROW_6["NaN and Inf"],
    "row 7": ROW_7["10^12 values by stride 0"],
    "row 8": ROW_8["five experts, config says 3"],
}


def gamma_export(*arguments: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from gamma_export.commands.export import main; raise SystemExit(main())"]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def check_report(result: subprocess.CompletedProcess[str], code: int, folder: Path, before: list[str]) -> None:
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert [line[:5] for line in lines] == ["error", "hint:"]
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize(("make", "code", "message"), COMMAND.values(), ids=COMMAND)
def test_refused_by_gamma_export(tmp_path: Path, make: Maker, code: int, message: str) -> None:
    path = make(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    result = gamma_export(path, "-o", tmp_path / "out.gamma", folder=tmp_path)
    check_report(result, code, tmp_path, before)


def test_a_flipped_bit_is_refused_by_gamma_export(tmp_path: Path) -> None:
    path = files.good_authors(tmp_path)
    digest = read_checkpoint(path).sha256
    flip(path, path.stat().st_size // 2)
    result = gamma_export(path, "-o", "out.gamma", "--expect-sha256", digest, folder=tmp_path)
    check_report(result, 4, tmp_path, ["good.pth"])
