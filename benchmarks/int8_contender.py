"""Child process of int8: score photos with one graph, or make the naive INT8 graph that everybody makes first."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import option, out, run_command

NAIVE_PHOTOS = 32  # the first ones of the list


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContenderOptions:
    """What to do with which graph."""

    name: Literal["score", "naive"] = option(help="score photos, or quantise naively")
    bundle: Path = option(help="whose contract the photos go through")
    graph: Path = option(help="the ONNX file; for naive the fp32 one")
    photos: Path = option(help="list of photos, a path a line")
    scene: str = option(help="whose working size they go through")
    backend: str = option("onnxruntime", "that scores")
    target: Path | None = option(None, "naive: the file to write")


def crops_of(options: ContenderOptions) -> Iterator[NDArray[np.uint8]]:
    """uint8 [1, C, 224, 224, 3], photo by photo."""
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.crops import prepare

    contract = open_bundle(options.bundle).contract()
    for line in options.photos.read_text().splitlines():
        yield prepare(line, contract, options.scene).crops[None]


def naive(options: ContenderOptions) -> dict[str, Any]:
    """ONNX Runtime's quantiser as it comes: Q/DQ around every operator it knows, per-tensor, min and max."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.crops = itertools.islice(crops_of(options), NAIVE_PHOTOS)

        def get_next(self) -> dict[str, Any] | None:
            crops = next(self.crops, None)
            return None if crops is None else {"crops": crops}

    quantize_static(str(options.graph), str(options.target), Reader(), use_external_data_format=True)
    return {}


def score(options: ContenderOptions) -> dict[str, Any]:
    """Scores [photos][scenes]: the mean over each photo's crops."""
    from gamma_runtime.backends import create

    with create(options.backend, options.graph) as backend:
        scores = [backend.infer(crops).score[0] for crops in crops_of(options)]
        return {"version": backend.version, "scores": [np.atleast_1d(row).astype(float).tolist() for row in scores]}


def contend(options: ContenderOptions) -> int:
    """Do it, and print what came of it as JSON."""
    out(json.dumps(naive(options) if options.name == "naive" else score(options)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("int8_contender", contend, ContenderOptions))
