"""What an export says of its int8 graphs, from numbers made up for the purpose."""

from __future__ import annotations

from typing import Any

import pytest

from gamma_calib.speed import Speed
from gamma_export.int8 import Int8Graphs
from gamma_export.int8_report import int8_json, int8_text
from gamma_runtime.manifest import Quantisation, Trial


def trial(share: float, mean: float, **changes: Any) -> Trial:
    facts = {"kept": [], "int8_share": share, "max_abs": 0.01, "mean_abs": mean, "srcc": 0.999, "passed": False}
    return Trial(**(facts | changes))


def made(*trials: Trial, speed: tuple[Speed, ...] = (), kept: tuple[str, ...] = ()) -> Int8Graphs:
    recipe = Quantisation(
        groups=["a", "b"], kept=list(kept), ranges={}, method="mse", images=64, int8_share=0.9, trials=list(trials)
    )
    return Int8Graphs([], [], recipe, (), speed, {"int8": 10_000_000, "fp16": 20_000_000, "fp32": 40_000_000})


def test_the_front_has_no_trial_that_another_beats() -> None:
    text = int8_text(
        made(*(trial(s, m) for s, m in ((0.9, 0.5), (0.8, 0.6), (0.7, 0.2), (0.6, 0.2), (0.5, 0.1)))), True
    )
    stars = [line.split()[0:2][1] for line in text.splitlines() if "*" in line]
    assert stars == ["90.0%", "70.0%", "50.0%"]


def test_one_trial_is_no_table() -> None:
    text = int8_text(made(trial(0.9, 0.1)), True)
    assert "int8 share" not in text
    assert text.startswith("int8: 2 of 2 groups in 8 bits, 90.0% of the multiply-adds; ranges by mse from 64 photos")
    assert "int8 10.0 MB, fp16 20.0 MB, fp32 40.0 MB" in text


def speed(backend: str, fp32: float) -> Speed:
    return Speed(backend, {"int8": 10.0, "fp32": fp32, "fp16": 30.0})


@pytest.mark.parametrize(
    ("speeds", "published", "advice"),
    [
        (
            (speed("onnxruntime", 25.0), speed("openvino", 25.0)),
            True,
            "int8 pays on this machine's onnxruntime and openvino",
        ),
        ((speed("onnxruntime", 10.4), speed("openvino", 25.0)), True, "does not pay by 5 % on onnxruntime: take fp16"),
        ((), True, "whether it is faster was not measured"),
        ((speed("onnxruntime", 25.0),), False, "do not ship it"),
    ],
)
def test_the_last_line_says_what_to_do(speeds: tuple[Speed, ...], published: bool, advice: str) -> None:
    last = int8_text(made(trial(0.9, 0.1), speed=speeds), published).splitlines()[-1]
    assert advice in last
    assert ("on a GPU it was not run" in last) is published


def test_groups_that_were_sent_back_are_named() -> None:
    text = int8_text(made(trial(0.9, 0.1), kept=tuple("cdefghij")), True)
    assert "the gate did not hold with them: c, d, e, f, g, h and 2 more" in text


def test_json() -> None:
    data = int8_json(made(trial(0.9, 0.1), speed=(speed("onnxruntime", 10.4),)))
    assert data["speed"] == [
        {"backend": "onnxruntime", "milliseconds": {"int8": 10.0, "fp32": 10.4, "fp16": 30.0}, "pays": False}
    ]
    assert data["quantisation"]["trials"][0]["int8_share"] == 0.9
