"""A state file that was tampered with: told in a sentence, and nothing of the run is changed."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gamma_runtime.errors import InputError, IntegrityError
from gamma_training.train.state import Progress, load_state, save_state

KEYS = {"config": "a", "photos": "b", "base": "c"}
JUDGED = {"srcc": 0.5, "plcc": math.nan, "rmse": 0.1, "photos": 3}
ROW = {"epoch": 1, "loss": 0.3, "validation": {"mos": JUDGED, "mean": JUDGED}}

Metadata = dict[str, str]
Change = Callable[[dict[str, Any]], None]


class Run:
    """Two weights, their optimiser, averages and scaler, three steps after a seed."""

    def __init__(self, seed: int, steps: int = 3) -> None:
        generator = torch.manual_seed(seed)
        self.weights = {
            name: torch.nn.Parameter(torch.randn(shape, generator=generator))
            for name, shape in {"a": (2, 3), "b": (4,)}.items()
        }
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=0.1, fused=True)
        self.average = {name: torch.randn(value.shape, generator=generator) for name, value in self.weights.items()}
        self.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0 ** (seed + 3))
        self.steps(steps)
        self.progress = Progress(1, 1, [0.4, 0.3, 0.2], [ROW], ROW, 0, 2.5, finished=False)

    def steps(self, count: int) -> None:
        generator = torch.manual_seed(count)
        for _ in range(count):
            for value in self.weights.values():
                value.grad = torch.randn(value.shape, generator=generator)
            self.optimizer.step()

    @property
    def parts(self) -> tuple[Any, ...]:
        return self.weights, self.optimizer, self.average, self.scaler

    def save(self, path: Path) -> Path:
        save_state(path, KEYS, self.progress, *self.parts)
        return path

    def load(self, path: Path, keys: dict[str, str] = KEYS) -> Progress:
        return load_state(path, keys, *self.parts)

    def content(self) -> dict[str, Any]:
        """Everything that loading may change."""
        return copy.deepcopy(
            {
                "weights": {name: value.detach() for name, value in self.weights.items()},
                "optimizer": self.optimizer.state_dict()["state"],
                "average": self.average,
                "scaler": self.scaler.state_dict(),
            }
        )


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return torch.equal(left, right) if isinstance(left, Tensor) else left == right


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return Run(1).save(tmp_path / "state.safetensors")


def rewritten(path: Path, change: Callable[[Metadata, dict[str, Tensor]], None]) -> Path:
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    change(metadata, tensors)
    save_file(tensors, path, metadata=metadata)
    return path


def refused(path: Path, message: str) -> None:
    run = Run(2, steps=1)
    before = run.content()
    with pytest.raises(IntegrityError, match=re.escape(message)) as caught:
        run.load(path)
    assert caught.value.hint == "begin anew in another folder"
    assert "\n" not in caught.value.message
    assert same(run.content(), before)


def test_a_good_file_loads_bit_for_bit(good: Path) -> None:
    saved, run = Run(1), Run(2, steps=1)
    assert not same(run.content(), saved.content())
    progress = run.load(rewritten(good, lambda *_: None))
    assert same(run.content(), saved.content())
    assert json.dumps(vars(progress)) == json.dumps(vars(saved.progress))  # NaN is not equal to itself


def test_what_was_loaded_does_not_hang_on_the_file(good: Path) -> None:
    run = Run(2, steps=1)
    run.load(good)
    with good.open("rb+") as stream:
        stream.write(bytes(good.stat().st_size))  # in place, as no part of ours does
    assert same(run.content(), Run(1).content())


@pytest.mark.parametrize("skipped", [0, 2])
def test_a_file_of_before_the_first_counted_step_loads(tmp_path: Path, skipped: int) -> None:
    saved, run = Run(1, steps=0), Run(2, steps=0)
    before = saved.content()
    for _ in range(skipped):  # as fp16's scaler does with the first steps, until its scale has fallen
        for value in saved.weights.values():
            value.grad = torch.full_like(value, math.inf)
        saved.scaler.scale(torch.ones(()))
        saved.scaler.step(saved.optimizer)
        saved.scaler.update()
    run.load(saved.save(tmp_path / "state.safetensors"))
    assert same(run.content()["weights"], before["weights"])
    assert run.scaler.state_dict() == saved.scaler.state_dict()
    assert run.scaler.get_scale() == 2.0 ** (4 - skipped)
    for one in (saved, run):
        one.steps(3)
    assert same(run.content(), saved.content())


def test_another_runs_state_is_no_damage(good: Path) -> None:
    with pytest.raises(InputError, match="begun with another photos"):
        Run(2).load(good, KEYS | {"photos": "other"})


def put(*place: str, value: Any) -> Change:
    """Set what lies there in the JSON."""

    def change(note: dict[str, Any]) -> None:
        for name in place[:-1]:
            note = note[name]
        note[place[-1]] = value

    return change


def drop(*place: str) -> Change:
    """Take it out."""

    def change(note: dict[str, Any]) -> None:
        for name in place[:-1]:
            note = note[name]
        del note[place[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("keys"), "state.keys: Field required"),
        (put("keys", value=["a"]), "state.keys: Input should be an object"),
        (drop("progress"), "state.progress: Field required"),
        (put("progress", value=[]), "state.progress: Input should be an object"),
        (drop("progress", "finished"), "state.progress.finished: Field required"),
        (put("progress", "more", value=1), "state.progress.more: Extra inputs are not permitted"),
        (put("progress", "epoch", value="1"), "state.progress.epoch: Input should be a valid integer"),
        (put("progress", "step", value=-1), "state.progress.step: Input should be greater than or equal to 0"),
        (put("progress", "step", value=True), "state.progress.step: Input should be a valid integer"),
        (
            put("progress", "step", value=2**70),
            "3 losses and 1 rows of history after epoch 1, step 1180591620717411303424",
        ),
        (put("progress", "epoch", value=2), "3 losses and 1 rows of history after epoch 2, step 1"),
        (put("progress", "history", value=[[]]), "state.progress.history.0: Input should be an object"),
        (put("progress", "history", value=[{"epoch": 1}]), "state.progress.history.0.loss: Field required"),
        (put("progress", "best", value={"epoch": 1, "loss": 0.3}), "without a best one"),
        (put("progress", "best", "validation", value={"mos": JUDGED}), "validations without a mean"),
        (put("progress", "best", "validation", "mean", value={}), "best.validation.mean.srcc: Field required"),
        (put("progress", "seconds", value=math.inf), "state.progress.seconds: Input should be a finite number"),
        (put("adam_steps", value="3"), "state.adam_steps: Input should be a valid number"),
        (put("adam_steps", value=math.nan), "state.adam_steps: Input should be"),
        (put("adam_steps", value=0), "tensor exp_avg.a is one too many"),
        (put("scaler", value={}), "the scaler of fp16 is []"),
        (put("scaler", "scale", value="x"), "state.scaler.scale"),
    ],
)
def test_a_note_that_is_not_one(good: Path, change: Change, message: str) -> None:
    def alter(metadata: Metadata, _: dict[str, Tensor]) -> None:
        note = json.loads(metadata["state"])
        change(note)
        metadata["state"] = json.dumps(note)

    refused(rewritten(good, alter), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "state: Input should be an object"),
        ("3", "state: Input should be an object"),
        ("{", "state: Invalid JSON"),
        ("[" * 100_000, "state: Invalid JSON"),
        (None, "no format 'gamma-edge training state 1' with a state"),
    ],
)
def test_metadata_that_is_no_note(good: Path, text: str | None, message: str) -> None:
    def alter(metadata: Metadata, _: dict[str, Tensor]) -> None:
        metadata.pop("state") if text is None else metadata.update(state=text)

    refused(rewritten(good, alter), message)


def test_another_format_is_told(good: Path) -> None:
    refused(rewritten(good, lambda metadata, _: metadata.update(format="other")), "no format")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("w.b", None, "tensor w.b is missing"),
        ("w.b", torch.zeros(5), "tensor w.b is float32 [5], expected float32 [4]"),
        ("w.b", torch.zeros(1), "tensor w.b is float32 [1], expected float32 [4]"),  # which would be broadcast
        ("w.b", torch.zeros(4, dtype=torch.float16), "tensor w.b is float16 [4], expected float32 [4]"),
        ("exp_avg.b", None, "tensor exp_avg.b is missing"),
        ("exp_avg_sq.a", None, "tensor exp_avg_sq.a is missing"),
        ("exp_avg_sq.a", torch.zeros(3, 2), "tensor exp_avg_sq.a is float32 [3, 2], expected float32 [2, 3]"),
        ("average.a", None, "tensor average.a is missing"),
        ("average.b", torch.zeros(4, dtype=torch.int32), "tensor average.b is int32 [4], expected float32 [4]"),
        ("w.c", torch.zeros(1), "tensor w.c is one too many"),
        ("losses", None, "tensor losses is missing"),
        ("losses", torch.zeros(3), "tensor losses is float32 [3], expected float64 [steps]"),
        ("losses", torch.zeros(3, 1, dtype=torch.float64), "tensor losses is float64 [3, 1], expected"),
        ("losses", torch.zeros(1, dtype=torch.float64), "1 losses and 1 rows of history after epoch 1, step 1"),
    ],
)
def test_a_tensor_that_is_missing_or_another(good: Path, name: str, value: Tensor | None, message: str) -> None:
    def alter(_: Metadata, tensors: dict[str, Tensor]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    refused(rewritten(good, alter), message)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_torn_file(good: Path, share: float) -> None:
    content = good.read_bytes()
    good.write_bytes(content[: int(len(content) * share)])
    refused(good, "not a whole training state")
