"""gamma-order: a sharp photo above its worse copies, or exit code 7."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from gamma_export.commands.order import COPIES, OrderOptions, Row, order_command
from gamma_export.photos import packaged_photos
from gamma_runtime.errors import EXIT_GATE, EXIT_OK, OutputError
from gamma_runtime.scorer import load
from tests import tiny_export


def test_a_photo_is_above_all_of_its_copies_or_it_is_not() -> None:
    assert Row("a", 0.5, {"blur": 0.4, "jpeg": 0.1}).ordered
    assert not Row("a", 0.5, {"blur": 0.4, "jpeg": 0.5}).ordered


def test_scores_are_the_runtimes_and_the_exit_code_says_the_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, photo = tiny_export.exported(), packaged_photos()[0]
    picture = tmp_path / "new" / "order.png"
    code = order_command(OrderOptions(bundle=bundle, photo=(photo,), picture=picture, json=True))
    said = json.loads(capsys.readouterr().out)
    (row,) = said["photos"]
    with load(bundle) as scorer:
        assert row["score"] == pytest.approx(scorer.score(photo).value, abs=1e-6)
    assert list(row["copies"]) == [kind for kind, _ in COPIES]
    assert row["ordered"] == all(row["score"] > score for score in row["copies"].values())
    assert code == (EXIT_OK if row["ordered"] else EXIT_GATE)
    assert said["checkpoint"] == "untrained"
    assert cv2.imread(str(picture)).shape == (194, 4 * 176, 3)


def test_random_weights_do_not_put_all_photos_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    options = OrderOptions(bundle=tiny_export.exported(), photo=tuple(packaged_photos()[:6]))
    assert order_command(options) == EXIT_GATE
    said = capsys.readouterr()
    assert "WRONG" in said.out
    assert "a copy is not below its photo" in said.err


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    options = OrderOptions(bundle=tiny_export.exported(), photo=(packaged_photos()[0],), picture=tmp_path / "x.unknown")
    with pytest.raises(OutputError, match="cannot be written"):
        order_command(options)
