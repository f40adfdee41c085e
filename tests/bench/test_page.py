"""The page of a result: every picture is there and decodes, every name is harmless, and it needs nothing else."""

from __future__ import annotations

import base64
import html.parser
import io
import random
import re
import sys
from pathlib import Path

import pytest

from gamma_export.bench.page import page
from gamma_export.bench.result import Result, Row
from gamma_export.bench.split import PARTS
from gamma_export.commands import bench
from gamma_export.commands.bench import PageOptions, page_command
from gamma_runtime.errors import EnvironmentFault, InputError, OutputError, UsageError
from tests.bench.made import result, row
from tests.browser import asked, drawn, needs_browser

HEADINGS = [
    "Distribution: end-to-end",
    "Distribution: call batch=1",
    "Distribution: call batch=4",
    "Distribution: paced rate=1",
    "Distribution: paced rate=30",
    "Distribution: streams streams=1",
    "Distribution: streams streams=2",
    "Split of end-to-end",
    "Batches",
    "Paced load",
    "Streams",
    "Roofline",
    "Time by part",
]
HOSTILE = "<script>alert('x')</script> $\\frac{ \u202e 美"


@pytest.fixture(scope="module", autouse=True)
def _plots() -> None:
    pytest.importorskip("matplotlib")


def rows_of(backend: str) -> list[Row]:
    """Every kind of row."""
    draw = random.Random(backend)  # noqa: S311 - repeatable samples, no secrets

    def some(middle: float) -> list[float]:
        return [middle * draw.lognormvariate(0, 0.1) for _ in range(40)]

    def made(metric: str, middle: float, **fields: object) -> Row:
        return row(some(middle), **{"backend": backend, "metric": metric, "batch": None, **fields})

    rows = [made("cold start", 900), made("first call", 60), made("end-to-end", 50)]
    rows += [made(f"split: {part}", 10) for part in PARTS]
    for batch in (1, 4):
        rows += [made("call", 40 * batch, batch=batch), made("throughput", 20, unit="images/s", batch=batch)]
    for rate in (1.0, 30.0):
        extra = {"late": rate, "dropped": 0.0, "scored": 40.0}
        rows.append(made("paced", 50 * rate, rate=rate, extra=extra))
    for streams in (1, 2):
        rows.append(made("streams", 50 * streams, streams=streams))
        rows.append(made("streams throughput", 20, unit="images/s", streams=streams))
    return rows


def work_of(backend: str) -> dict[str, object]:
    """What --profile adds."""
    peak = {"gmacs": 80.0, "gbytes": 12.0, "threads": 2, "copy_bytes": 1 << 26, "cache_bytes": 1 << 20}
    parts = {part: {"macs": 10**9, "bytes": 10**6} for part in ("patch", "attention")}
    call = {"batch": 1, "crops": 5, "macs": 2 * 10**9, "least_bytes": 10**7, "most_bytes": 10**8, "parts": parts}
    roof = {"batch": 1, "ms": 40.0, "gmacs": 50.0, "intensity": 200.0, "bound": "compute", "roof_seconds": 0.025}
    profile = {"source": backend, "batch": 1, "calls": 10, "call_ms": 42.0, "parts": {"patch": 10.0, "attention": 30.0}}
    return {
        "backend": backend,
        "peak": peak,
        "calls": [call],
        "roofs": [{**roof, "share": 0.625}],
        "profile": profile,
    }


def whole(**fields: object) -> Result:
    names = ("onnxruntime", "openvino")
    rows = [row for name in names for row in rows_of(name)]
    return result(rows, work=tuple(map(work_of, names)), **fields)


