"""gamma_runtime: a bundle and an image in, a score out. The leaf that an edge device installs: no torch, no onnx.

Example:
    >>> import gamma_runtime
    >>> scorer = gamma_runtime.load("photo.gamma", scene="natural-quality")
    >>> scorer.score("photo.jpg").value
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gamma_runtime.scorer import Score, Scorer, load

__all__ = ["Score", "Scorer", "__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the scorer on first use: `import gamma_runtime` alone costs nothing."""
    if name in ("Score", "Scorer", "load"):
        from gamma_runtime import scorer

        return getattr(scorer, name)
    raise AttributeError(f"module 'gamma_runtime' has no attribute {name!r}")
