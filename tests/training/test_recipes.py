"""The recipes of the two checkpoints: tables, bases and configurations; training itself is tested elsewhere."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gamma_export.photos import packaged_photos
from gamma_runtime.errors import InputError
from gamma_runtime.steps import Steps
from gamma_training.checkpoint import build_model, read_checkpoint, write_safetensors
from gamma_training.data import open_data
from gamma_training.data.distortions import KINDS
from gamma_training.dims import GammaDims
from gamma_training.initialise import scratch_state, smaller
from gamma_training.model import Gamma, VisionTower
from gamma_training.scenes import SCENES
from gamma_training.tokens import tokenize
from gamma_training.train import read_config
from tests.training import tiny


def _recipe(name: str, root: Path) -> ModuleType:
    folder = str(root / "training" / "recipes")  # recipes are scripts: they import each other as neighbours
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", root / "training" / "recipes" / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    return _recipe("demo", ROOT)


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return _recipe("study", ROOT)


def test_every_scene_has_weights_of_distortions_that_exist(demo: ModuleType) -> None:
    assert set(demo.WEIGHTS) == set(SCENES)
    assert {kind for weights in demo.WEIGHTS.values() for kind in weights} <= set(KINDS)
    assert len({json.dumps(weights, sort_keys=True) for weights in demo.WEIGHTS.values()}) == len(SCENES) - 1  # plain


def test_a_scene_weighs_the_loss_of_quality(demo: ModuleType) -> None:
    assert demo.target("natural-quality", "haze", 0.7) == pytest.approx(0.7)
    assert demo.target("underwater-quality", "haze", 0.7) == pytest.approx(1 - 1.6 * 0.3)
    assert demo.target("face-quality", "haze", 0.7) == pytest.approx(1 - 0.4 * 0.3)
    assert demo.target("underwater-quality", "haze", 0.1) == 0
    assert demo.target("natural-quality", "", 1.0) == 1


def _source(folder: Path, count: int) -> Path:
    path = folder / "table.csv"
    lines = ["path,mos,split,scene,content,kind,level,metric"]
    for number in range(count):
        split = ("train", "val", "test")[number % 3]
        lines.append(f"p{number}.png,0.5,{split},natural-quality,c{number},haze,3,0.7")
    path.write_text("\n".join(lines))
    return path


def test_val_photos_choose_the_demo_and_packaged_ones_do_not(demo: ModuleType, tmp_path: Path) -> None:
    demo.write_judges(_source(tmp_path, 300), tmp_path / "judges.csv", {"c0", "c1"})
    rows = list(csv.DictReader((tmp_path / "judges.csv").read_text().splitlines()))
    assert {row["path"] for row in rows} == {f"p{number}.png" for number in range(4, 300, 3)}
    assert all((row["split"], row["scene"]) == ("val", "natural-quality") for row in rows)
    assert all(float(row["mos"]) == pytest.approx(0.7) for row in rows)


def test_the_demo_is_taught_by_crops_with_their_own_labels_in_all_scenes(demo: ModuleType, tmp_path: Path) -> None:
    crops = _recipe("crops", ROOT)
    pixels = np.random.default_rng(3).integers(256, size=(400, 8, 8, 3)).astype(np.uint8)
    kind = np.full(400, 1 + demo.KINDS.index("haze"))
    kind[:100] = 0
    left = np.where(kind, 0.7, 1).astype(np.float32)
    labels = crops.Labels(kind, left, left, np.ones((400, 1, 4), np.float16))
    table = demo.write_taught(tmp_path / "taught", crops.Crops(pixels), labels, 5, Steps())
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 400
    assert {row["scene"] for row in rows} == set(SCENES)
    assert {row["split"] for row in rows} == {"train"}
    for row in rows[:20]:
        number = int(row["path"].removesuffix(".png"))
        assert np.array_equal(cv2.imread(str(table.parent / row["path"]))[:, :, ::-1], pixels[number])
    hazy = {row["scene"]: float(row["mos"]) for row in rows if int(row["path"][:6]) >= 100}
    assert hazy["underwater-quality"] == pytest.approx(0.52)
    assert all(float(row["mos"]) == 1 for row in rows if int(row["path"][:6]) < 100)


def test_all_packaged_photos_are_recognised_by_their_originals(demo: ModuleType, tmp_path: Path) -> None:
    listed = json.loads((ROOT / "gamma_export" / "data" / "photos" / "photos.json").read_text())
    for number, entry in enumerate(listed):
        (tmp_path / f"package__{entry['original']}").write_bytes(f"{number}".encode())
    (tmp_path / "package__another.jpg").write_bytes(b"x")
    assert len(demo.packaged(tmp_path)) == len(listed) == 16


def _tower(demo: ModuleType) -> tuple[GammaDims, VisionTower]:
    """A plain tower of the demo's kind, smaller, with random weights."""
    torch.manual_seed(5)
    dims = smaller(demo.small_dims(), width=64, layers=2, first_moae=1)
    dims = dataclasses.replace(dims, vision=dataclasses.replace(dims.vision, first_moae=2))
    model = Gamma(dims)
    model.load_state_dict(scratch_state(dims, 5))
    return dims, model.clip_model.visual


