"""The demo checkpoint: a small Gamma in the authors' layout with seeded random weights. It has learned nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gamma_training.dims import FULL_SIZE, GammaDims

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_training.model import Gamma

__all__ = ["LABEL", "conditioned_model", "demo_checkpoint"]

LABEL = "untrained"
_SEED = 20251027
_NAME = "gamma-demo-untrained-1.pth"
_SOFT_LOGITS = 3.2  # ln 25: CLIP's ln 100 puts nearly every score of random weights at one of the ends


def demo_checkpoint(folder: Path | None = None) -> Path:
    """Path of the demo checkpoint; made on first use (some seconds), then kept in the user's cache folder.

    Raises:
        OutputError: the cache folder cannot be written.
    """
    from gamma_runtime.errors import OutputError
    from gamma_training.checkpoint import write_authors
    from gamma_training.initialise import smaller

    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gamma-edge"
    except RuntimeError as error:  # a user without an entry in passwd, as containers have
        raise OutputError(f"no home folder for the demo checkpoint ({error})", hint="set XDG_CACHE_HOME") from error
    path = (folder or cache) / _NAME
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be made ({error.strerror})", hint="set XDG_CACHE_HOME") from error
        dims = smaller(FULL_SIZE, width=192, layers=6, first_moae=3)
        model, _, _ = conditioned_model(dims, _SEED, logit_scale=_SOFT_LOGITS)
        write_authors(path, model.state_dict(), label=LABEL, prompts="sdp")
    return path


def conditioned_model(dims: GammaDims, seed: int, *, logit_scale: float | None = None) -> tuple[Gamma, Tensor, float]:
    """A Gamma with seeded random weights, conditioned on the packaged photos so that they get different scores.

    Random weights as drawn hide errors: all scores lie within 0.03 of each other.

    Args:
        dims: the model's dimensions.
        seed: of the weights.
        logit_scale: CLIP's ln 100 when None.

    Returns:
        The module, the text features [25, embed] of the five built-in scenes, and the standard deviation of the first
        scene's scores over the photos' centre crops.
    """
    import torch

    from gamma_export.parity import verification_crops
    from gamma_export.photos import VERIFICATION_COPIES, packaged_photos
    from gamma_training.initialise import condition, random_state
    from gamma_training.model import Gamma
    from gamma_training.scenes import encode_scenes, scenes_of

    state = random_state(dims, seed)
    if logit_scale is not None:
        state["clip_model.logit_scale"] = torch.tensor(logit_scale)
    with torch.device("meta"):
        model = Gamma(dims)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False).eval()
    text = encode_scenes(model, scenes_of("sdp"))
    photos = verification_crops(packaged_photos())[:: 1 + len(VERIFICATION_COPIES)]
    return model, text, condition(model, photos, text[: dims.levels])
