"""The C++ runtime against the Python one: crops byte for byte, scores to the last digits, the same refusals."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import gamma_runtime
from gamma_export.photos import packaged_golden, packaged_photos
from gamma_runtime.bundle import MANIFEST, Bundle, open_bundle
from gamma_runtime.crops import prepare
from gamma_runtime.errors import GammaError
from tests import tiny_export
from tests.cpp.conftest import build
from tests.hostile import test_manifest as hostile
from tests.runtime import images
from tests.runtime.tiny_bundle import Tiny, make_bundle

DATA = Path(__file__).parent.parent / "data" / "images"
POLICIES = ("centre", "five", "grid2x3", "random7:seed9", "cover")


def run(tools: Path, name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(tools / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("cpp") / "five.gamma")


def made(folder: Path) -> Iterator[Path]:
    """Images of every kind, made here."""
    photo = images.photo(417, 391)
    grey, wide = photo[:, :, 0], (photo.astype(np.uint16) * 257) ^ 0x55
    rgba = np.dstack([photo, np.roll(photo[:, :, 0], 40, axis=1)])
    files: dict[str, bytes] = {
        "progressive.jpg": images.encode(photo, "JPEG", progressive=True, quality=83),
        "grey.jpg": images.encode(grey, "JPEG"),
        "444.jpg": images.encode(photo, "JPEG", subsampling=0),
        "422.jpg": images.encode(photo, "JPEG", subsampling=1),
        "cmyk.jpg": images.encode(Image.fromarray(photo).convert("CMYK"), "JPEG"),
        "restart.jpg": images.encode(photo, "JPEG", restart_marker_rows=2),
        "rgb.png": images.encode(photo, "PNG"),
        "grey.png": images.encode(grey, "PNG"),
        "alpha.png": images.encode(rgba, "PNG"),
        "palette.png": images.encode(Image.fromarray(photo).quantize(77), "PNG"),
        "bits.png": images.encode(Image.fromarray(grey).convert("1"), "PNG"),
        "grey16.png": images.encode(Image.fromarray(wide[:, :, 0]), "PNG"),
        "lossy.webp": images.encode(photo, "WEBP", quality=71),
        "lossless.webp": images.encode(photo, "WEBP", lossless=True),
        "alpha.webp": images.encode(rgba, "WEBP", quality=90),
        "rgb.bmp": images.encode(photo, "BMP"),
        "rgb.tif": images.encode(photo, "TIFF"),
        "lzw.tif": images.encode(photo, "TIFF", compression="tiff_lzw"),
        "deflate.tif": images.encode(photo, "TIFF", compression="tiff_adobe_deflate"),
        "tiny.png": images.encode(images.photo(3, 5), "PNG"),
        "narrow.jpg": images.encode(images.photo(40, 700), "JPEG"),
        "huge.jpg": images.encode(images.photo(6000, 4100), "JPEG", quality=60),
    }
    for orientation in range(1, 9):
        files[f"turned-{orientation}.jpg"] = images.with_exif(files["444.jpg"], images.exif(orientation))
        files[f"turned-{orientation}.png"] = images.with_exif(
            images.encode(photo, "PNG"), images.exif(orientation, ">")
        )
    for name, content in files.items():
        (folder / name).write_bytes(content)
        yield folder / name


def python_crops(path: Path, bundle: Bundle, scene: str, small: str) -> bytes | GammaError:
    contract = dataclasses.replace(bundle.contract(), small=small)
    try:
        return prepare(path, contract, scene).crops.tobytes()
    except GammaError as error:
        return error


def cpp_crops(tools: Path, path: Path, bundle: Bundle, scene: str, small: str, to: Path) -> bytes | int:
    flags = ["--scene", scene, "--small", small, "--dump-crops", to]
    done = run(tools, "gamma-run-cpp", bundle.folder, path, *flags)
    if done.returncode != 0:
        assert done.stderr.startswith("error: "), done.stderr
        return done.returncode
    return to.read_bytes()


def compare(tools: Path, paths: Sequence[Path], bundle: Bundle, scene: str, small: str, to: Path) -> tuple[int, int]:
    """How many images gave the same bytes, and how many were refused by both."""
    same = refused = 0
    for path in paths:
        wanted = python_crops(path, bundle, scene, small)
        found = cpp_crops(tools, path, bundle, scene, small, to)
        if isinstance(wanted, GammaError):
            assert found == wanted.exit_code, (path.name, wanted.message, found)
            refused += 1
        else:
            assert found == wanted, f"{path.name}: other crops" if isinstance(found, bytes) else (path.name, found)
            same += 1
    return same, refused


@pytest.mark.long
@pytest.mark.parametrize("scene", ["natural-quality", "face-quality", "underwater-quality"])
def test_crops_of_every_kind_of_image(tools: Path, bundle: Bundle, tmp_path: Path, scene: str) -> None:
    paths = [*packaged_photos(), *packaged_golden(), *sorted(DATA.iterdir()), *made(tmp_path)]
    same, refused = compare(tools, paths, bundle, scene, "pad", tmp_path / "crops")
    assert same >= 90
    assert refused < len(paths) / 4
    same, _ = compare(
        tools,
        [*DATA.iterdir(), tmp_path / "tiny.png", tmp_path / "narrow.jpg"],
        bundle,
        scene,
        "resize",
        tmp_path / "c",
    )
    assert same >= 25
    assert compare(tools, [tmp_path / "tiny.png"], bundle, scene, "refuse", tmp_path / "c") == (0, 1)


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
def test_crops_of_every_policy(tools: Path, tmp_path: Path, policy: str) -> None:
    bundle = make_bundle(tmp_path / "x.gamma", Tiny(crop=policy))
    assert compare(tools, packaged_photos(), bundle, "natural-quality", "refuse", tmp_path / "c")[0] == 16


@pytest.mark.long
def test_damaged_files_are_refused_alike(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Cut and flipped at many places: both runtimes refuse, or both see the same pixels."""
    numbers = random.Random(3)  # noqa: S311 - a repeatable choice, no secret
    good = [path for path in made(tmp_path) if path.name not in ("huge.jpg", "tiny.png")]
    damaged = []
    for path in good[:20]:
        content = path.read_bytes()
        for number in range(6):
            broken = bytearray(content)
            if number < 3:
                broken = broken[: numbers.randrange(1, len(content))]
            else:
                broken[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
            damaged.append(tmp_path / f"damaged-{number}-{path.name}")
            damaged[-1].write_bytes(broken)
    same, refused = compare(tools, damaged, bundle, "natural-quality", "pad", tmp_path / "c")
    assert refused > 50
    assert same + refused == len(damaged)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<html>", b"version https://git-lfs", b"\0" * 100])
def test_what_is_no_image(tools: Path, bundle: Bundle, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    paths = [tmp_path / "x.jpg", tmp_path, tmp_path / "nowhere"]
    assert compare(tools, paths, bundle, "natural-quality", "pad", tmp_path / "c") == (0, 3)


def test_scores_of_a_real_graph(tools: Path, tmp_path: Path) -> None:
    """An exported model, each precision, own and joint graphs: within 1e-6 of Python on the same library."""
    folder = tiny_export.exported(precision="fp32,fp16")
    photos = packaged_photos()[:6]
    for scene in tiny_export.SCENES:
        for precision in ("fp32", "fp16"):
            done = run(tools, "gamma-run-cpp", folder, *photos, "--scene", scene, "--precision", precision, "--json")
            assert done.returncode == 0, done.stderr
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            with gamma_runtime.load(folder, scene=scene, precision=precision, backend="openvino", threads=1) as scorer:
                for photo, row in zip(photos, rows, strict=True):
                    wanted = scorer.score(photo).to_dict()
                    assert row.keys() == wanted.keys()
                    assert row["score"] == pytest.approx(wanted["score"], abs=1e-6)
                    assert row["crop_scores"] == pytest.approx(wanted["crop_scores"], abs=1e-6)
                    assert row["crop_std"] == pytest.approx(wanted["crop_std"], abs=1e-6)
                    for key in (
                        "path",
                        "scene",
                        "range",
                        "scale",
                        "working_size",
                        "flags",
                        "backend",
                        "bundle",
                        "error",
                    ):
                        assert row[key] == wanted[key], key


@pytest.mark.long
def test_scores_in_8_and_4_bits(tools: Path, tmp_path: Path) -> None:
    """The form for CPUs is taken, and gives what Python gets from it."""
    from gamma_export.exporter import export

    calibration = tmp_path / "calibration"
    calibration.mkdir()
    for photo in packaged_photos()[2:]:
        (calibration / photo.name).write_bytes(photo.read_bytes())
    options = tiny_export.options(precision=("int8",), calib=(calibration,), calib_min=8, calib_method="max")
    options = dataclasses.replace(options, experts="int4", skip_speed=True, gate=0.5)
    assert export(tiny_export.checkpoint(), tmp_path / "x.gamma", options).published
    photos = packaged_photos()[:3]
    done = run(tools, "gamma-run-cpp", tmp_path / "x.gamma", *photos, "--threads", "1", "--json")
    with gamma_runtime.load(tmp_path / "x.gamma", backend="openvino", threads=1) as scorer:
        wanted = [scorer.score(photo).value for photo in photos]
    assert [json.loads(line)["score"] for line in done.stdout.splitlines()] == pytest.approx(wanted, abs=1e-6)


BY_HAND = [Tiny(crop="cover", batch=(1, 2, 4)), Tiny(batch=(2, 2, 2)), Tiny(own=False), Tiny(precision="fp16")]


@pytest.mark.parametrize("tiny", BY_HAND)
def test_scores_by_hand(tools: Path, tmp_path: Path, tiny: Tiny) -> None:
    """Graphs that score the mean brightness; several batches, one crop a call, the joint graph."""
    bundle = make_bundle(tmp_path / "x.gamma", tiny)
    done = run(tools, "gamma-run-cpp", bundle.folder, *packaged_photos()[:4], "--scene", "face-quality", "--json")
    assert done.returncode == 0, done.stderr
    for photo, line in zip(packaged_photos(), done.stdout.splitlines(), strict=False):
        crops = prepare(photo, bundle.contract(), "face-quality").crops
        means = crops.reshape(len(crops), -1).mean(axis=1) / 255 / 2
        near = 2e-3 if tiny.precision == "fp16" else 1e-5
        assert json.loads(line)["crop_scores"] == pytest.approx(means.tolist(), abs=near)
        assert json.loads(line)["score"] == pytest.approx(float(means.mean()), abs=near)


def test_the_golden_images(tools: Path, tmp_path: Path) -> None:
    folder = tiny_export.copy(tmp_path / "b.gamma")
    done = run(tools, "gamma-selftest-cpp", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass") == 3 * len(tiny_export.SCENES)
    tiny_export.rewrite(folder, hostile._set("golden", 0, "scores", tiny_export.SCENES[0], value=0.99))
    assert run(tools, "gamma-selftest-cpp", folder).returncode == 7
    tiny_export.rewrite(folder, hostile._set("golden", 0, "crops_sha256", tiny_export.SCENES[0], value="0" * 64))
    done = run(tools, "gamma-selftest-cpp", folder)
    assert (done.returncode, "crops DIFFER" in done.stdout) == (7, True)


def test_a_bad_image_does_not_stop_the_others(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no")
    photo = packaged_photos()[0]
    done = run(tools, "gamma-run-cpp", bundle.folder, photo, tmp_path / "bad.jpg", photo, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3
    assert [row["score"] is None for row in rows] == [False, True, False]
    assert "bad.jpg" in rows[1]["error"]
    dark = make_bundle(tmp_path / "dark.gamma", Tiny(dark_is_nan=True))
    (tmp_path / "black.png").write_bytes(images.encode(np.zeros((300, 300, 3), np.uint8), "PNG"))
    done = run(tools, "gamma-run-cpp", dark.folder, tmp_path / "black.png", photo, "--json")
    assert done.returncode == 7
    assert json.loads(done.stdout.splitlines()[1])["score"] > 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "a bundle and at least one image"),
        (("nowhere.gamma", "a.jpg"), 3, "no such bundle folder"),
        (("--surprise",), 2, "unknown flag --surprise"),
        (("a", "b", "--threads", "none"), 2, "--threads none"),
        (("a", "b", "--threads", "2x"), 2, "--threads 2x"),
        (("a", "b", "--scene"), 2, "--scene needs a value"),
    ],
)
def test_usage(tools: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = run(tools, "gamma-run-cpp", *words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert run(tools, "gamma-run-cpp", "--help").returncode == 0


def refused(tools: Path, folder: Path) -> int:
    done = run(tools, "gamma-run-cpp", folder, packaged_photos()[0])
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.replace("\n", "").isprintable()
    return done.returncode


@pytest.mark.parametrize("content", hostile.NOT_JSON.values(), ids=hostile.NOT_JSON)
def test_json_that_is_none_is_refused(tools: Path, tmp_path: Path, content: bytes) -> None:
    folder = tiny_export.copy(tmp_path / "b.gamma")
    (folder / MANIFEST).write_bytes(content)
    assert refused(tools, folder) == 4


@pytest.mark.parametrize("name", hostile.BAD_NAMES.values(), ids=hostile.BAD_NAMES)
def test_names_cannot_leave_the_folder(tools: Path, tmp_path: Path, name: Any) -> None:
    folder = tiny_export.copy(tmp_path / "b.gamma")
    data = tiny_export.manifest(folder)
    old = data["files"][0]["name"]
    text = json.dumps(data | {"manifest_sha256": None}).replace(json.dumps(old), json.dumps(name))
    (folder / MANIFEST).write_text(text)
    assert refused(tools, folder) == 4


@pytest.mark.parametrize("change", hostile.CONTRADICTIONS.values(), ids=hostile.CONTRADICTIONS)
def test_contradictions_are_refused(tools: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    folder = tiny_export.copy(tmp_path / "b.gamma")
    tiny_export.rewrite(folder, change)
    assert refused(tools, folder) == 4


@pytest.mark.parametrize("change", hostile.NEWER_CONTRACTS.values(), ids=hostile.NEWER_CONTRACTS)
def test_a_newer_contract_is_never_half_obeyed(
    tools: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    folder = tiny_export.copy(tmp_path / "b.gamma")
    tiny_export.rewrite(folder, change)
    assert refused(tools, folder) == 3


@pytest.mark.parametrize("version", [2, 10**30])
def test_a_newer_schema(tools: Path, tmp_path: Path, version: int) -> None:
    folder = tiny_export.copy(tmp_path / "b.gamma")
    tiny_export.rewrite(folder, lambda data: data.update(schema_version=version, unheard_of=True))
    assert refused(tools, folder) == 3


def test_changed_files_are_never_read(tools: Path, tmp_path: Path) -> None:
    folder = tiny_export.copy(tmp_path / "b.gamma")
    for entry in open_bundle(folder).graph(tiny_export.SCENES[0]).onnx, open_bundle(folder).manifest.graphs[0].weights:
        path = folder / entry
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert refused(tools, folder) == 4
        path.write_bytes(good[:-1])
        assert refused(tools, folder) == 4
        path.unlink()
        assert refused(tools, folder) == 4
        (tmp_path / "elsewhere").write_bytes(good)
        path.symlink_to(tmp_path / "elsewhere")
        assert refused(tools, folder) == 4
        path.unlink()
        path.write_bytes(good)
    content = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(content.replace(b'"created"', b'"Created"', 1))
    assert refused(tools, folder) == 4


EDITS: dict[str, tuple[int, Callable[[onnx.ModelProto], object]]] = {
    "another file": (4, lambda model: _entry(model, "location", "/etc/passwd")),
    "past the end": (4, lambda model: _entry(model, "offset", str(10**9))),
    "no number": (4, lambda model: _entry(model, "offset", "-5")),
    "length": (4, lambda model: _entry(model, "length", "3")),
    "custom operator": (3, lambda model: setattr(model.graph.node[0], "domain", "evil")),
    "operator set": (3, lambda model: model.opset_import.add(domain="evil", version=1)),
    "another output": (3, lambda model: setattr(model.graph.output[0], "name", "scores")),
}


def _entry(model: onnx.ModelProto, key: str, value: str) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value
                return


@pytest.mark.parametrize("name", EDITS)
def test_a_graph_that_the_manifest_vouches_for(tools: Path, tmp_path: Path, name: str) -> None:
    bundle = tiny_export.copy(tmp_path / "b.gamma", precision="fp32")
    code, edit = EDITS[name]
    for entry in tiny_export.manifest(bundle)["graphs"]:
        model = onnx.load(bundle / entry["onnx"], load_external_data=False)
        edit(model)
        tiny_export.vouch(bundle, entry["onnx"], model.SerializeToString())
    assert refused(tools, bundle) == code


@pytest.mark.long
def test_under_the_sanitizers(bundle: Bundle, tmp_path: Path) -> None:
    """Address and undefined behaviour, over every kind of image and damaged ones; the report would be on stderr."""
    tools = build(tmp_path / "build", "-DGAMMA_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")
    numbers = random.Random(8)  # noqa: S311 - a repeatable choice, no secret
    (tmp_path / "images").mkdir()
    paths = [*sorted(DATA.iterdir()), *made(tmp_path / "images")]
    for path in paths[::3]:
        content = bytearray(path.read_bytes())
        content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
        paths.append(tmp_path / "images" / f"flipped-{path.name}")
        paths[-1].write_bytes(content)
        paths.append(tmp_path / "images" / f"cut-{path.name}")
        paths[-1].write_bytes(content[: len(content) // 2])
    for path in paths:
        done = run(tools, "gamma-run-cpp", bundle.folder, path, "--small", "pad", "--dump-crops", tmp_path / "c")
        assert done.returncode in (0, 3), (path.name, done.stderr[-2000:])
        assert "Sanitizer" not in done.stderr
        assert "runtime error" not in done.stderr
