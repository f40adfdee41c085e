"""The demo checkpoint: a small Gamma that learned to see distortions. What it is worth stands in data/demo/CARD.md."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PACKAGED", "demo_checkpoint"]

PACKAGED = Path(__file__).parent / "data" / "demo" / "gamma-demo.safetensors"


def demo_checkpoint() -> Path:
    """Path of the checkpoint that ships with the package.

    Raises:
        EnvironmentFault: this installation has none.
    """
    from gamma_runtime.errors import EnvironmentFault

    if not PACKAGED.is_file():
        raise EnvironmentFault(f"{PACKAGED}: the demo checkpoint is missing", hint="install gamma-edge anew")
    return PACKAGED
