"""Photos become scores as the contract says, scores become rows: brightness, ranks and levels worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gamma_runtime.contract import CropPolicy
from gamma_runtime.crops import positions, reduced
from gamma_runtime.errors import InputError, UsageError
from gamma_training.data.distortions import Distortion
from gamma_training.data.samples import Sample
from gamma_training.evaluate import PhotoScore, Protocol, score_samples
from gamma_training.evaluate_report import markdown, scores_csv, text
from gamma_training.evaluate_rows import compare, evaluation_of
from gamma_training.evaluate_run import Report
from gamma_training.judges import BundleJudge, Judge, JudgeOptions, TorchJudge, open_judge
from tests import tiny_export
from tests.runtime.images import encode, photo
from tests.runtime.tiny_bundle import FACTORS, Tiny, make_bundle

ONE = JudgeOptions(threads=1)
NATURAL, FACE = "natural-quality", "face-quality"


def sample(path: Path | str, target: float = 0.5, **changes: object) -> Sample:
    plain = Sample(Path(path), 10 * target, target, NATURAL, "test", "mine", Path(path).name)
    return dataclasses.replace(plain, **changes)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, np.ndarray]]:
    """Five photos of different sizes, brightness and places of light."""
    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for index in range(5):
        pixels = (photo(600 + 40 * index, 420 + 30 * index, seed=index) * (0.3 + 0.15 * index)).astype(np.uint8)
        path = folder / f"{index}.png"
        path.write_bytes(encode(pixels, "PNG"))
        made.append((path, pixels))
    return made


@pytest.fixture
def bright(tmp_path: Path) -> Judge:
    """A bundle that scores brightness; five crops, natural photos at 384 pixels, faces at 512."""
    with BundleJudge(make_bundle(tmp_path / "bright.gamma", Tiny(batch=(1, 2, 4))), (NATURAL, FACE), ONE) as judge:
        yield judge


def brightness(pixels: np.ndarray, side: int | None, policy: str, factor: float = 1.0) -> tuple[float, float]:
    """Mean and deviation of the crops' brightness, from the pixels alone."""
    height, width = pixels.shape[:2]
    if side is not None and min(height, width) > side:
        scale = side / min(height, width)
        pixels = reduced(pixels, (math.floor(width * scale + 0.5), math.floor(height * scale + 0.5)))
    height, width = pixels.shape[:2]
    places = positions(CropPolicy.parse(policy), width, height)
    values = [pixels[y : y + 224, x : x + 224].mean() / 255 * factor for y, x in places]
    return float(np.mean(values)), float(np.std(values))


@pytest.mark.parametrize(
    ("how", "side", "policy"),
    [
        ({}, 384, "five"),  # the bundle's contract
        ({"crops": "random10:seed0"}, 384, "random10:seed0"),  # the authors' protocol
        ({"crops": "cover"}, 384, "cover"),
        ({"native": True}, None, "five"),
        ({"native": True, "crops": "grid2x3"}, None, "grid2x3"),
        ({"decode_threads": 0, "batch": 1}, 384, "five"),
        ({"decode_threads": 3, "batch": 2}, 384, "five"),
    ],
)
def test_a_bundle_scores_under_its_contract(
    pictures: list[tuple[Path, np.ndarray]], bright: Judge, how: dict[str, object], side: int | None, policy: str
) -> None:
    samples = [sample(path) for path, _ in pictures]
    scored = score_samples([bright], samples, Protocol(**how))
    for found, (path, pixels) in zip(scored.by_judge[0], pictures, strict=True):
        mean, deviation = brightness(pixels, side, policy)
        assert found.sample.path == path
        assert found.crops == len(positions(CropPolicy.parse(policy), *_size(pixels, side)))
        assert (found.score, found.crop_std) == pytest.approx((mean, deviation), abs=1e-5)
        assert deviation > 1e-3


def _size(pixels: np.ndarray, side: int | None) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    if side is None:
        return width, height
    return math.floor(width * side / min(height, width) + 0.5), math.floor(height * side / min(height, width) + 0.5)


