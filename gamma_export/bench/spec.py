"""What the parent asks of a child process."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

__all__ = ["Spec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """One contender, and what to measure of it. Paths are absolute.

    Attributes:
        started: the monotonic clock's seconds when the parent started the process.
        start_only: nothing but the cold start.
        profile: count the graph's work and profile it behind everything else; needs onnx.
        within: half width of the median's interval that is aimed at, a share.
        seconds: limit of each row.
    """

    bundle: str
    scene: str
    backend: str
    precision: str
    threads: int | None
    engine_dir: str | None
    photos: tuple[str, ...]
    batches: tuple[int, ...]
    rates: tuple[float, ...]
    streams: tuple[int, ...]
    seconds: float
    within: float
    started: float = 0.0
    start_only: bool = False
    profile: bool = False

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The specification that a parent wrote."""
        plain: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
        return cls(**fields)