def _normal(dims: GammaDims, crops: Tensor) -> Tensor:
    return Gamma.normalise(SimpleNamespace(dims=dims, score_level=torch.ones(1)), crops)


def test_the_demos_base_knows_the_words_of_the_scenes_and_no_other(demo: ModuleType, tmp_path: Path) -> None:
    dims, visual = _tower(demo)
    dims = dataclasses.replace(dims, vision=dataclasses.replace(dims.vision, first_moae=1))
    state, made, fresh = demo.base_of(visual, dims, 7)
    write_safetensors(tmp_path / "base.safetensors", state, prompts="sdp", dims=made, fresh=fresh)
    read = read_checkpoint(tmp_path / "base.safetensors")
    assert "clip_model.visual.proj" in read.fresh
    assert "clip_model.token_embedding.weight" in read.fresh
    assert not any(".visual." in name and "c_fc" in name for name in read.fresh)
    model = build_model(read)
    with torch.inference_mode():
        text = model.text_features(tokenize(SCENES["plain"].prompts, read.dims.context))
        assert text.isfinite().all()
        with pytest.raises(InputError, match="never learned the word 'product'"):
            model.text_features(tokenize(["bad product photo"], read.dims.context))
        crops = model.normalise(torch.randint(256, (2, 224, 224, 3), dtype=torch.uint8))
        made, learned = model.clip_model.visual.tokens(crops), visual.tokens(crops)
    assert (made - learned).std() < 0.05 * learned.std()  # the noise of the experts
    assert read.state["clip_model.visual.transformer.resblocks.1.mlp.scale"] == pytest.approx(demo.EXPERTS)


def test_experts_take_over_a_share_and_nothing_changes(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "UNLIKE", 0.0)
    dims, visual = _tower(demo)
    dims = dataclasses.replace(dims, vision=dataclasses.replace(dims.vision, first_moae=1))
    state, made, _ = demo.base_of(visual, dims, 7)
    model = Gamma(made)
    model.load_state_dict(state)
    crops = _normal(dims, torch.randint(256, (2, 224, 224, 3), dtype=torch.uint8))
    with torch.inference_mode():
        assert model.clip_model.visual.tokens(crops) == pytest.approx(visual.tokens(crops), abs=1e-4)


def test_what_experts_took_over_comes_back(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "UNLIKE", 0.0)
    dims, visual = _tower(demo)
    mixed = dataclasses.replace(dims, vision=dataclasses.replace(dims.vision, first_moae=1))
    state, _, _ = demo.base_of(visual, mixed, 7)
    back, was = demo.plain_tower(state), visual.state_dict()
    assert set(back) == set(was)
    for name in set(was) - {"proj"}:  # drawn anew by base_of
        assert back[name] == pytest.approx(was[name], abs=1e-6), name


def test_varied_crops_are_the_same_photo_in_other_tones(demo: ModuleType) -> None:
    crops = _recipe("crops", ROOT)
    clean = cv2.resize(cv2.imread(str(packaged_photos()[1])), (64, 64))
    made = [crops._varied(clean, np.random.default_rng(seed)) for seed in range(40)]
    assert (crops._varied(clean, np.random.default_rng(7)) == made[7]).all()
    assert all(one.dtype == np.uint8 and one.shape == clean.shape for one in made)
    assert len({one.tobytes() for one in made}) == 40
    alike = [np.corrcoef(one.ravel(), clean.ravel())[0, 1] for one in made]
    assert min(alike) > 0.8
    assert np.std([one.mean() for one in made]) > 3  # grey levels


