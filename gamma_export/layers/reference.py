"""What the PyTorch module itself computes, seen through forward hooks: the yardstick for accumulated drift."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gamma_export.fold import PIXEL_CENTRE

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gamma_export.layers.stages import Stage
    from gamma_training.model import Gamma

__all__ = ["centred", "reference_taps"]


def centred(crops: np.ndarray[Any, Any]) -> Tensor:
    """uint8 pixels -> float32 in -1 to 1, the graph's first step; exact in every precision."""
    import torch

    return (torch.from_numpy(crops).float() - PIXEL_CENTRE) / PIXEL_CENTRE


def reference_taps(
    model: Gamma, text: Tensor, crops: np.ndarray[Any, Any], stages: Sequence[Stage]
) -> dict[str, Tensor]:
    """Every stage's tensor in one float32 pass of the module.

    Args:
        model: in eval mode.
        text: L2-normalised text features [5 * K, embed].
        crops: uint8 [B, 224, 224, 3].
        stages: `gamma_stages` of the model's dimensions.

    Returns:
        Stage name -> float32 tensor, shaped as the stage's ``run`` shapes it.
    """
    import torch

    with torch.inference_mode(), _hooks(model, stages) as seen:
        features = model.image_features(torch.from_numpy(crops))
        seen["pixels"] = centred(crops)
        seen["unit feature"] = features / features.norm(dim=-1, keepdim=True)
        seen["logits"] = model.clip_model.logit_scale.exp() * seen["unit feature"] @ text.T
        seen["scores"] = model.head(features, text)
    for name, value in seen.items():
        if name.endswith(" gates"):
            seen[name] = torch.nn.functional.pad(value, (1, 0), value=1.0)  # the shared expert's
    return seen


@contextlib.contextmanager
def _hooks(model: Gamma, stages: Sequence[Stage]) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    handles = []

    def entering(name: str) -> Any:
        return lambda _module, args: seen.__setitem__(name, args[0])

    def leaving(name: str) -> Any:
        return lambda _module, _args, result: seen.__setitem__(name, result)

    for stage in stages:
        if stage.hook is None:
            continue
        path, side = stage.hook
        module = model.get_submodule(path)
        handles.append(
            module.register_forward_pre_hook(entering(stage.name))
            if side == "in"
            else module.register_forward_hook(leaving(stage.name))
        )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
