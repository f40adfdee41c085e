"""An int8 bundle of a tiny Gamma with one loud channel in its residual stream, as CLIP's ViTs have them."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from gamma_calib.commands.explain import ExplainOptions, explain_command
from gamma_export.exporter import export
from gamma_export.photos import packaged_photos
from gamma_runtime.bundle import Bundle, open_bundle
from gamma_runtime.cli import run_command
from tests import tiny_export

LOUD, SIZE = 17, 40.0  # the channel, and what the stream carries in it from its start


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gamma-tests-")  # removed when the interpreter ends


@functools.cache
def checkpoint() -> Path:
    """Two blocks, one with experts, width 64."""
    from gamma_training.checkpoint import write_authors
    from gamma_training.dims import FULL_SIZE
    from gamma_training.initialise import random_state, smaller

    path = Path(_root().name) / "loud.pth"
    state = dict(random_state(smaller(FULL_SIZE, width=64, layers=2, first_moae=1), 7))
    bias = state["clip_model.visual.ln_pre.bias"].clone()
    bias[LOUD] += SIZE
    write_authors(path, state | {"clip_model.visual.ln_pre.bias": bias}, label="untrained", prompts="sdp")
    return path


@functools.cache
def bundle() -> Bundle:
    """Calibrated on eight photos by mse; any recipe passes its gate, so all groups are int8. Read-only by agreement."""
    photos = Path(_root().name) / "photos"
    photos.mkdir()
    for photo in packaged_photos()[2:10]:
        shutil.copy(photo, photos)
    chosen = tiny_export.options(
        precision=("int8",), calib=(photos,), calib_min=8, calib_method="mse", gate=0.9, skip_speed=True,
        scene=tiny_export.SCENES[:1],
    )  # fmt: skip
    out = Path(_root().name) / "loud.gamma"
    assert export(checkpoint(), out, chosen).published
    return open_bundle(out)


def record_file() -> Path:
    """Of its calibration."""
    return bundle().folder.with_suffix(".calib") / "record"


def run(*arguments: str | Path) -> int:
    """gamma-calib explain."""
    return run_command("gamma-calib explain", explain_command, ExplainOptions, [str(part) for part in arguments])
