"""The numbers of the README, the demo's model card and docs/int8.md, made from the committed result files.

    python benchmarks/tables.py            rewrite the blocks between their markers

tests/packaging/test_readme_numbers.py fails when they say anything else than the files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from against_tables import against, eager
from int8_tables import RESULTS, int8, load, table

# max |difference| of gamma-export, in score units (design.md section 2); a test compares them with the code's
GATES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 2e-2, "int8": 2e-2, "fp8": 2e-2}
ROOT = Path(__file__).parent.parent
ROWS_SHOWN = 6


def fidelity() -> str:
    """Parity, then the negative controls."""
    result = load("fidelity.json")
    if result is None:
        return "not measured"
    parity = [
        [
            row["precision"] + ("" if row["what"] == "default" else f", {row['what']}"),
            row["backend"] + (" (emulated)" if row["emulated"] else ""),
            f"{row['max_abs']:.1e}",
            f"{row['max_abs_share_of_std']:.2%}",
            f"{row['limit']:g}",
        ]
        for row in result["parity"]
    ]
    controls = [
        [
            row["what"],
            row["precision"],
            f"{row['max_abs']:.1e}",
            f"{row['limit']:g}",
            "yes" if row["caught"] else "NO",
            "yes" if row["max_abs"] > GATES[row["precision"]] else "no",
        ]
        for row in result["negative_controls"]
    ]
    spread = f"{min(result['score_std_by_scene']):.2f} to {max(result['score_std_by_scene']):.2f}"
    return "\n\n".join(
        [
            table(["graph", "backend", "max abs difference", "of the scores' std", "limit"], parity),
            f"{result['photos']} photos, one crop each; standard deviation of the scores {spread} by scene. "
            f"Scene graphs against the joint graph, fp32: {result['scene_graphs_against_joint_fp32']:.0e}.",
            table(
                ["broken on purpose", "precision", "max abs difference", "limit", "caught", "by the default gate"],
                controls,
            ),
            "The limits are the tests'. `gamma-export`'s default gates are wider (1e-4, 5e-3 and 2e-2), for "
            "checkpoints that nobody has measured yet; `--gate` tightens them.",
        ]
    )


def export_cost() -> str:
    """Seconds, memory and bytes of a full-size export."""
    result = load("export_full-*.json")
    if result is None:
        return "not measured"
    machine = result["machine"]
    rows = [
        [goal["what"], f"{goal['measured']:.3g} {goal['unit']}", "met" if goal["met"] else "NOT met"]
        for goal in result["goals"]
    ]
    doubt = "" if result["valid"] else f" **Not a valid measurement**: {'; '.join(result['doubts'])}."
    return (
        f"Export of a full-size checkpoint to a verified five-scene fp16 bundle ({machine['cpu']}, "
        f"{machine['cores']} cores, {len(result['rounds'])} rounds, "
        f"{min(r['seconds'] for r in result['rounds']):.0f} to "
        f"{max(r['seconds'] for r in result['rounds']):.0f} s):{doubt}\n\n"
        + table(["goal", "measured", "goal is"], rows)
    )


def overlap() -> str:
    """score_many with and without preparing the next images meanwhile."""
    files = sorted(RESULTS.glob("overlap-*.json"))
    if not files:
        return "not measured"
    results = [json.loads(path.read_text()) for path in files]
    rows = [
        [
            f"{result['size']}, {result['photos']} photos",
            name,
            f"{one['images_per_second']:.3g}",
            f"{one['ratio']:.2f} ({one['ratio_least']:.2f} to {one['ratio_most']:.2f})",
            "yes" if one["same_scores"] else "NO",
        ]
        for result in results
        for name, one in result["contenders"].items()
    ]
    machine = results[0]["machine"]
    doubts = "".join(
        f" **Not a valid measurement** ({result['size']}): {'; '.join(result['doubts'])}."
        for result in results
        if not result["valid"]
    )
    return (
        f"`score_many` of JPEG photos of 1 to 4 megapixels, five crops, fp32, {results[0]['backend']} "
        f"({machine['cpu']}, {machine['cores']} cores; each contender in a process of its own, medians of interleaved "
        f"rounds):{doubts}\n\n"
        + table(["model", "decoding and inference", "images/s", "times as fast (range)", "same scores"], rows)
    )


def training() -> str:
    """Steps of training in the authors' way and in ours."""
    result = load("train_throughput-*.json")
    if result is None:
        return "not measured"
    machine, names = result["machine"], {"authors": "text for each photo at 77 tokens, the authors' way"}
    names |= {"once": "text once a scene, at its own length", "cached": "the same, with cached activations"}
    rows = [
        [names[way], f"{seconds:.1f} s", f"{result['ratios'][way]:.2f}"]
        for way, seconds in result["seconds_a_step"].items()
    ]
    doubt = "" if result["valid"] else f" **Not a valid measurement**: {'; '.join(result['doubts'])}."
    return (
        f"A step of {result['batch']} photos, full size, fp32 ({machine['cpu']}, {machine['cores']} cores; each in a "
        f"process of its own, medians of {len(result['rounds'])} interleaved rounds; losses within "
        f"{result['loss_difference']:.0e} of each other):{doubt}\n\n"
        + table(["way of training", "seconds a step", "times as fast"], rows)
        + scaling(load("train_scaling-*.json"))
    )


