"""Real TensorRT-RTX builds of tiny graphs: what is chosen, what is written, what is recorded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from gamma_runtime.bundle import ENGINES, MANIFEST, Bundle, read_engines
from gamma_runtime.engines import BuildProgress, EngineOptions, build_engines, parse_capabilities, select_graphs
from gamma_runtime.engines.store import runtime_cache
from gamma_runtime.errors import InputError, UsageError
from tests.runtime.engine_bundle import SCENES, make_bundle, needs_rtx, run, snapshot

pytestmark = needs_rtx
RTX = EngineOptions(flavour="tensorrt-rtx")


def _rtx(capabilities: str | None = None, scene: str | None = None, engine_dir: Path | None = None) -> EngineOptions:
    return EngineOptions(
        flavour="tensorrt-rtx",
        compute_capabilities=parse_capabilities(capabilities),
        scene=scene,
        engine_dir=engine_dir,
    )


def test_one_plan_for_each_precision_of_the_joint_graph(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma", precisions=("fp32", "fp16"))
    manifest = (bundle.folder / MANIFEST).read_bytes()
    entries = build_engines(bundle, _rtx("8.9,8.6"))
    assert [(e.graph, e.precision) for e in entries] == [("joint", "fp32"), ("joint", "fp16")]
    assert read_engines(bundle.folder).engines == entries
    assert (bundle.folder / MANIFEST).read_bytes() == manifest
    hashes = {f.name: f.sha256 for f in bundle.manifest.files}
    for entry in entries:
        plan = (bundle.folder / entry.file).read_bytes()
        digest = hashlib.sha256(plan).hexdigest()
        assert (entry.size, entry.sha256) == (len(plan), digest)
        short = ".".join(entry.version.split(".")[:3])
        assert entry.file == f"joint-{entry.precision}-trtrtx{short}-sm86_sm89-{digest[:8]}.plan"
        assert entry.compute_capabilities == ["8.6", "8.9"]
        graph = next(g for g in bundle.manifest.graphs if (g.name, g.precision) == ("joint", entry.precision))
        assert (entry.onnx_sha256, entry.weights_sha256) == (hashes[graph.onnx], hashes[graph.weights])
        assert entry.seconds > 0
    fp32, fp16 = entries
    assert fp32.size - fp16.size > 500_000  # the product's weights are 1.2 MB in fp32, half of it in fp16


def test_build_log_is_kept_and_names_the_configuration(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (entry,) = build_engines(bundle, RTX)
    log = (bundle.folder / entry.log).read_text()
    assert "STRONGLY_TYPED" in log
    assert "ProfilingVerbosity.DETAILED" in log
    assert "TF32" not in log.split("Flags")[1].splitlines()[0]


def test_ranged_batch_becomes_the_profile(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma", batch=(1, 3, 5))
    (entry,) = build_engines(bundle, RTX)
    assert entry.batch == (1, 3, 5)
    log = (bundle.folder / entry.log).read_text()
    assert "min=(1, 1, 224, 224, 3), opt=(3, 1, 224, 224, 3), max=(5, 1, 224, 224, 3)" in log


def test_workspace_limit_reaches_the_builder(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (entry,) = build_engines(bundle, EngineOptions(flavour="tensorrt-rtx", workspace_mib=333))
    assert "WORKSPACE: 333.00 MiB" in (bundle.folder / entry.log).read_text()
    assert entry.options["workspace_mib"] == 333


def test_no_compute_capability_is_recorded_as_ampere_and_newer(tmp_path: Path) -> None:
    (entry,) = build_engines(make_bundle(tmp_path / "b.gamma"), RTX)
    assert entry.compute_capabilities == ["8.0+"]
    assert "-sm80up-" in entry.file
    assert entry.options["default_targets"] is True


def test_named_scene_gets_its_own_graph(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (entry,) = build_engines(bundle, _rtx(scene=SCENES[1]))
    assert (entry.graph, entry.scenes) == (SCENES[1], [SCENES[1]])


def test_same_key_replaces_and_other_keys_stay(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    (first,) = build_engines(bundle, _rtx("8.6"))
    (other,) = build_engines(bundle, _rtx("8.9"))
    for entry in (first, other):
        (bundle.folder / runtime_cache(entry)).write_bytes(b"kernels")
    changed = make_bundle(tmp_path / "b.gamma", seed=1)
    (second,) = build_engines(changed, _rtx("8.6"))
    assert second.file != first.file
    assert read_engines(bundle.folder).engines == [other, second]
    present = {path.name for path in bundle.folder.glob("*-trtrtx*")}
    assert present == {other.file, other.log, runtime_cache(other), second.file, second.log}


def test_leftovers_of_ours_go_and_foreign_files_stay(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    left = bundle.folder / "joint-fp16-trtrtx1.6.0-sm86-00000000.plan"
    foreign = bundle.folder / "mine.plan"
    for path in (left, foreign):
        path.write_bytes(b"x")
    build_engines(bundle, RTX)
    assert not left.exists()
    assert foreign.read_bytes() == b"x"


def test_engine_dir_leaves_the_bundle_alone(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    before = snapshot(bundle.folder)
    (entry,) = build_engines(bundle, _rtx(engine_dir=tmp_path / "engines"))
    assert snapshot(bundle.folder) == before
    assert set(snapshot(tmp_path / "engines")) == {ENGINES, entry.file, entry.log}


def test_progress_grows_and_names_phases(tmp_path: Path) -> None:
    events: list[BuildProgress] = []
    build_engines(make_bundle(tmp_path / "b.gamma"), RTX, events.append)
    assert {event.graph for event in events} == {"joint"}
    assert len({event.pid for event in events}) == 1
    assert [event.elapsed for event in events] == sorted(event.elapsed for event in events)
    assert events[0].phase == "starting TensorRT"
    assert "Parsing graph" in {event.phase for event in events}


def test_without_a_joint_graph_a_scene_must_be_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma", joint=False)
    with pytest.raises(UsageError, match=r"2 fp16 graphs and no joint one"):
        select_graphs(bundle, RTX)
    single = make_bundle(tmp_path / "s.gamma", joint=False, scenes=SCENES[:1])
    assert [g.name for g in select_graphs(single, RTX)] == [SCENES[0]]


def test_unknown_scene_and_precision_name_what_there_is(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    with pytest.raises(InputError, match="no graph for scene nowhere"):
        select_graphs(bundle, EngineOptions(scene="nowhere"))
    with pytest.raises(InputError, match="no bf16 graph") as caught:
        select_graphs(bundle, EngineOptions(precision="bf16"))
    assert caught.value.hint == "this bundle has fp16"


def test_attention_variant_follows_the_flavour(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma", scenes=SCENES[:1], joint=False)
    (graph,) = bundle.manifest.graphs
    both = [graph, graph.model_copy(update={"attention": "op", "opset": 23})]
    bundle = Bundle(bundle.folder, bundle.manifest.model_copy(update={"graphs": both}), bundle.sha256)
    assert [g.attention for g in select_graphs(bundle, RTX)] == ["op"]
    assert [g.attention for g in select_graphs(bundle, EngineOptions(flavour="tensorrt"))] == ["decomposed"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (EngineOptions(compute_capabilities=("8.6",)), "--compute-capability is for tensorrt-rtx"),
        (EngineOptions(flavour="tensorrt-rtx", compute_capabilities=("sm86",)), "compute capability 'sm86'"),
        (EngineOptions(workspace_mib=0), "--workspace-mib 0 is below 1"),
        (EngineOptions(build_timeout=0.0), "--build-timeout must be above 0"),
    ],
)
def test_options_that_cannot_work(options: EngineOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options.check()


def test_capabilities_are_sorted_by_number() -> None:
    assert parse_capabilities("12.0, 8.9,8.6,8.9") == ("8.6", "8.9", "12.0")
    assert parse_capabilities(None) == ()


def test_command_builds_says_so_and_names_the_next_command(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "my photos.gamma")
    done = run("build", bundle.folder, "--engine", "tensorrt-rtx", "--compute-capability", "8.6,8.9")
    assert done.returncode == 0, done.stderr
    (entry,) = read_engines(bundle.folder).engines
    row = next(line for line in done.stdout.splitlines() if entry.file in line)
    assert f"{entry.size / 1e6:.1f}" in row
    assert "compute capability 8.6, 8.9" in row
    assert done.stderr.splitlines()[-1] == f"next: gamma-doctor '{bundle.folder}'"
    assert any(line.startswith("building joint fp16: 0 s") for line in done.stderr.splitlines())


def test_command_json_is_one_object(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    done = run("build", bundle.folder, "--engine", "tensorrt-rtx", "--json", "--quiet", "--engine-dir", tmp_path / "e")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["folder"] == str(tmp_path / "e")
    assert [e["file"] for e in result["engines"]] == [e.file for e in read_engines(tmp_path / "e").engines]
    assert done.stderr == ""  # --quiet, as in the other commands


def test_command_says_that_nothing_ran_without_a_gpu(tmp_path: Path) -> None:
    from tests.runtime.engine_bundle import no_driver

    bundle = make_bundle(tmp_path / "b.gamma")
    done = run("build", bundle.folder, "--engine", "tensorrt-rtx", env=no_driver(tmp_path / "driver"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 engine compiled, not run on a GPU"


def test_foreign_modules_in_the_working_directory_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "b.gamma")
    marker = tmp_path / "ran"
    for name in ("polygraphy", "tensorrt_rtx", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    build_engines(bundle, RTX)
    assert not marker.exists()
