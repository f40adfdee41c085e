"""Child process of cpp_overhead: what of each score's time in Python is not inference, and the memory then held."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from pathlib import Path

from gamma_runtime.cli import option, out, run_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to score."""

    bundle: Path = option(help="what scores")
    photos: Path = option(help="folder of JPEG photos")
    threads: int = option(1, "of the inference")
    passes: int = option(3, "over all photos, after one that is not counted")


def contend(options: Options) -> int:
    """Score every photo by itself."""
    from gamma_runtime.scorer import load

    paths = sorted(options.photos.glob("*.jpg"))
    total, infer, scores = [], [], []
    with load(options.bundle, backend="openvino", threads=options.threads) as scorer:
        (graph,) = scorer.panel._graphs
        for counted in range(options.passes + 1):
            for path in paths:
                start = time.perf_counter()
                score = scorer.score(path)
                took = (time.perf_counter() - start) * 1e3
                if counted == 0:
                    scores.append(score.value)
                else:
                    total.append(took)
                    infer.append(graph.backend.last_ms)
        memory = dict(re.findall(r"(?m)^(RssAnon|VmRSS):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    found = {"total_ms": total, "infer_ms": infer, "scores": scores}
    sizes = {"anonymous_bytes": int(memory["RssAnon"]) << 10, "resident_bytes": int(memory["VmRSS"]) << 10}
    out(json.dumps(found | sizes))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("cpp_contender", contend, Options))