def scaling(result: dict[str, Any] | None) -> str:
    """Two processes that train together against one; nothing while that is not measured."""
    if result is None:
        return ""
    machine, seconds = result["machine"], result["seconds_a_step"]
    rows = [[way, f"{one:.2f} s", f"{seconds['one thread'] / one:.2f}"] for way, one in seconds.items()]
    doubt = "" if result["valid"] else f" **Not a valid measurement**: {'; '.join(result['doubts'])}."
    return (
        f"\n\nThe same batch of {result['batch']}, cached activations, on two processes (DDP over gloo, a thread each) "
        f"and on one ({machine['cpu']}, {machine['cores']} cores; medians of {len(result['rounds'])} interleaved "
        f"rounds; losses within {result['loss_difference']:.0e} of each other; exchanging gradients takes "
        f"{result['exchange_share']:.0%} of a step):{doubt}\n\n"
        + table(["processes and threads", "seconds a step", "times as fast"], rows)
    )


def demo() -> str:
    """What `make demo` printed, without the progress on stderr; long tables are cut after some rows."""
    path = RESULTS / "make_demo.txt"
    if not path.exists():
        return "not measured"
    lines: list[str] = []
    rows = 0
    for line in path.read_text().splitlines():
        rows = rows + 1 if line.startswith(" ") else 0
        if rows <= ROWS_SHOWN + 2:  # title and rule
            lines.append(line)
        elif rows == ROWS_SHOWN + 3:
            lines.append(" ...")
    return "\n".join(f"    {line}".rstrip() for line in lines)


def accuracy(name: str) -> str:
    """Correlation with the labels of the test photos: in PyTorch, and after export."""
    result = load(f"accuracy-{name}.json")
    if result is None:
        return "not measured"
    titles = ["set", "photos", "scored by", "SRCC (95 %)", "PLCC", "KRCC", "RMSE"]
    names = {"pytorch": "PyTorch, fp32", "fp32": "bundle, fp32", "fp16": "bundle, fp16 (emulated)"}
    rows = [
        [
            row["name"],
            str(row["photos"]),
            names[source],
            f"{row['srcc']:.4f} ({row['interval']['srcc'][0]:.3f} to {row['interval']['srcc'][1]:.3f})",
            *(f"{row[one]:.3f}" for one in ("plcc", "krcc", "rmse")),
        ]
        for source, found in result["sources"].items()
        for row in found["sets"]
    ]
    return table(titles, rows)


def distortions() -> str:
    """The demo checkpoint, kind by kind."""
    result = load("accuracy-demo.json")
    if result is None:
        return "not measured"
    rows = [
        [
            row["name"],
            f"{row['srcc']:.3f}",
            " ".join(f"{mean:.2f}" for mean in row["means"]),
            "yes" if row["mean_falls"] else "NO",
            f"{row['monotone']} of {row['contents']}",
        ]
        for row in result["sources"]["pytorch"]["distortions"]
    ]
    titles = ["distortion", "SRCC within it", "mean score, level 1 to 5", "falls", "photos whose scores fall"]
    falls = sum(row["mean_falls"] for row in result["sources"]["pytorch"]["distortions"])
    shown = table(titles, rows)
    return f"{shown}\n\nThe mean score falls over all five levels for {falls} of {len(rows)} distortions."


