"""The golden self-test says which stage drifted."""

from __future__ import annotations

from pathlib import Path

import pytest

from gamma_runtime.bundle import Bundle
from gamma_runtime.errors import InputError, IntegrityError
from gamma_runtime.selftest import selftest
from tests.runtime.images import encode, photo
from tests.runtime.tiny_bundle import FACTORS, Tiny, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    golden = {"a": encode(photo(480, 400), "PNG"), "b": encode(photo(260, 300, seed=1), "PNG")}
    return make_bundle(tmp_path / "t.gamma", Tiny(), golden)


def changed(bundle: Bundle, **update: object) -> Bundle:
    golden = [entry.model_copy(update=update) for entry in bundle.manifest.golden]
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"golden": golden}), bundle.sha256)


def test_every_image_scene_and_backend_passes(bundle: Bundle) -> None:
    checks = selftest(bundle, threads=1)
    assert {(c.scene, c.backend) for c in checks} == {(s, b) for s in FACTORS for b in ("onnxruntime", "openvino")}
    assert len(checks) == 2 * 3 * 2
    assert all(check.passed and check.crops_match and check.difference < 1e-5 for check in checks)
    assert checks[0].tolerance == 1e-4
    assert checks[0].to_dict()["passed"] is True


def test_other_crops_are_named(bundle: Bundle) -> None:
    drifted = changed(bundle, crops_sha256=dict.fromkeys(FACTORS, "0" * 64))
    assert {check.drifted for check in selftest(drifted, ["openvino"], threads=1)} == {"decode/crops"}


def test_another_model_is_named(bundle: Bundle) -> None:
    drifted = changed(bundle, scores=dict.fromkeys(FACTORS, 0.9))
    checks = selftest(drifted, ["onnxruntime"], threads=1)
    assert {check.drifted for check in checks} == {"model"}
    assert all(check.crops_match and not check.passed for check in checks)


def test_tolerance(bundle: Bundle) -> None:
    drifted = changed(bundle, scores=dict.fromkeys(FACTORS, 0.9))
    assert all(check.passed for check in selftest(drifted, ["onnxruntime"], tolerance=1.0, threads=1))


def test_no_value_is_a_failure(tmp_path: Path) -> None:
    black = encode(photo(300, 300) // 100, "PNG")
    bundle = make_bundle(tmp_path / "t.gamma", Tiny(dark_is_nan=True), {"a": black})
    for check in selftest(bundle, threads=1):
        assert (check.value, check.difference, check.drifted) == (None, None, "model")
        assert "non-finite" in (check.error or "")


def test_changed_golden_image_is_refused(bundle: Bundle) -> None:
    (bundle.folder / bundle.manifest.golden[0].file).write_bytes(encode(photo(480, 400, seed=2), "PNG"))
    with pytest.raises(IntegrityError):
        selftest(bundle, ["onnxruntime"], threads=1)


def test_no_golden_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no golden"):
        selftest(make_bundle(tmp_path / "t.gamma"))