def test_a_checkpoints_photos_are_reduced_by_their_sets_rule_then_their_scenes(
    pictures: list[tuple[Path, np.ndarray]], bright: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a judge of brightness that has no contract of its own."""
    monkeypatch.setattr(type(bright), "fixed", False)
    path, pixels = pictures[4]
    rules = [(None, NATURAL, 384), (None, FACE, 512), (300, NATURAL, 300), (450, NATURAL, 450)]
    samples = [sample(path, short_side=side, scene=scene) for side, scene, _ in rules]
    scored = score_samples([bright], samples, Protocol(crops="centre"))
    for found, (_, scene, side) in zip(scored.by_judge[0], rules, strict=True):
        assert found.score == pytest.approx(brightness(pixels, side, "centre", FACTORS[scene])[0], abs=1e-5)
    native = score_samples([bright], samples, Protocol(crops="centre", native=True)).by_judge[0]
    for found, (side, scene, _) in zip(native, rules, strict=True):  # as the authors: their sets' rules, and no other
        assert found.score == pytest.approx(brightness(pixels, side, "centre", FACTORS[scene])[0], abs=1e-5)


def test_a_checkpoint_beside_a_bundle_takes_its_contract(pictures: list[tuple[Path, np.ndarray]]) -> None:
    """The bundle cuts one centre crop; the checkpoint's own five would give other scores."""
    samples = [sample(path) for path, _ in pictures]
    checkpoint = open_judge(tiny_export.checkpoint(), (NATURAL,), ONE)
    with open_judge(tiny_export.exported(precision="fp32"), (NATURAL,), ONE) as bundle:
        both = score_samples([checkpoint, bundle], samples, Protocol()).by_judge
    alone = score_samples([checkpoint], samples, Protocol()).by_judge[0]
    for one, other, own in zip(*both, alone, strict=True):
        assert (one.crops, other.crops, own.crops) == (1, 1, 5)
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert abs(one.score - own.score) > 1e-5


def test_a_bundle_of_the_naive_prompts_beside_a_checkpoint_with_scenes(
    pictures: list[tuple[Path, np.ndarray]], bright: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each scores in the scene that it has; the crops are the bundle's."""
    checkpoint = open_judge(tiny_export.checkpoint(), (FACE,), ONE)
    monkeypatch.setattr(bright, "scenes", ("plain",))
    monkeypatch.setattr(bright, "contract", dataclasses.replace(bright.contract, short_sides={"plain": 300}))
    monkeypatch.setattr(bright, "score", lambda crops, scene: crops.mean(axis=(1, 2, 3)) / 255)
    path, pixels = pictures[3]
    both = score_samples([checkpoint, bright], [sample(path, scene=FACE)], Protocol()).by_judge
    assert both[1][0].score == pytest.approx(brightness(pixels, 300, "five")[0], abs=1e-5)
    assert both[0][0].crops == 5


def test_scenes_mixed_in_a_batch_score_like_one_photo_alone(pictures: list[tuple[Path, np.ndarray]]) -> None:
    """The authors' evaluation gives crops other photos' prompts there (model.md 7.12)."""
    scenes = [NATURAL, FACE, "underwater-quality", NATURAL, FACE]
    samples = [sample(path, scene=scene) for (path, _), scene in zip(pictures, scenes, strict=True)]
    judge = open_judge(tiny_export.checkpoint(), scenes, ONE)
    together = score_samples([judge], samples, Protocol(batch=5)).by_judge[0]
    wrong = score_samples([judge], [dataclasses.replace(s, scene=FACE) for s in samples], Protocol()).by_judge[0]
    for index, one in enumerate(samples):
        alone = score_samples([judge], [one], Protocol(batch=1)).by_judge[0][0]
        assert together[index].sample == one
        assert together[index].score == pytest.approx(alone.score, abs=1e-6)
        assert (abs(wrong[index].score - alone.score) > 1e-5) == (one.scene != FACE)


def test_an_unreadable_photo_stops_or_is_listed(
    pictures: list[tuple[Path, np.ndarray]], bright: Judge, tmp_path: Path
) -> None:
    cut, small = tmp_path / "cut.png", tmp_path / "small.png"
    cut.write_bytes(pictures[0][0].read_bytes()[:5000])
    small.write_bytes(encode(photo(200, 300), "PNG"))
    bad = [cut, small, tmp_path / "missing.jpg"]
    good = [path for path, _ in pictures]
    order = [good[0], bad[0], good[1], good[2], bad[1], bad[2], good[3]]
    for path in bad:
        with pytest.raises(InputError, match=path.name) as caught:
            score_samples([bright], [sample(good[0]), sample(path)], Protocol())
        assert (caught.value.exit_code, caught.value.hint is not None) == (3, True)
    scored = score_samples([bright], list(map(sample, order)), Protocol(skip_bad=True, batch=2))
    assert [p.sample.path for p in scored.by_judge[0]] == [p for p in order if p in good]
    assert [s.sample.path for s in scored.skipped] == [p for p in order if p in bad]
    assert "leaves no room for a crop" in scored.skipped[1].reason
    for found in scored.by_judge[0]:
        pixels = next(pixels for path, pixels in pictures if path == found.sample.path)
        assert found.score == pytest.approx(brightness(pixels, 384, "five")[0], abs=1e-5)
    enlarged = score_samples([bright], [sample(small)], Protocol(small="resize"))
    assert enlarged.by_judge[0][0].score > 0
    with pytest.raises(InputError, match="none of 3 photos"):
        score_samples([bright], list(map(sample, bad)), Protocol(skip_bad=True))
    with pytest.raises(InputError, match="no photos"):
        score_samples([bright], [], Protocol())


def test_a_score_that_is_not_finite_names_its_photos(pictures: list[tuple[Path, np.ndarray]], tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    black.write_bytes(encode(np.zeros((300, 300, 3), np.uint8), "PNG"))
    bundle = make_bundle(tmp_path / "dark.gamma", Tiny(dark_is_nan=True))
    with BundleJudge(bundle, (), ONE) as judge, pytest.raises(InputError, match=r"4\.png to .*black\.png") as caught:
        score_samples([judge], [sample(pictures[4][0]), sample(black)], Protocol(skip_bad=True))
    assert caught.value.exit_code == 7  # a broken model, not a bad photo: never skipped


def test_protocols_that_cannot_work_are_refused() -> None:
    for change in ({"batch": 0}, {"small": "stretch"}, {"crops": "six"}, {"crops": "frame640x480:five"}):
        with pytest.raises(UsageError):
            Protocol(**change)


# Rows


def scored(scores: Sequence[float], targets: Sequence[float], **changes: object) -> list[PhotoScore]:
    pairs = zip(scores, targets, strict=True)
    return [PhotoScore(sample(f"{i}.jpg", t, **changes), s, 0.01, 5) for i, (s, t) in enumerate(pairs)]


def random_set(name: str, count: int, noise: float, seed: int, **changes: object) -> list[PhotoScore]:
    random = np.random.default_rng(seed)
    targets = random.random(count)
    return scored((targets + noise * random.random(count)).tolist(), targets.tolist(), dataset=name, **changes)


def test_rows_are_sets_and_scenes_and_the_mean_over_sets() -> None:
    """No correlation is ever taken over photos of two sets: their scales differ."""
    first = random_set("first", 40, 0.3, 1)
    second = [dataclasses.replace(p, score=p.score / 10) for p in random_set("second", 20, 0.8, 2)]
    faces = random_set("faces", 30, 0.1, 3, scene=FACE)
    mixed = [*random_set("mixed", 12, 0.5, 4), *random_set("mixed", 10, 0.5, 5, scene=FACE)]
    found = evaluation_of([*first, *second, *faces, *mixed], draws=200)

    def srcc(photos: list[PhotoScore]) -> float:
        return float(stats.spearmanr([p.score for p in photos], [p.sample.target for p in photos]).statistic)

    sets = {row.name: row for row in found.sets}
    assert {name: row.photos for name, row in sets.items()} == {"first": 40, "second": 20, "faces": 30, "mixed": 22}
    for name, photos in (("first", first), ("second", second), ("faces", faces), ("mixed", mixed)):
        assert sets[name].values["srcc"] == pytest.approx(srcc(photos))
        low, high = sets[name].intervals["srcc"]
        assert low < srcc(photos) < high
    assert found.mean.values["srcc"] == pytest.approx(np.mean([row.values["srcc"] for row in found.sets]))
    low, high = found.mean.intervals["srcc"]
    assert low < found.mean.values["srcc"] < high
    widths = [float(np.ptp(row.intervals["srcc"])) for row in found.sets]
    assert high - low == pytest.approx(math.hypot(*widths) / 4, rel=0.25)  # sets are drawn independently
    scenes = {row.name: row for row in found.scenes}
    assert scenes[NATURAL].values["srcc"] == pytest.approx(np.mean([srcc(p) for p in (first, second, mixed[:12])]))
    assert scenes[FACE].values["srcc"] == pytest.approx(np.mean([srcc(faces), srcc(mixed[12:])]))
    assert (scenes[NATURAL].photos, scenes[FACE].photos) == (72, 40)


def test_a_set_without_correlation_is_said_and_left_out_of_the_mean() -> None:
    whole = random_set("whole", 20, 0.3, 1)
    found = evaluation_of([*whole, *scored([0.5, 0.6], [0.1, 0.2], dataset="two")], draws=50)
    assert found.sets[1].reason == "2 photos; a correlation needs 3"
    assert found.mean.values["srcc"] == found.sets[0].values["srcc"]
    assert found.mean.reason == "of 1 of 2 sets (two: 2 photos; a correlation needs 3)"
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["sets"][1]["srcc"] is None
    assert plain["sets"][1]["interval"]["srcc"] == [None, None]
    assert "two: 2 photos" in text(found, [], [])
    nothing = evaluation_of(scored([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]), draws=50)
    assert math.isnan(nothing.mean.values["srcc"])
    assert "all 3 predictions are equal" in markdown(nothing, [], [])


def distorted(kind: str, by_photo: dict[str, Sequence[float]]) -> list[PhotoScore]:
    """Scores by level from 1 on; the label falls with the level."""
    return [
        PhotoScore(
            sample(f"{name}.jpg", 1 - level / 5, content=name, distortion=Distortion(kind, level)), score, 0.0, 5
        )
        for name, scores in by_photo.items()
        for level, score in enumerate(scores, 1)
    ]


def test_distortions_have_a_row_each_and_count_the_monotone_photos() -> None:
    falling, rising = [0.9, 0.8, 0.7, 0.6, 0.5], [0.5, 0.6, 0.7, 0.8, 0.9]
    dented, flat, short = [0.9, 0.8, 0.85, 0.6, 0.5], [0.9, 0.8, 0.8, 0.6, 0.5], [0.9, 0.1]
    photos = [
        *distorted("jpeg", {"a": falling, "b": dented, "c": flat, "d": short}),
        *distorted("gaussian-blur", {"a": rising, "b": rising}),
        PhotoScore(sample("a.jpg", 1.0, content="a"), 0.95, 0.0, 5),  # the clean photo is of no kind
    ]
    found = evaluation_of(photos, draws=50)
    jpeg, blur = found.distortions
    assert (jpeg.row.name, jpeg.row.photos, jpeg.levels) == ("jpeg", 17, (1, 2, 3, 4, 5))
    assert (jpeg.monotone, jpeg.contents) == (1, 3)  # d lacks levels
    assert jpeg.means == pytest.approx([0.9, 0.8, (0.7 + 0.85 + 0.8) / 3, 0.6, 0.5])
    assert jpeg.mean_falls
    assert (blur.monotone, blur.contents, blur.mean_falls) == (0, 2, False)
    assert blur.row.values["srcc"] == pytest.approx(-1.0)
    assert found.sets[0].photos == 28
    said = text(found, [], [])
    assert "1 of 3" in said
    assert "DOES NOT FALL" in said


def test_a_kind_in_two_sets_has_two_rows() -> None:
    """Each set's scores are on a scale of their own; distortions in the file count as those made on the fly."""
    falling = [0.9, 0.8, 0.7, 0.6, 0.5]
    flying = distorted("jpeg", {"a": falling})
    filed = [
        dataclasses.replace(
            photo,
            score=0.1 * photo.score,
            sample=dataclasses.replace(photo.sample, dataset="other", distortion=None, baked=photo.sample.distortion),
        )
        for photo in flying
    ]
    rows = evaluation_of([*flying, *filed], draws=50).distortions
    assert [(row.row.name, row.row.photos, row.monotone) for row in rows] == [
        (f"{flying[0].sample.dataset}: jpeg", 5, 1),
        ("other: jpeg", 5, 1),
    ]
    [alone] = evaluation_of(filed, draws=50).distortions
    assert alone.row.name == "jpeg"


def test_copies_of_one_photo_widen_the_interval() -> None:
    """Sixty copies of six photos are no sixty photos."""
    alone = random_set("set", 60, 0.6, 7)
    grouped = [
        dataclasses.replace(p, sample=dataclasses.replace(p.sample, content=f"{i % 6}")) for i, p in enumerate(alone)
    ]
    biased = [dataclasses.replace(p, score=p.score + 0.3 * (i % 6)) for i, p in enumerate(grouped)]
    apart = [dataclasses.replace(p, sample=dataclasses.replace(p.sample, content=str(i))) for i, p in enumerate(biased)]
    wide, narrow = (np.ptp(evaluation_of(some).sets[0].intervals["rmse"]) for some in (biased, apart))
    assert wide > 1.3 * narrow


def test_comparison_by_hand_and_its_control() -> None:
    first = random_set("set", 50, 0.4, 1)
    same = compare(first, first)[0]
    assert (same.max_abs, same.difference, same.interval) == (0.0, 0.0, (0.0, 0.0))
    worse = [dataclasses.replace(p, score=p.score + 0.5 * (i % 2)) for i, p in enumerate(first)]
    row = compare(first, worse)[0]
    wanted = [
        stats.spearmanr([p.score for p in some], [p.sample.target for p in some]).statistic for some in (first, worse)
    ]
    assert row.srcc == pytest.approx(wanted)
    assert row.difference == pytest.approx(wanted[0] - wanted[1])
    wanted = [
        stats.pearsonr([p.score for p in some], [p.sample.target for p in some]).statistic for some in (first, worse)
    ]
    assert row.plcc == pytest.approx(wanted)
    assert row.plcc_difference == pytest.approx(wanted[0] - wanted[1])
    assert row.plcc_interval[0] < row.plcc_difference < row.plcc_interval[1]
    assert row.plcc_interval != row.interval
    assert (row.max_abs, row.mean_abs) == pytest.approx((0.5, 0.25))
    assert 0 < row.interval[0] < row.difference < row.interval[1]
    assert json.dumps(compare(first[:2], worse[:2])[0].to_json(), allow_nan=False)


def test_a_source_that_is_dead_on_one_set_fails_the_gate() -> None:
    one, other = random_set("one", 20, 0.4, 1), random_set("other", 20, 0.4, 2)
    dead = [dataclasses.replace(photo, score=0.5) for photo in other]
    compared = tuple(compare([*one, *other], [*one, *dead], draws=20))
    nothing = dict.fromkeys(("sources", "labels", "protocol", "data", "scored", "found"), ())
    report = Report(**nothing, compared=compared, gates={"srcc": 0.001, "score": None})  # type: ignore[arg-type]
    assert report.faults == ("other: only one of the two has an SRCC",)
    both = tuple(compare([*one, *dead], [*one, *dead], draws=20))
    assert dataclasses.replace(report, compared=both).faults == ()


def test_a_table_of_scores_holds_every_photo_once() -> None:
    photos = [*scored([0.25], [0.75]), *distorted("jpeg", {"a": [0.5]})]
    strange = sample("line\nbreak,\x1b[31m.jpg")
    lines = scores_csv(photos, [dataclasses.replace(_skipped(), sample=strange)]).splitlines()
    assert lines == [
        "path,dataset,scene,distortion,level,mos,target,score,crop_std,error,skipped",
        "0.jpg,mine,natural-quality,,,7.5,0.750000,0.25,0.010000,-0.500000,",
        "a.jpg,mine,natural-quality,jpeg,1,8.0,0.800000,0.5,0.000000,-0.300000,",
        '"line\\nbreak,\\x1b[31m.jpg",mine,natural-quality,,,5.0,0.500000,,,,damaged',
    ]


def _skipped() -> object:
    from gamma_training.evaluate import Skipped

    return Skipped(sample("x.jpg"), "damaged")


def test_other_weights_have_another_srcc(pictures: list[tuple[Path, np.ndarray]]) -> None:
    """The control of every comparison: an evaluation that did not look at the weights would not see it."""
    from gamma_training.checkpoint import build_model, read_checkpoint
    from gamma_training.scenes import SCENES

    samples = [sample(path, index / 5) for index, (path, _) in enumerate(pictures)]
    model = build_model(read_checkpoint(tiny_export.checkpoint()))
    before = score_samples([TorchJudge(model, [SCENES[NATURAL]], ONE)], samples, Protocol()).by_judge[0]
    model.score_level.copy_(model.score_level.flip(0))  # bad is perfect
    after = score_samples([TorchJudge(model, [SCENES[NATURAL]], ONE)], samples, Protocol()).by_judge[0]
    [row] = compare(before, after, draws=50)
    assert abs(row.difference) > 0.001
    assert row.srcc[0] == pytest.approx(-row.srcc[1])
