"""gamma-calib explain --plot: pictures that decode, a page that needs nothing else, and what cannot be written."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from gamma_runtime.errors import EnvironmentFault, OutputError
from tests.browser import asked, drawn, needs_browser
from tests.calib import loud
from tests.calib.loud import LOUD, run


@pytest.fixture(scope="module")
def folder() -> Path:
    """Of the bundle."""
    return loud.bundle().folder


def png_size(content: bytes) -> tuple[int, int]:
    """Decoded as a whole."""
    from matplotlib.image import imread

    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    height, width = imread(io.BytesIO(content), format="png").shape[:2]
    return width, height


def test_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert run(folder, "--plot", tmp_path / "blocks", "--json") == 0
    said = capsys.readouterr()
    assert "blocks/block-00.png and 1 more written" in said.err
    files = sorted((tmp_path / "blocks").iterdir())
    assert [path.name for path in files] == ["block-00.png", "block-01.png"]
    assert json.loads(said.out)["plots"] == [str(path) for path in files]
    width, height = png_size(files[0].read_bytes())
    assert run(folder, "--plot", tmp_path / "all.PNG", "--quiet") == 0
    assert png_size((tmp_path / "all.PNG").read_bytes()) == (width, 2 * height)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.PNG", "blocks"]


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.targets += [str(found[name]) for name in ("src", "href", "srcset") if name in found]
        self.ids += [str(found["id"])] if "id" in found else []
        if tag == "img":
            self.images.append(found)
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_that_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    copy = shutil.copytree(folder, tmp_path / "a&<b>.gamma")
    record = loud.record_file()
    assert run(copy, "--record", record, "--plot", tmp_path / "x.html", "--quiet") == 0
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.images) == 6
    for image in page.images:
        assert len(str(image["alt"])) > 20
        _, _, data = str(image["src"]).partition("data:image/png;base64,")
        width, _ = png_size(base64.b64decode(data, validate=True))
        assert width == 720
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in page.targets)
    assert {target[1:] for target in page.targets if target.startswith("#")} == set(page.ids)
    plain = re.sub(r"base64,[^\"]*", "", text)
    assert "http" not in plain
    assert "url(" not in plain
    assert "a&amp;&lt;b&gt;.gamma" in plain
    assert f"never 8 bits): 1 outlier channel: {LOUD}" in plain
    assert 'name="viewport"' in plain


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.svg", "writes PNG or HTML"), ("none/x.png", "does not exist"), ("file", "a file, not a folder")],
)
def test_pictures_that_cannot_be_written(
    folder: Path, tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("mine")
    assert run(folder, "--plot", tmp_path / name) == OutputError.exit_code
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert (tmp_path / "file").read_text() == "mine"


def test_without_matplotlib(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(folder, "--plot", tmp_path / "x.png") == EnvironmentFault.exit_code
    assert "pip install 'gamma-edge[plot]'" in capsys.readouterr().err
    assert run(folder, "--quiet") == 0


@pytest.mark.long
@needs_browser
def test_the_page_in_a_browser(folder: Path, tmp_path: Path) -> None:
    """Every picture is decoded and shown, links lead to blocks, and a phone need not scroll sideways."""
    pytest.importorskip("matplotlib")
    page = tmp_path / "x.html"
    assert run(folder, "--plot", page, "--quiet") == 0
    assert (
        asked(page, "[...document.images].filter(i => i.complete && i.naturalWidth > 300 && i.width > 200).length")
        == "6"
    )
    assert (
        asked(page, "[...document.querySelectorAll('nav a')].every(a => document.getElementById(a.hash.slice(1)))")
        == "true"
    )
    assert asked(page, "document.documentElement.scrollWidth <= innerWidth", width=500) == "true"
    from matplotlib.image import imread

    pixels = imread(drawn(page, tmp_path / "x.png"), format="png")
    white = (pixels[:, :, :3] > 0.99).all(axis=2).mean()
    assert 0.2 < white < 0.97
