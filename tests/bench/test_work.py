"""gamma-bench --profile on a tiny exported bundle, and what becomes of it where something is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gamma_export.bench import work
from gamma_export.bench.parts import ATTENTION, HEAD, PATCH
from gamma_export.bench.report import markdown, text
from gamma_export.bench.result import Result, read_result
from gamma_export.bench.spec import Spec
from gamma_export.bench.work import PROFILE, ROOF, best_peak, profile_lines, roof_lines, work_of
from gamma_export.commands.bench import BenchOptions, bench_command
from gamma_runtime.bundle import open_bundle
from gamma_runtime.errors import EXIT_INVALID_MEASUREMENT, EXIT_OK, EnvironmentFault
from tests import tiny_export

BACKENDS = ("onnxruntime", "openvino")
PEAK = {"gmacs": 10.0, "gbytes": 5.0, "threads": 1, "copy_bytes": 1 << 26, "cache_bytes": 1 << 20}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The real command with both backends."""
    out = tmp_path_factory.mktemp("work") / "results"
    bundle, photos = tiny_export.exported(precision="fp32"), tiny_export.photos()
    words = [sys.executable, "-m", "gamma_export.commands.bench", str(bundle), str(photos), "--profile"]
    words += ["--seconds", "0.2", "--rate", "none", "--streams", "none", "--starts", "1", "--threads", "1"]
    done = subprocess.run([*words, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode in (EXIT_OK, EXIT_INVALID_MEASUREMENT), done.stderr
    assert all(title in done.stdout for title in (*ROOF, *PROFILE))
    return read_result(out / "result.json"), out


@pytest.mark.long
def test_work_roof_and_parts_of_both_backends(found: tuple[Result, Path]) -> None:
    result, _ = found
    assert [one["backend"] for one in result.work] == list(BACKENDS)
    for one in result.work:
        (call,), (roof,), profile = one["calls"], one["roofs"], one["profile"]
        assert call["macs"] == sum(part["macs"] for part in call["parts"].values()) > 0
        assert 0 < call["least_bytes"] <= call["most_bytes"]
        assert roof["share"] > 0
        assert roof["ms"] == next(
            row.summary.p50 for row in result.rows if (row.backend, row.metric) == (one["backend"], "backend")
        )
        assert profile["source"] == one["backend"]
        assert all(profile["parts"][part] > 0 for part in (PATCH, ATTENTION, HEAD))
        assert one["peak"]["gmacs"] == max(one["peak"]["gmacs_both"]) > 0
    assert len(roof_lines(result)) == 2
    assert {line[0] for line in profile_lines(result)} == set(BACKENDS)


def test_reports_show_it(found: tuple[Result, Path]) -> None:
    pytest.importorskip("matplotlib")
    result, out = found
    said = (out / "report.md").read_text()
    page = (out / "report.html").read_text()
    for line in (*roof_lines(result), *profile_lines(result)):
        assert "| " + " | ".join(line) + " |" in said
        assert all(f">{cell}</td>" in page for cell in line)
    assert "<h4>Roofline</h4>" in page
    assert "<h4>Time by part</h4>" in page
    assert "the machine's peak beside it was" in text(result)
    assert markdown(result) == said


def spec_of(bundle: Path, backend: str) -> Spec:
    return Spec(
        bundle=str(bundle),
        scene=tiny_export.SCENES[0],
        backend=backend,
        precision="fp32",
        threads=1,
        engine_dir=None,
        photos=(),
        batches=(1,),
        rates=(),
        streams=(),
        seconds=1.0,
        within=0.02,
        profile=True,
    )


def test_a_backend_without_a_profiler_has_its_work_counted() -> None:
    bundle = open_bundle(tiny_export.exported(precision="fp32"))
    made, notes = work_of(spec_of(bundle.folder, "tensorrt"), bundle, bundle.graph(tiny_export.SCENES[0]), [1])
    assert len(made["calls"]) == 1
    assert made["profile"] is None
    assert "no profiler" in notes[0]


def test_a_graph_that_is_not_ours_is_a_note(tmp_path: Path) -> None:
    from tests.runtime.tiny_bundle import Tiny, make_bundle

    bundle = make_bundle(tmp_path / "x.gamma", Tiny())
    graph = bundle.manifest.graphs[0]
    made, notes = work_of(spec_of(bundle.folder, "onnxruntime"), bundle, graph, [1])
    assert made == {"calls": [], "profile": None}
    assert "not made by gamma-export" in notes[0]


def test_the_higher_peak_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "peaks", lambda _: {**PEAK, "gmacs": 9.0, "gbytes": 6.0})
    assert best_peak(PEAK, 1) == {**PEAK, "gbytes": 6.0, "gmacs_both": [10.0, 9.0]}

    def fails(_: int | None) -> dict[str, float]:
        raise EnvironmentFault("no peak")

    monkeypatch.setattr(work, "peaks", fails)
    assert best_peak(PEAK, 1)["gmacs"] == 10.0


def test_without_onnx_the_extra_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EnvironmentFault) as caught:
        bench_command(BenchOptions(bundle=tmp_path / "no.gamma", photos=("x.jpg",), profile=True))
    assert "gamma-edge[export]" in str(caught.value)
