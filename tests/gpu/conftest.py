"""What the GPU tests share: a device that torch can use, and a way to note what they measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from tests.gpu.graphs import Measured


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Notes values for the JUnit report, from which tests/gpu_check.py makes measurements.json."""

    def note(**values: Any) -> None:
        # Not pytest's record_property: it warns with the xunit2 family, and warnings are errors here.
        request.node.user_properties.extend((name, json.dumps(value)) for name, value in values.items())

    return note


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The first GPU, when this torch can use it."""
    import torch

    if torch.version.cuda is None:
        pytest.skip(f"torch {torch.__version__} is built without CUDA; install a CUDA build to run this")
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU that it can use")
    return torch.device("cuda", 0)
