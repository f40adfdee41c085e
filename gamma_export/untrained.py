"""A Gamma with seeded random weights, for tests and benchmarks that need a size and not a judgement."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_training.dims import GammaDims
    from gamma_training.model import Gamma

__all__ = ["LABEL", "conditioned_model"]

LABEL = "untrained"


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