class Page(html.parser.HTMLParser):
    """Images, headings, identifiers and links; what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.targets += [str(found[name]) for name in ("src", "href", "srcset") if name in found]
        if tag == "img":
            self.images.append(found)
        elif tag != "meta":
            self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def headings(text: str) -> list[str]:
    return re.findall(r"<h4>(.*?)</h4>", text)


def decoded(image: dict[str, str | None]) -> tuple[int, int]:
    """Width and height of a picture inside the page, decoded as a whole."""
    from matplotlib.image import imread

    kind, _, data = str(image["src"]).partition(",")
    assert kind == "data:image/png;base64"
    height, width = imread(io.BytesIO(base64.b64decode(data, validate=True)), format="png").shape[:2]
    return width, height


def test_every_kind_of_row_has_its_picture() -> None:
    found = whole()
    text = page(found)
    read = Page(text)
    assert headings(text) == HEADINGS
    assert len(read.images) == len(HEADINGS)
    for image, heading in zip(read.images, HEADINGS, strict=True):
        assert str(image["alt"]).startswith(heading)
        assert min(decoded(image)) > 300
    assert all(target.startswith(("data:", "#")) for target in read.targets)
    assert not {"script", "link", "iframe", "object"} & set(read.tags)
    for one in found.rows:  # whoever sees no pictures reads every number
        assert f"{one.summary.p50:.4g}" in read.words
        assert one.name in read.words
    assert "1 late and 0 dropped of 40" in read.words
    assert "62.5% of the roof, bound by compute" in read.words
    assert [tag for tag in read.tags if tag in ("h1", "h2")] == ["h1", "h2"]


def test_the_verdict_comes_first() -> None:
    assert Page(page(whole())).words.index("Valid: nothing") < 200
    read = Page(page(whole(doubts=("first doubt", "<second>"))))
    assert "Not valid: do not cite" in read.words
    assert read.words.index("first doubt") < read.words.index("<second>") < read.words.index("Scene ")


@pytest.mark.parametrize("rows", [[], [row([5.0])], [row([0.0, 0.0])], [row([3.0], metric="cold start", batch=None)]])
def test_few_rows_make_a_page_all_the_same(rows: list[Row]) -> None:
    text = page(result(rows))
    assert len(headings(text)) <= 1
    assert "Valid" in Page(text).words


def test_hostile_names_do_nothing() -> None:
    rows = [row([1.0, 2.0], backend=HOSTILE, metric="end-to-end", batch=None)]
    rows += [row([1.0], backend=HOSTILE, metric=f"split: {part}", batch=None) for part in PARTS]
    plain = result(rows, scene=HOSTILE, doubts=(HOSTILE,), notes=(HOSTILE,), settings={HOSTILE: HOSTILE})
    plain.bundle.update(name=HOSTILE, parity={"max_abs": 1e-5})
    for text in (page(plain), page(plain, plain)):
        read = Page(text)
        assert "script" not in read.tags
        assert HOSTILE in read.words


@pytest.mark.long
def test_several_bundles_are_put_together() -> None:
    exact, quick = whole(), whole()
    for number, (found, error) in enumerate(((exact, 1e-6), (quick, 2e-3))):
        found.bundle.update(name=f"{number}.gamma", bytes=(2 - number) << 20, parity={"max_abs": error})
    text = page(exact, quick)
    read = Page(text)
    assert headings(text) == ["Time against fidelity", *HEADINGS, *HEADINGS]
    assert {"#run1", "#run2"} <= set(read.targets)
    assert 'id="run2"' in text
    assert "2.00e-03" in read.words
    quick.bundle["parity"] = exact.bundle["parity"] = None
    assert headings(page(exact, quick)) == [*HEADINGS, *HEADINGS]


def save(path: Path, found: Result) -> Path:
    path.write_text(found.to_json())
    return path


@pytest.mark.long
def test_the_command_on_recorded_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = [save(tmp_path / f"{name}.json", result(rows_of(name))) for name in ("a", "b")]
    target = tmp_path / "report.html"
    assert page_command(PageOptions(results=tuple(saved), output=target)) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert 'id="run2"' in target.read_text()
    assert page_command(PageOptions(results=(saved[0],), output=target, json=True)) == 0
    assert 'id="run2"' not in target.read_text()


def test_what_the_command_refuses(tmp_path: Path) -> None:
    good = save(tmp_path / "a.json", result([row([1.0])]))
    odd = save(tmp_path / "odd.json", result([row([1.0])], contenders=({"backend": "x"},)))
    with pytest.raises(UsageError, match="no results"):
        page_command(PageOptions(results=(), output=tmp_path / "x.html"))
    with pytest.raises(InputError, match=r"odd\.json.*KeyError"):
        page_command(PageOptions(results=(good, odd), output=tmp_path / "x.html"))
    with pytest.raises(InputError, match="cannot be read"):
        page_command(PageOptions(results=(tmp_path / "no.json",), output=tmp_path / "x.html"))
    with pytest.raises(OutputError):
        page_command(PageOptions(results=(good,), output=good / "x.html"))
    assert not (tmp_path / "x.html").exists()


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnvironmentFault) as caught:
        page_command(PageOptions(results=(save(tmp_path / "a.json", whole()),), output=tmp_path / "x.html"))
    assert "gamma-edge[plot]" in str(caught.value)


def test_a_run_without_matplotlib_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = whole()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    bench._write(tmp_path, found)
    bench._write_page(tmp_path, found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "result.json"]
    said = capsys.readouterr().err
    assert said.startswith("no report.html: matplotlib is not usable here")
    assert "pip install 'gamma-edge[plot]'" in said


@pytest.mark.long
@needs_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """Every picture is decoded and shown, and a phone need not scroll sideways."""
    target = tmp_path / "x.html"
    target.write_text(page(whole()), encoding="utf-8")
    count = "[...document.images].filter(i => i.complete && i.naturalWidth > 300 && i.width > 200).length"
    assert asked(target, count) == str(len(HEADINGS))
    assert asked(target, "document.documentElement.scrollWidth <= innerWidth", width=500) == "true"
    from matplotlib.image import imread

    pixels = imread(drawn(target, tmp_path / "x.png"), format="png")
    white = (pixels[:, :, :3] > 0.99).all(axis=2).mean()
    assert 0.2 < white < 0.97