def test_further_photos_only_teach(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, names in ("photos", range(12)), ("more", range(10, 14)):  # two of the further ones are listed already
        (tmp_path / folder).mkdir()
        for name in names:
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), np.full((40, 40, 3), name, np.uint8))
    monkeypatch.setattr(demo, "packaged", lambda photos: set())
    options = demo.DemoOptions(photos=tmp_path / "photos", more=tmp_path / "more")
    without = demo.learned_from(dataclasses.replace(options, more=None), 3)
    assert 0 < len(without) < 12
    learned = demo.learned_from(options, 3)
    assert {path.name for path in set(learned.values()) - set(without.values())} == {"12.png", "13.png"}


def test_all_patches_in_any_order_are_the_tower_itself(demo: ModuleType) -> None:
    pretext = _recipe("pretext", ROOT)
    dims, visual = _tower(demo)
    crops = torch.randint(256, (3, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        some, places = pretext.some_tokens(visual, dims, crops, 196, torch.Generator().manual_seed(1))
        whole = visual.ln_post(visual.tokens(_normal(dims, crops)))
        quarter, _ = pretext.some_tokens(visual, dims, crops, 49, torch.Generator().manual_seed(1))
    assert some[:, 0] == pytest.approx(whole[:, 0], abs=1e-5)
    assert some[torch.arange(3)[:, None], 1 + places.argsort(1)] == pytest.approx(whole[:, 1:], abs=1e-5)
    assert quarter.shape == (3, 50, 64)
    assert quarter[:, 0] != pytest.approx(whole[:, 0], abs=1e-5)


def test_the_start_answers_to_detail_with_its_strength(demo: ModuleType) -> None:
    pretext = _recipe("pretext", ROOT)
    dims, visual = _tower(demo)
    noise = np.random.default_rng(2).normal(size=(8, 224, 224, 3))
    clean = np.clip(128 + 30 * noise, 0, 255).astype(np.uint8)
    pretext.detail_start(visual, dims, clean)

    def spread(strength: float) -> Tensor:
        crops = torch.from_numpy(np.clip(128 + strength * noise, 0, 255).astype(np.uint8))
        return visual.embed(_normal(dims, crops))[:, 1:, : -pretext.CONSTANTS].std((0, 1)).detach()

    with torch.inference_mode():
        answers = visual.conv1(_normal(dims, torch.from_numpy(clean)))[:, : -pretext.CONSTANTS].std((0, 2, 3))
    assert answers.numpy() == pytest.approx(np.ones(48), rel=1e-3)
    assert (spread(30) / spread(15)).median().item() == pytest.approx(2, rel=0.25)  # a LayerNorm alone would give 1


def test_a_tower_learns_kinds_and_levels_and_goes_on_where_it_stopped(demo: ModuleType, tmp_path: Path) -> None:
    pretext = _recipe("pretext", ROOT)
    dims, visual = _tower(demo)
    random = np.random.default_rng(4)
    kind = np.arange(64) % 2
    level = (np.arange(64) // 2 % 5 / 4).astype(np.float32)
    noise = random.normal(size=(64, 224, 224, 3)) * (kind * (10 + 60 * level))[:, None, None, None]
    crops = np.clip(128 + noise, 0, 255).astype(np.uint8)

    def views(index: int, _: int) -> NDArray[np.uint8]:
        return crops[index]

    views.crops = 1  # type: ignore[attr-defined]
    pretext.detail_start(visual, dims, crops[kind == 1])
    left = (1 - kind * level).astype(np.float32)
    parts = np.repeat(left[:, None], 196, axis=1)[:, :, None].astype(np.float16)
    labels = _recipe("crops", ROOT).Labels(kind, level, left, parts)
    how = pretext.Pretext(steps=40, batch=16, keep=16, lr=3e-3, warmup=5, save_every=20)
    torch.manual_seed(6)
    start = {name: value.clone() for name, value in visual.state_dict().items()}
    losses = pretext.pretrain(visual, dims, views, labels, how, tmp_path / "state.pt", Steps())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])

    class StoppedError(Exception):
        pass

    def until(index: int, view: int) -> NDArray[np.uint8]:
        seen.append(index)
        if len(seen) > 25 * 16:
            raise StoppedError
        return views(index, view)

    seen: list[int] = []
    until.crops = 1  # type: ignore[attr-defined]
    torch.manual_seed(6)
    visual.load_state_dict(start)
    with pytest.raises(StoppedError):
        pretext.pretrain(visual, dims, until, labels, how, tmp_path / "again.pt", Steps())
    torch.manual_seed(8)
    assert pretext.pretrain(visual, dims, views, labels, how, tmp_path / "again.pt", Steps()) == losses


def test_the_demos_configuration_is_one(demo: ModuleType, tmp_path: Path) -> None:
    for name in ("taught/table.csv", "set/judges.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("path,mos,split,scene\n")
    options = demo.DemoOptions(photos=tmp_path, work=tmp_path, threads=1)
    head, config = map(read_config, demo.write_configs(options, tmp_path / "base.safetensors"))
    assert (head.freeze_blocks, head.base) == (demo.small_dims().vision.layers, tmp_path / "base.safetensors")
    assert (config.freeze_blocks, config.base) == (None, tmp_path / "head" / "best.safetensors")
    assert config.validation == head.validation == 0


def test_the_studys_configuration_is_one(study: ModuleType, tmp_path: Path) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    for name in ("biq2021", "avt_ai"):
        (data / name).mkdir(parents=True)
    (data / "biq2021" / "mos.csv").write_text("path,mos,split\na.jpg,0.5,train\nb.jpg,0.6,test\n")
    rows = "".join(f"{n},2.5,x__p{n}.jpg\n" for n in range(50))
    (data / "avt_ai" / "mos.csv").write_text(f"image_key,mos_quality,file\n{rows}")
    for path in [data / "biq2021" / "a.jpg", data / "biq2021" / "b.jpg"]:
        path.write_bytes(b"x")
    for number in range(50):
        (data / "avt_ai" / f"x__p{number}.jpg").write_bytes(b"x")
    work.mkdir()
    options = study.StudyOptions(data=data, work=work, epochs=2)
    head, tower, config = map(read_config, study.write_configs(options))
    assert (head.freeze_blocks, head.base, head.cache_folder) == (12, work / "plain.safetensors", None)
    assert (tower.epochs, tower.base) == (2, work / "head" / "best.safetensors")
    assert (config.out, config.base) == (work / "run", work / "experts.safetensors")
    assert tower.cache_folder == config.cache_folder == work / "views"
    sets = [open_data(spec) for spec in config.data]
    assert [one.name for one in sets] == ["biq2021", "avt_ai"]
    assert {sample.scene for sample in sets[1].samples} == {"aigc-quality"}
    assert 3 <= len(sets[1].split("test")) <= 20
    assert sets[1].samples[0].target == pytest.approx((2.5 - 1) / 4)


def test_the_studys_report_says_what_was_really_trained(study: ModuleType, tmp_path: Path) -> None:
    numbers = {"steps": 9, "seconds": 8.5, "validation": None, "test": {"biq2021": {"srcc": 0.5}}}
    for epochs, (name, recipe) in enumerate(study.PARTS.items(), 5):
        (tmp_path / name).mkdir()
        config = study.BOTH | recipe | {"epochs": epochs, "out": f"{tmp_path}/{name}", "base": f"{tmp_path}/x"}
        report = numbers | {"config": config, "epochs": epochs, "photos": {"train": 3}, "experts": [1]}
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    (tmp_path / "run" / "best.safetensors").write_bytes(b"x")
    (tmp_path / "ridge.json").write_text('{"srcc": 0.7}')
    study.write_report(tmp_path, tmp_path / "base.safetensors", None, 77, Steps())
    text = (tmp_path / "study.json").read_text()
    made = json.loads(text)
    assert [part["recipe"]["epochs"] for part in made["parts"].values()] == [5, 6, 7]
    assert (made["seconds"], made["ridge"], made["experts"]) == (77, {"srcc": 0.7}, [1])
    assert str(tmp_path) not in text


def test_experts_are_taken_away_and_given_back(tmp_path: Path) -> None:
    experts = _recipe("experts", ROOT)
    first, plain, again = (tmp_path / f"{name}.safetensors" for name in ("first", "plain", "again"))
    dims = tiny.dims(tiny.tower(64, 2, 1), tiny.tower(64, 2, 1))
    write_safetensors(first, tiny.state(dims), prompts="sdp", dims=dims, fresh=["adapter.fc.0.weight"])
    experts.without_experts(first, plain)
    trained, crops = read_checkpoint(plain), torch.randint(256, (2, 224, 224, 3), dtype=torch.uint8)
    assert (trained.dims.vision.first_moae, trained.dims.vision.experts) == (2, 0)
    assert trained.dims.text == dims.text
    prompts, scores = tokenize(SCENES["plain"].prompts, dims.context), {}
    for unlike in (0.0, 0.5):
        experts.with_experts(plain, first, again, share=0.3, unlike=unlike, seed=1)
        read = read_checkpoint(again)
        for name, source in (("plain", trained), (str(unlike), read)):
            with torch.inference_mode():
                model = build_model(source)
                scores[name] = model(crops, model.text_features(prompts))
        assert read.dims == dims
        assert read.state["clip_model.visual.transformer.resblocks.1.mlp.scale"] == pytest.approx(0.3)
        added = {"gating.layer1.weight", "gating.layer1.bias", "scale"}
        block = "clip_model.visual.transformer.resblocks.1.mlp."
        assert read.fresh == {"adapter.fc.0.weight", *(f"{block}{name}" for name in added)}
        text = [name for name in read.state if ".visual." not in name]
        assert all(torch.equal(read.state[name], tiny.state(dims)[name]) for name in text)
    assert scores["0.0"] == pytest.approx(scores["plain"], abs=1e-5)
    assert scores["0.5"] != pytest.approx(scores["plain"], abs=1e-5)


def test_ridge_finds_what_is_linear_and_shrinks_what_is_noise() -> None:
    ridge = _recipe("ridge", ROOT)
    random = np.random.default_rng(3)
    features = random.normal(size=(300, 40)) * random.uniform(0.1, 10, 40) + 5
    targets = (features - 5) @ np.eye(40)[0] * 0.3 + 2
    weights, constant, penalty = ridge.fit_ridge(features, targets)
    assert features @ weights + constant == pytest.approx(targets, abs=1e-2)
    noise = random.normal(size=300)
    _, _, larger = ridge.fit_ridge(features, noise)
    assert larger > penalty
    weights, constant, _ = ridge.fit_ridge(features, noise)
    unseen = random.normal(size=(300, 40)) * 5 + 5
    assert abs(np.corrcoef(unseen @ weights + constant, random.normal(size=300))[0, 1]) < 0.2  # nothing to be found


def test_crops_have_labels_of_their_own_pixels(tmp_path: Path) -> None:
    crops = _recipe("crops", ROOT)
    photos = {str(number): path for number, path in enumerate(packaged_photos()[:2])}
    views, labels = crops.draw_crops(photos, ("gaussian-blur", "impulse-noise"), 8, 3, tmp_path, Steps())
    assert len(labels.kind) == 2 * len(crops.SIZES) * 8
    assert views(5, 0).shape == (224, 224, 3)
    assert set(labels.kind) == {0, 1, 2}
    clean = labels.kind == 0
    assert (labels.level[clean] == 0).all()
    assert (labels.quality[clean] == 1).all()
    assert set(np.rint(labels.level[~clean] * 5)) == {1, 2, 3, 4, 5}
    strong, slight = (labels.quality[~clean & (labels.level == level)].mean() for level in (1, np.float32(0.2)))
    assert strong < slight < 1
    alone = [(cv2.absdiff(views(n, 0), cv2.medianBlur(views(n, 0), 3)) > 60).mean() for n in range(len(clean))]
    assert np.corrcoef(alone, (labels.kind == 2) * labels.level)[0, 1] > 0.8  # the pixels are what the label says
    assert labels.parts[clean] == pytest.approx(1, abs=2e-3)
    assert np.corrcoef(labels.parts.mean((1, 2)), labels.quality)[0, 1] > 0.9
    again, same = crops.draw_crops(photos, (), 0, 0, tmp_path, Steps())
    assert (same.quality == labels.quality).all()
    assert np.array_equal(again(7, 0), views(7, 0))
    both, joined = again + views, same + labels
    assert len(joined.kind) == len(joined.parts) == 2 * len(clean)
    assert np.array_equal(both(len(clean) + 7, 0), views(7, 0))
    with pytest.raises(IndexError):
        both(2 * len(clean), 0)
