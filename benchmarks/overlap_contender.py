"""Child process of overlap: makes the photos, or scores them once with score_many and prints how long it took.

Loading, compiling and one warm-up pass over eight photos are not timed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path

from gamma_runtime.cli import option, out, run_command
from gamma_runtime.errors import UsageError

WARM_UP = 8
SIZES = (1.0, 1.5, 2.0, 3.0, 4.0)  # megapixels, in turn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to score."""

    photos: Path = option(help="folder of the photos")
    count: int = option(help="how many")
    prepare: bool = option(False, "make the photos")
    bundle: Path | None = option(None, "what scores them")
    backend: str = option("onnxruntime", "the library that runs the graph")
    decode_threads: int | None = option(None, "as gamma-run has it")


def prepare(folder: Path, count: int) -> None:
    """Packaged photos enlarged to 1 to 4 megapixels, JPEG quality 90; kept when they are there."""
    import cv2

    from gamma_export.photos import packaged_photos

    folder.mkdir(parents=True, exist_ok=True)
    sources = packaged_photos()
    for index in range(count):
        target = folder / f"{index:04}.jpg"
        if target.is_file():
            continue
        pixels = cv2.imread(str(sources[index % len(sources)]))
        factor = (SIZES[index % len(SIZES)] * 1e6 / (pixels.shape[0] * pixels.shape[1])) ** 0.5
        larger = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(target), larger, [cv2.IMWRITE_JPEG_QUALITY, 90])


def contend(options: Options) -> int:
    """Score the photos once."""
    from gamma_runtime.scorer import load

    if options.prepare:
        prepare(options.photos, options.count)
        return 0
    if options.bundle is None:
        raise UsageError("--bundle is needed")
    paths = sorted(options.photos.glob("*.jpg"))[: options.count]
    with load(options.bundle, backend=options.backend) as scorer:
        list(scorer.score_many(paths[:WARM_UP], decode_threads=options.decode_threads))
        start = time.perf_counter()
        scores = list(scorer.score_many(paths, decode_threads=options.decode_threads))
        seconds = time.perf_counter() - start
    digest = hashlib.sha256(json.dumps([score.crop_scores for score in scores]).encode()).hexdigest()
    found = {"seconds": seconds, "images_per_second": len(scores) / seconds, "scores_sha256": digest}
    out(json.dumps(found | {"process_seconds": time.process_time()}))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("overlap_contender", contend, Options))