def study() -> str:
    """How well the study checkpoint judges, beside what is simpler, and what its experts do."""
    result = load("study.json")
    if result is None:
        return "not measured"
    name, test = "biq2021", {part: found["test"] for part, found in result["parts"].items()}
    ridge = result["ridge"]["srcc"]
    judged = [("ridge regression on the base's frozen features", ridge["value"], ridge["interval"])]
    for part, what in (("head", "head alone"), ("tower", "and the last six blocks, without experts"), ("run", "Gamma")):
        judged.append((what, test[part][name]["srcc"], test[part][name]["srcc_interval"]))
    rows = [[what, f"{srcc:.3f} ({low:.3f} to {high:.3f})"] for what, srcc, (low, high) in judged]
    blocks = [
        [
            str(row["block"]),
            f"{row['scale']:.2f}",
            f"{row['gate_entropy']:.2f}",
            f"{100 * row['expert_difference']:.0f}%",
            f"{100 * row['share']:.0f}%",
        ]
        for row in result["experts"]
    ]
    photos = test["run"][name]["photos"]
    titles = ["block", "scale", "entropy of the gates", "experts' difference", "share of the block's output"]
    return f"{table([f'{photos} test photos of BIQ2021', 'SRCC (95 %)'], rows)}\n\n{table(titles, blocks)}"


def cpp_overhead() -> str:
    """The C++ runtime beside the Python one."""
    files = sorted(RESULTS.glob("cpp_overhead-*.json"))
    if not files:
        return "not measured"
    rows, goals, doubts = [], [], []
    for result in (json.loads(path.read_text()) for path in files):
        size = f"{result['size']}, weights {result['weights_bytes'] / 1e6:.0f} MB"
        for name, one in result["contenders"].items():
            times = (f"{one['overhead_ms']:.1f} ms", f"{one['infer_ms']:.0f} ms", f"{one['cold_start_s']:.2f} s")
            rows.append([size, name, *times, f"{one['anonymous_mb']:.0f} MB", f"{one['resident_mb']:.0f} MB"])
        for goal in result["goals"]:
            met = "met" if goal["met"] else "**not met**"
            goals.append(f"{result['size']}: {goal['what']} {goal['measured']:.2g} {goal['unit']}, {met}")
        doubts += [f" **Not a valid measurement** ({result['size']}): {'; '.join(result['doubts'])}."] * bool(
            result["doubts"]
        )
    machine = result["machine"]
    titles = ["model", "runtime", "overhead an image", "inference", "cold start", "anonymous memory", "resident"]
    return (
        f"JPEG photos of 1 to 4 megapixels, fp32 on OpenVINO, one thread ({machine['cpu']}, {machine['cores']} cores; "
        f"medians of {len(result['rounds'])} interleaved rounds).{''.join(doubts)}\n\n"
        + table(titles, rows)
        + f"\n\nGoals: {'; '.join(goals)}."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "demo": demo,
    "fidelity": fidelity,
    "export cost": export_cost,
    "eager": eager,
    "overlap": overlap,
    "training": training,
    "accuracy demo": partial(accuracy, "demo"),
    "study": study,
    "accuracy study": partial(accuracy, "study"),
}
AGAINST_BLOCKS: dict[str, Callable[[], str]] = {"against": against}  # to BLOCKS once it has been measured
CARD_BLOCKS = {"accuracy demo": BLOCKS["accuracy demo"], "distortions": distortions}
INT8_BLOCKS: dict[str, Callable[[], str]] = {"int8": int8}
FILES = {
    ROOT / "README.md": BLOCKS | AGAINST_BLOCKS,
    ROOT / "gamma_export" / "data" / "demo" / "CARD.md": CARD_BLOCKS,
    ROOT / "docs" / "int8.md": INT8_BLOCKS,
    ROOT / "docs" / "cpp.md": {"cpp": cpp_overhead},
}


def fill(text: str, blocks: Mapping[str, Callable[[], str]] = BLOCKS) -> str:
    """A text with every block between its markers made anew."""
    for name, make in blocks.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, make=make: f"{match[1]}\n{make()}\n\n{match[2]}", text)
        if count != 1:
            raise SystemExit(f"{count} blocks named {name!r}, expected 1")
    return text


if __name__ == "__main__":
    for path, blocks in FILES.items():
        path.write_text(fill(path.read_text(), blocks))
    sys.exit(0)
