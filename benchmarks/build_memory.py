"""What a build takes: peak resident memory and seconds of TensorRT-RTX builds on the CPU, plain and with --low-memory.

It is TensorRT-RTX without a GPU, not TensorRT on a board: it checks the rule of `gamma_runtime.engines.memory` and
shows which options matter to this compiler. Weights are random; they are what a plan consists of.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from common import BenchmarkOptions, Bystanders, checkpoint, command, machine_facts, run_child, write_result

from gamma_runtime.cli import log, option, out, run_command

_MIB = 1 << 20
_VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "low memory": ["--low-memory"],
    "level 0": ["--optimization-level", "0"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BenchmarkOptions):
    """Flags."""

    precision: str = option("fp32,fp16", "of the exported bundle")


def _bundle(options: Options) -> Path:
    """Exported once, without verification of every scene: only its size matters here."""
    path = options.work / f"build-memory-{'tiny' if options.tiny else 'full'}.gamma"
    if not (path / "manifest.json").is_file():
        log(f"making {path.name}, once")
        scene = ["--scene", "natural-quality"]
        run_child([command("gamma-export"), checkpoint(options), "-o", path, "--precision", options.precision, *scene])
    return path


def _round(bundle: Path, folder: Path) -> dict[str, Any]:
    """Every variant of every precision, into an empty folder, so that each prediction is the rule's."""
    found: dict[str, Any] = {}
    for name, flags in _VARIANTS.items():
        for path in folder.glob("*"):
            path.unlink()
        arguments = [bundle, "--engine", "tensorrt-rtx", "--engine-dir", folder, "--quiet", "--json", *flags]
        dry = json.loads(run_child([command("gamma-build"), *arguments, "--dry-run"]).output)
        built = json.loads(run_child([command("gamma-build"), *arguments]).output)
        for plan, entry in zip(dry["builds"], built["engines"], strict=True):
            found[f"{entry['precision']} {name}"] = {
                "weights_bytes": plan["weights_bytes"],
                "predicted_mib": plan["needed_mib"]["host"],
                "peak_mib": entry["peak_rss"] // _MIB,
                "seconds": entry["seconds"],
                "plan_bytes": entry["size"],
            }
    return found


def build_memory(options: Options) -> int:
    """Peak memory of engine builds against the prediction."""
    bystanders, machine = Bystanders(), machine_facts()
    options.work.mkdir(parents=True, exist_ok=True)
    bundle = _bundle(options)
    folder = options.work / "build-memory-engines"
    folder.mkdir(exist_ok=True)
    rounds = [_round(bundle, folder) for _ in range(options.rounds)]
    worst = {
        name: {
            **rounds[0][name],
            "peak_mib": max(r[name]["peak_mib"] for r in rounds),
            "seconds": max(r[name]["seconds"] for r in rounds),
        }
        for name in rounds[0]
    }
    version = json.loads((folder / "engines.json").read_text())["engines"][0]["version"]
    result = {
        "what": f"TensorRT-RTX {version} on the CPU; not TensorRT, not a board",
        "tiny": options.tiny,
        "machine": machine,
        "doubts": bystanders.doubts(),
        "rounds": rounds,
        "worst": worst,
    }
    for name, row in worst.items():
        out(f"{name}: peak {row['peak_mib']} MiB, predicted {row['predicted_mib']} MiB, {row['seconds']:.1f} s")
    write_result("build_memory", options, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("build_memory", build_memory, Options))
