"""What an export says of its int8 graphs: how much is 8 bits, what was tried, and whether it pays."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamma_calib.speed import Speed
    from gamma_export.int8 import Int8Graphs
    from gamma_runtime.manifest import Quantisation, Trial

__all__ = ["int8_json", "int8_text"]

_LISTED = 6  # groups that are named in a line


def int8_json(int8: Int8Graphs) -> dict[str, Any]:
    """JSON-ready: the recipe with its trials, weights in bytes, and milliseconds a call."""
    return {
        "quantisation": int8.quantisation.model_dump(mode="json"),
        "weights_bytes": int8.bytes,
        "speed": [dataclasses.asdict(speed) | {"pays": speed.pays} for speed in int8.speed],
    }


def int8_text(int8: Int8Graphs, published: bool) -> str:
    """For people; the last line says what to do."""
    recipe = int8.quantisation
    total = len(recipe.groups) + len(recipe.kept)
    sizes = ", ".join(f"{name} {int8.bytes[name] / 1e6:.1f} MB" for name in (recipe.kind, "fp16", "fp32"))
    lines = [
        f"{recipe.kind}: {len(recipe.groups) - len(recipe.int4)} of {total} groups in 8 bits, {recipe.int8_share:.1%} "
        f"of the multiply-adds; ranges by {recipe.method} from {recipe.images} photos; weights: {sizes}"
    ]
    if recipe.int4:
        lines.append(f"{len(recipe.int4)} groups with weights in 4 bits, their activations float: an experiment")
    if recipe.kept:
        more = f" and {len(recipe.kept) - _LISTED} more" if len(recipe.kept) > _LISTED else ""
        lines.append(
            f"kept in floating point, the gate did not hold with them: {', '.join(recipe.kept[:_LISTED])}{more}"
        )
    if len(recipe.trials) > 1:
        lines.append(_trials(recipe))
    if int8.speed:
        lines.append(_speeds(int8.speed))
    return "\n".join([*lines, _advice(int8, published)])


def _trials(recipe: Quantisation) -> str:
    """The recipes on the way: error against how much is 8 bits, and against time; a star where none beats both."""
    from gamma_runtime.tables import text_table

    titles = (
        "kept in floating point",
        f"{recipe.kind} share",
        "max |diff|",
        "mean |diff|",
        "SRCC",
        "ms a crop",
        "front",
        "gate",
    )
    rows = [
        (
            str(len(trial.kept)) + (f", last {trial.kept_last}" if trial.kept_last else ""),
            f"{trial.int8_share:.1%}",
            f"{trial.max_abs:.1e}",
            f"{trial.mean_abs:.1e}",
            "-" if trial.srcc is None else f"{trial.srcc:.4f}",
            "-" if trial.milliseconds is None else f"{trial.milliseconds:.1f}",
            "*" if not any(_beats(other, trial) for other in recipe.trials) else "",
            "pass" if trial.passed else "FAIL",
        )
        for trial in recipe.trials
    ]
    return text_table(titles, rows)


def _beats(one: Trial, other: Trial) -> bool:
    """In share of 8 bits and mean shift, at least as good in both and better in one."""
    ours, theirs = (one.int8_share, -one.mean_abs), (other.int8_share, -other.mean_abs)
    return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


def _speeds(speeds: tuple[Speed, ...]) -> str:
    from gamma_runtime.tables import text_table

    titles = ("backend", "int8", "fp32", "fp16 (emulated)", "against fp32", "against fp16")
    rows = [
        (
            speed.backend,
            *(f"{speed.milliseconds[name]:.1f} ms" for name in ("int8", "fp32", "fp16")),
            *(f"{speed.times_as_fast(name):.2f} times" for name in ("fp32", "fp16")),
        )
        for speed in speeds
    ]
    return text_table(titles, rows)


def _advice(int8: Int8Graphs, published: bool) -> str:
    if not published:
        return "do not ship it: the gate does not hold"
    slow = [speed.backend for speed in int8.speed if not speed.pays]
    gpu = "on a GPU it was not run: build both engines there and compare before you choose it over fp16"
    if int8.quantisation.kind == "fp8":
        return f"fp8 needs Ada, Hopper, Blackwell or Thor; a CPU only emulates it; {gpu}"
    if not int8.speed:
        return f"whether it is faster was not measured; {gpu}"
    if slow:
        return f"int8 does not pay by 5 % on {', '.join(slow)}: take fp16 or fp32 there; {gpu}"
    return f"int8 pays on this machine's {' and '.join(speed.backend for speed in int8.speed)}; {gpu}"
