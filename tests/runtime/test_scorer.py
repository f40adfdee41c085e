"""From bundle and image to Score: values computed by hand, batching, errors, scales."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gamma_runtime
from gamma_runtime.bundle import Bundle
from gamma_runtime.crops import prepare
from gamma_runtime.errors import GammaError, InputError, IntegrityError, UsageError
from gamma_runtime.scorer import load, load_panel
from tests.runtime.images import encode, photo
from tests.runtime.tiny_bundle import FACTORS, Tiny, make_bundle

NAMES = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "t.gamma")


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("r") / "t.gamma", Tiny(batch=(2, 3, 4), dark_is_nan=True))


def images(count: int) -> list[np.ndarray]:
    return [photo(300 + 10 * index, 260, seed=index) for index in range(count)]


def by_hand(bundle: Bundle, image: np.ndarray, scene: str) -> float:
    return float(prepare(image, bundle.contract(), scene).crops.mean(dtype=np.float64) / 255 * FACTORS[scene])


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("scene", FACTORS)
def test_score_of_one_image(bundle: Bundle, backend: str, scene: str) -> None:
    picture = photo(800, 600)
    with load(bundle, scene, backend, threads=1) as scorer:
        score = scorer.score(picture)
        assert scorer.backend_name == score.backend == backend
        assert scorer.scene == score.scene == scene
    assert score.value == pytest.approx(by_hand(bundle, picture, scene), abs=2e-6)
    assert np.mean(score.crop_scores) == pytest.approx(score.value, abs=1e-6)
    assert score.crop_std == pytest.approx(np.std(score.crop_scores), abs=1e-9)
    assert (
        score.working_size
        == {"natural-quality": (512, 384), "face-quality": (683, 512), "underwater-quality": (299, 224)}[scene]
    )
    assert score.range == (0.2, 1.0)
    assert score.bundle == bundle.sha256
    assert score.path is None


def test_defaults(bundle: Bundle) -> None:
    with gamma_runtime.load(str(bundle.folder)) as scorer:
        assert (scorer.scene, scorer.backend_name) == ("natural-quality", "onnxruntime")
        assert isinstance(scorer, gamma_runtime.Scorer)


def test_path_bytes_and_array_score_the_same(bundle: Bundle, tmp_path: Path) -> None:
    data = encode(photo(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    with load(bundle, threads=1) as scorer:
        from_path = scorer.score(tmp_path / "a.png")
        assert from_path.value == scorer.score(data).value == scorer.score(photo()).value
        assert from_path.path == str(tmp_path / "a.png")
        assert scorer.score_prepared(scorer.prepare(data)).value == from_path.value


def test_flags_carry_the_label_and_what_was_done(bundle: Bundle, tmp_path: Path) -> None:
    with load(bundle, threads=1) as scorer:
        assert scorer.score(encode(photo()[:, :, 0].copy(), "PNG")).flags == ("untrained", "grey")
        with pytest.raises(InputError, match="223"):
            scorer.score(photo(400, 223))
    with load(bundle, small="resize", threads=1) as scorer:
        assert scorer.score(photo(400, 223)).flags == ("untrained", "enlarged")
    trained = make_bundle(tmp_path / "t.gamma", Tiny(label=None))
    with load(trained, threads=1) as scorer:
        assert scorer.score(photo()).flags == ()


@pytest.mark.parametrize("backend", NAMES)
def test_static_graph_scores_many_bit_for_bit_as_one(bundle: Bundle, backend: str) -> None:
    with load(bundle, backend=backend, threads=1) as scorer:
        single = [scorer.score(image) for image in images(5)]
        for batch in (1, 2, 8):
            assert list(scorer.score_many(images(5), batch=batch)) == single


@pytest.mark.parametrize("backend", NAMES)
def test_static_graph_of_four_pads_the_last_batch(tmp_path: Path, backend: str) -> None:
    bundle = make_bundle(tmp_path / "t.gamma", Tiny(batch=(4, 4, 4)))
    with load(bundle, backend=backend, threads=1) as scorer:
        many = [score.value for score in scorer.score_many(images(6))]
        assert many == [score.value for score in scorer.score_many(images(6))]
        assert many == pytest.approx([by_hand(bundle, image, "natural-quality") for image in images(6)], abs=2e-6)


@pytest.mark.parametrize("backend", NAMES)
def test_ranged_graph(ranged: Bundle, backend: str) -> None:
    with load(ranged, backend=backend, threads=1) as scorer:
        expected = [by_hand(ranged, image, "natural-quality") for image in images(7)]
        for batch in (1, 3, 100):
            values = [score.value for score in scorer.score_many(images(7), batch=batch)]
            assert values == pytest.approx(expected, abs=2e-6)


def test_score_many_is_lazy(bundle: Bundle) -> None:
    taken = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal taken
        for image in images(6):
            taken += 1
            yield image

    with load(bundle, threads=1) as scorer:
        next(scorer.score_many(source(), batch=2, decode_threads=0))
        assert taken == 2
        next(scorer.score_many(source(), batch=2, decode_threads=1))
        assert taken == 2 + 4


def test_bad_images_keep_their_place(bundle: Bundle) -> None:
    mixed = [photo(), b"nonsense", photo(seed=1), photo(10, 10)]
    with load(bundle, threads=1) as scorer:
        results = list(scorer.score_many(mixed, on_error="yield"))
        assert [isinstance(result, GammaError) for result in results] == [False, True, False, True]
        assert results[2] == scorer.score(photo(seed=1))
        with pytest.raises(InputError, match="not an image"):
            list(scorer.score_many(mixed))


def test_one_nan_does_not_spoil_its_batch(ranged: Bundle) -> None:
    black = np.zeros((300, 300, 3), np.uint8)
    with load(ranged, threads=1) as scorer:
        results = list(scorer.score_many([photo(), black, photo(seed=1)], batch=4, on_error="yield"))
    assert [type(result).__name__ for result in results] == ["Score", "NonFiniteError", "Score"]
    assert "non-finite" in str(results[1])


def test_options_are_checked(bundle: Bundle) -> None:
    with load(bundle, threads=1) as scorer:
        with pytest.raises(UsageError, match="batch of 0"):
            list(scorer.score_many([photo()], batch=0))
        with pytest.raises(UsageError, match="ignore"):
            list(scorer.score_many([photo()], on_error="ignore"))  # type: ignore[call-overload]
    for wrong in ({"backend": "tensorflow"}, {"small": "stretch"}, {"scale": "stars"}, {"threads": 0}):
        with pytest.raises(UsageError):
            load(bundle, **wrong)  # type: ignore[arg-type]
    for missing in ({"scene": "nonsense"}, {"precision": "fp16"}):
        with pytest.raises(InputError, match="no graph"):
            load(bundle, **missing)


def test_scale_0_100(bundle: Bundle) -> None:
    with load(bundle, threads=1) as scorer:
        plain = scorer.score(photo())
    with load(bundle, scale="0-100", threads=1) as scorer:
        scaled = scorer.score(photo())
    assert scaled.value == pytest.approx((plain.value - 0.2) / 0.8 * 100)
    assert scaled.crop_std == pytest.approx(plain.crop_std / 0.8 * 100)
    assert (scaled.range, scaled.scale) == ((0.0, 100.0), "0-100")
    assert plain.scaled("0-100") == scaled
    assert plain.scaled("checkpoint") is plain
    with pytest.raises(UsageError, match="cannot go back"):
        scaled.scaled("checkpoint")


def test_record_is_json(bundle: Bundle) -> None:
    with load(bundle, threads=1) as scorer:
        record = json.loads(json.dumps(scorer.score(photo()).to_dict(), allow_nan=False))
    assert record["flags"] == ["untrained"]
    assert record["error"] is None
    assert len(record["crop_scores"]) == 5
    assert set(record) >= {"path", "scene", "score", "range", "crop_std", "working_size", "backend", "bundle", "scale"}


@pytest.mark.parametrize("joint", [True, False])
def test_panel_scores_like_single_scorers(tmp_path: Path, joint: bool) -> None:
    bundle = make_bundle(tmp_path / "t.gamma", Tiny(joint=joint))
    pictures = [photo(900, 700), photo(300, 250), photo(224, 224)]
    with load_panel(bundle, tuple(FACTORS), threads=1) as panel:
        results = list(panel.results(pictures))
    for picture, result in zip(pictures, results, strict=True):
        for score in result.scores:
            assert score.value == pytest.approx(by_hand(bundle, picture, score.scene), abs=2e-6)


def test_panel_infers_once_for_each_working_size(bundle: Bundle) -> None:
    with load_panel(bundle, tuple(FACTORS), threads=1) as panel:
        (graph,) = panel._graphs
        calls: list[int] = []
        infer = graph.backend.infer
        graph.backend.infer = lambda crops: calls.append(len(crops)) or infer(crops)  # type: ignore[method-assign,func-returns-value]
        for picture, expected in ((photo(900, 700), 3), (photo(300, 250), 2), (photo(224, 224), 1)):
            calls.clear()
            assert len(next(panel.results([picture])).scores) == 3
            assert sum(calls) == expected


def test_a_scene_without_its_own_graph_takes_its_column_of_the_joint_one(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "t.gamma", Tiny(own=False))
    with load(bundle, "underwater-quality", threads=1) as scorer:
        assert scorer.score(photo()).value == pytest.approx(by_hand(bundle, photo(), "underwater-quality"), abs=2e-6)


@pytest.mark.parametrize("pattern", ["*.onnx", "weights-*.bin"])
def test_changed_files_are_refused_before_they_are_parsed(tmp_path: Path, pattern: str) -> None:
    bundle = make_bundle(tmp_path / "t.gamma")
    for path in bundle.folder.glob(pattern):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256"):
        load(bundle)


def test_graph_and_manifest_must_agree(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "t.gamma")
    entries = [g.model_copy(update={"batch": (2, 2, 2)}) for g in bundle.manifest.graphs]
    other = Bundle(bundle.folder, bundle.manifest.model_copy(update={"graphs": entries}), bundle.sha256)
    with pytest.raises(IntegrityError, match="batch 1"):
        load(other)


@pytest.fixture(scope="module")
def cover(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    tiny = Tiny(crop="cover", batch=(1, 4, 8), dark_is_nan=True)
    return make_bundle(tmp_path_factory.mktemp("c") / "t.gamma", tiny)


@pytest.mark.parametrize("backend", NAMES)
def test_cover_scores_each_crop_of_photos_of_any_size(cover: Bundle, backend: str) -> None:
    pictures = [photo(900, 700), photo(300, 250), photo(224, 224)]
    with load_panel(cover, tuple(FACTORS), backend, threads=1) as panel:
        results = list(panel.results(pictures))
    for picture, result in zip(pictures, results, strict=True):
        for score in result.scores:
            rows, columns = (-(-side // 224) for side in score.working_size)
            assert len(score.crop_scores) == rows * columns
            assert score.value == pytest.approx(by_hand(cover, picture, score.scene), abs=2e-6)


def test_one_dark_crop_makes_a_photo_of_cover_an_error_and_no_other(cover: Bundle) -> None:
    half = photo(448, 224).copy()
    half[:, :224] = 0
    with load(cover, threads=1) as scorer:
        results = list(scorer.score_many([photo(), half, photo(seed=1)], on_error="yield"))
    assert [type(result).__name__ for result in results] == ["Score", "NonFiniteError", "Score"]


def test_strict_and_pad_are_the_readers_choice(bundle: Bundle) -> None:
    with load(bundle, small="pad", strict=True, threads=1) as scorer:
        assert scorer.score(photo(400, 223)).flags == ("untrained", "padded")
        assert scorer.panel.contract.frames == "refuse"
    with load(bundle, threads=1) as scorer:
        assert scorer.panel.contract == bundle.contract()
