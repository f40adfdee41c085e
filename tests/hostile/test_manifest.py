"""Rows 13 and 14 of the hostile list: manifest.json and engines.json that are cut, edited, contradictory or newer."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gamma_runtime
from gamma_export.photos import packaged_golden
from gamma_runtime.bundle import ENGINES, MANIFEST, open_bundle, read_engines
from gamma_runtime.doctor import diagnose
from gamma_runtime.errors import GammaError, InputError, IntegrityError
from tests import tiny_export
from tests.hostile.file_faults import FAULTS
from tests.tiny_export import COMMANDS, SCENES, command, manifest, rewrite

JOINT = "joint"


@pytest.fixture(scope="module")
def photo() -> str:
    return str(packaged_golden()[0])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_export.copy(tmp_path / "b.gamma")


# Row 13 and 14: the manifest itself


def refuse(bundle: Path, code: int, words: str | None = None) -> GammaError:
    """The bundle does not open; the error, which is one line for a terminal."""
    with pytest.raises(GammaError, match=words) as caught:
        open_bundle(bundle).contract()
    assert caught.value.exit_code == code, caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 2000
    return caught.value


def test_no_byte_of_the_manifest_can_change_unnoticed(bundle: Path) -> None:
    good = (bundle / MANIFEST).read_bytes()
    numbers = random.Random(5)  # noqa: S311 - a repeatable choice, no secret
    places = {0, len(good) - 1, *(numbers.randrange(len(good)) for _ in range(400))}
    for place in sorted(places):
        content = bytearray(good)
        content[place] ^= 1 << numbers.randrange(8)
        (bundle / MANIFEST).write_bytes(content)
        with pytest.raises((IntegrityError, InputError)) as caught:
            open_bundle(bundle)
        assert caught.value.exit_code == 4 or "newer" in caught.value.message, (place, caught.value.message)


def test_a_manifest_that_was_cut_anywhere_is_refused(bundle: Path) -> None:
    good = (bundle / MANIFEST).read_bytes()
    for length in {*range(0, len(good), 61), len(good) - 1, len(good) - 2}:
        (bundle / MANIFEST).write_bytes(good[:length])
        refuse(bundle, 4)


NOT_JSON = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "number": b"1",
    "text": b'"manifest"',
    "garbage": os.urandom(64),
    "html": b"<!DOCTYPE html><title>404</title>",
    "trailing": b'{"schema_version": 1} {}',
    "not utf-8": b'{"schema_version": "\xff"}',
    "duplicate": b'{"schema_version": 1, "schema_version": 1}',
    "duplicate inside": b'{"schema_version": 1, "contract": {"a": 1, "a": 2}}',
    "nan": b'{"schema_version": NaN}',
    "infinity": b'{"contract": {"limits": -Infinity}}',
    "infinity by exponent": b'{"contract": {"limits": 1e999}}',
    "huge integer": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "deep list": b'{"options": ' + b"[" * 50 + b"]" * 50 + b"}",
    "deeper list": b'{"options": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deeper object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "17 MiB": b'{"options": "' + b"x" * (17 << 20) + b'"}',
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("file", [MANIFEST, ENGINES])
def test_json_that_is_none_is_refused(bundle: Path, file: str, content: bytes) -> None:
    (bundle / file).write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        read_engines(bundle) if file == ENGINES else open_bundle(bundle)
    assert file in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint


def _set(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def _double(data: dict[str, Any]) -> None:
    data["files"].append(data["files"][0])


def _collide(data: dict[str, Any]) -> None:
    data["files"].append(data["files"][0] | {"name": data["files"][0]["name"].upper()})


def _twice(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data[key].append(data[key][0])


def _without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.pop(key)


BAD_NAMES = {
    "parent": "../weights.bin",
    "parent alone": "..",
    "absolute": "/etc/passwd",
    "inside a folder": "a/b.bin",
    "backslash": "a\\b.bin",
    "nul": "a\0.bin",
    "newline": "a\nb.bin",
    "trailing newline": "a.bin\n",
    "escape": "\x1b[2J.bin",
    "empty": "",
    "hidden": ".lock",
    "dash": "-rf",
    "long": "x" * 201,
    "very long": "x" * 100_000,
    "not ascii": "gewicht-ä.bin",
    "lone surrogate": "\udcff.bin",
    "stream": "weights.bin:stream",
    "space": "weights .bin",
    "manifest": MANIFEST,
    "manifest in capitals": "MANIFEST.JSON",
    "engines": ENGINES,
    "not a text": 7,
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_cannot_leave_the_folder_or_mean_two_files(bundle: Path, name: Any) -> None:
    data = manifest(bundle)
    old = data["files"][0]["name"]
    text = json.dumps(data | {"manifest_sha256": None}).replace(json.dumps(old), json.dumps(name))
    (bundle / MANIFEST).write_text(text)
    refuse(bundle, 4)


CONTRADICTIONS = {
    "unknown key": _set("surprise", value=1),
    "unknown key inside": _set("graphs", 0, "plugin", value="libevil.so"),
    **{
        f"no {key}": _without(key) for key in ("files", "graphs", "scenes", "checkpoint", "contract", "contract_sha256")
    },
    "no schema": _without("schema_version"),
    "schema zero": _set("schema_version", value=0),
    "schema as text": _set("schema_version", value="2"),
    "a file twice": _double,
    "file names that collide": _collide,
    "a graph twice": _twice("graphs"),
    "a scene twice": _twice("scenes"),
    "a graph's scene twice": _set("graphs", 0, "scenes", value=[SCENES[0], SCENES[0]]),
    "no graphs": _set("graphs", value=[]),
    "no scenes": _set("scenes", value=[]),
    "graph file that is not listed": _set("graphs", 0, "onnx", value="other.onnx"),
    "weights that are not listed": _set("graphs", 0, "weights", value="other.bin"),
    "golden image that is not listed": _set("golden", 0, "file", value="other.png"),
    "golden scene that is not listed": _set("golden", 0, "scores", "underwater-quality", value=0.5),
    "graph of an unknown scene": _set("graphs", 1, "scenes", value=["underwater-quality"]),
    "unknown default scene": _set("default_scene", value="underwater-quality"),
    "scene name with a slash": _set("default_scene", value="../scene"),
    "contract digest": _set("contract_sha256", value="0" * 64),
    "digest of another length": _set("files", 0, "sha256", value="0" * 63),
    "digest in capitals": _set("files", 0, "sha256", value="A" * 64),
    "negative size": _set("files", 0, "size", value=-1),
    "huge size": _set("files", 0, "size", value=1e300),
    "size as list": _set("files", 0, "size", value=[1]),
    "batch of zero": _set("graphs", 0, "batch", value=[0, 0, 0]),
    "batch upside down": _set("graphs", 0, "batch", value=[4, 2, 1]),
    "batch of a billion": _set("graphs", 0, "batch", value=[1, 1, 10**9]),
    "too many crops": _set("graphs", 0, "crops", value=65),
    "precision": _set("graphs", 0, "precision", value="fp4"),
    "equal score levels": _set("checkpoint", "score_levels", value=[0.5, 0.5]),
    "one score level": _set("checkpoint", "score_levels", value=[0.5]),
    "label that writes to the terminal": _set("checkpoint", "label", value="\x1b]0;owned\x07"),
    "label of two lines": _set("checkpoint", "label", value="fine\nerror: not fine"),
    "right-to-left label": _set("checkpoint", "label", value="\u202euntrained"),
    "four prompts": _set("scenes", 0, "prompts", value=["a", "b", "c", "d"]),
    "key that writes to the terminal": _set("\x1b[2J" + "k" * 5000, value=1),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_refused(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rewrite(bundle, change)
    refuse(bundle, 4)


def test_the_helpers_own_manifest_is_accepted(bundle: Path) -> None:
    """Else the tests above would pass for the wrong reason."""
    rewrite(bundle, _set("created", value="later"))
    assert open_bundle(bundle).manifest.created == "later"
    data = manifest(bundle) | {"manifest_sha256": None}
    (bundle / MANIFEST).write_text(json.dumps(data))
    open_bundle(bundle).contract()


@pytest.mark.parametrize("version", [2, 99, 10**30])
def test_a_newer_schema_needs_a_newer_gamma_edge(
    bundle: Path, photo: str, version: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(bundle, lambda data: data.update(schema_version=version, unheard_of=True))
    assert "needs a newer gamma-edge" in refuse(bundle, 3).message
    for name in COMMANDS:
        assert command(name, bundle, photo) == 3
        said = capsys.readouterr()
        assert "needs a newer gamma-edge" in said.out + said.err


NEWER_CONTRACTS = {
    "another kernel": _set("contract", "resize_kernel", value="LANCZOS"),
    "another version": _set("contract", "version", value=2),
    "another rule": _set("contract", "icc", value="apply"),
    "a rule less": lambda data: data["contract"].pop("alpha"),
    "alpha": _set("contract", "alpha", value="composite on black"),
    "formats": _set("contract", "formats", value=["jpeg", "avif"]),
    "crop kind": _set("contract", "crop", "kind", value="saliency"),
    "crop numbers": _set("contract", "crop", "rows", value="3"),
    "crop as list": _set("contract", "crop", value=[]),
    "too many crops": _set("contract", "crop", value={"kind": "grid", "rows": 9, "cols": 9, "count": 0, "seed": 0}),
    "limits": _set("contract", "limits", "max_bytes", value="64M"),
    "negative limit": _set("contract", "limits", "max_side", value=-1),
    "no limit": _set("contract", "limits", "max_pixels", value=None),
    "small": _set("contract", "small", value="pad"),
    "short side": _set("contract", "short_sides", SCENES[0], value=0),
    "short side as text": _set("contract", "short_sides", SCENES[0], value="384"),
    "short sides as list": _set("contract", "short_sides", value=list(SCENES)),
}


@pytest.mark.parametrize("change", NEWER_CONTRACTS.values(), ids=NEWER_CONTRACTS)
def test_a_contract_that_is_not_understood_is_never_half_obeyed(
    bundle: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    rewrite(bundle, change)
    assert "update" in str(refuse(bundle, 3, "not understood").hint)
    with pytest.raises(InputError, match="not understood"):
        gamma_runtime.load(bundle)


def test_a_contract_covers_every_scene(bundle: Path) -> None:
    rewrite(bundle, lambda data: data["contract"]["short_sides"].pop(SCENES[1]))
    refuse(bundle, 4, "lacks scenes")


# engines.json


ENGINE = {
    "file": "joint-fp16-trtrtx1.0.0-sm86-00000000.plan",
    "size": 4,
    "sha256": "0" * 64,
    "flavour": "tensorrt-rtx",
    "version": "1.0.0",
    "compute_capabilities": ["8.6"],
    "graph": JOINT,
    "scenes": list(SCENES),
    "precision": "fp16",
    "onnx_sha256": "0" * 64,
    "weights_sha256": "0" * 64,
    "batch": [1, 1, 1],
    "options": {},
    "log": "joint-fp16-trtrtx1.0.0-sm86-00000000.log",
    "seconds": 1.0,
    "created": "2026-01-01T00:00:00+00:00",
    "os": "linux-x86_64",
}
BAD_ENGINES: dict[str, dict[str, Any]] = {
    "schema zero": {"schema_version": 0, "engines": []},
    "no engines": {"schema_version": 1},
    "unknown key": {"schema_version": 1, "engines": [], "more": 1},
    "engines as object": {"schema_version": 1, "engines": {}},
    **{
        f"{key} {value!r}"[:40]: {"schema_version": 1, "engines": [ENGINE | {key: value}]}
        for key, value in (
            ("file", "../a.plan"),
            ("file", "a\0.plan"),
            ("log", "/etc/passwd"),
            ("size", -1),
            ("size", 0),
            ("compute_capabilities", ["x+"]),
            ("compute_capabilities", ["8.6; rm"]),
            ("batch", [0, 1, 1]),
            ("version", "\x1b[31m10.3"),
            ("os", "linux\n"),
            ("flavour", "tensorflow"),
            ("sha256", ""),
        )
    },
}


@pytest.mark.parametrize("data", BAD_ENGINES.values(), ids=BAD_ENGINES)
def test_bad_engines_are_refused_and_the_bundle_still_scores(bundle: Path, photo: str, data: dict[str, Any]) -> None:
    (bundle / ENGINES).write_text(json.dumps(data))
    with pytest.raises(IntegrityError, match="faults"):
        read_engines(bundle)
    (facts,) = diagnose([bundle]).bundles
    assert (facts.valid, facts.exit_code) == (False, 4)
    gamma_runtime.load(bundle, threads=1).close()  # a CPU needs no engines


def test_newer_engines_need_a_newer_gamma_edge(bundle: Path) -> None:
    (bundle / ENGINES).write_text(json.dumps({"schema_version": 2, "engines": [], "more": 1}))
    with pytest.raises(InputError, match="needs a newer gamma-edge"):
        read_engines(bundle)


@pytest.mark.parametrize("fault", ["folder", "symlink", "symlink loop", "device", "hard link", "pipe"])
def test_engines_json_must_be_a_plain_file(bundle: Path, fault: str) -> None:
    (bundle / ENGINES).write_text(json.dumps({"schema_version": 1, "engines": []}))
    assert read_engines(bundle).engines == []
    FAULTS[fault](bundle / ENGINES)
    with pytest.raises(IntegrityError, match="not a plain file"):
        read_engines(bundle)
