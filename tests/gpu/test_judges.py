"""On a GPU: a checkpoint is evaluated there as it is on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from gamma_training.judges import JudgeOptions, open_judge
from tests import tiny_export

pytestmark = pytest.mark.gpu


def test_a_checkpoint_scores_on_the_gpu_as_on_the_cpu() -> None:
    """True float32: with TF32 in the patches' convolution the scores are some 1e-4 off."""
    import torch

    before = torch.backends.cudnn.allow_tf32
    crops = np.random.default_rng(1).integers(0, 256, (9, 224, 224, 3), dtype=np.uint8)
    for scene in tiny_export.SCENES:
        on_cpu, on_gpu = (
            open_judge(tiny_export.checkpoint(), (scene,), JudgeOptions(device=device, batch=4)).score(crops, scene)
            for device in ("cpu", "cuda")
        )
        assert np.ptp(on_cpu) > 1e-4
        assert on_gpu == pytest.approx(on_cpu, abs=1e-5)
    assert torch.backends.cudnn.allow_tf32 == before
