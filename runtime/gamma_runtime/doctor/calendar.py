"""The dated table of what JetPack brings: L4T, TensorRT, CUDA and Python go together and are not chosen one by one."""

from __future__ import annotations

import dataclasses

__all__ = ["TABLE_DATE", "JetPack", "jetpack_of"]

TABLE_DATE = "2026-11"


@dataclasses.dataclass(frozen=True)
class JetPack:
    """One row. ``l4t`` is the first release it holds for, up to the next row's."""

    name: str
    l4t: tuple[int, ...]
    tensorrt: str
    cuda: str
    python: str
    note: str = ""


_ROWS = (
    JetPack("5", (35,), "8.5", "11.4", "3.8", "too old: gamma-edge needs TensorRT 10.3 and Python 3.10"),
    JetPack("6.0", (36, 3), "8.6", "12.2", "3.10", "too old: its TensorRT is 8.6; update to JetPack 6.2"),
    JetPack("6.1", (36, 4, 0), "10.3", "12.6", "3.10"),
    JetPack("6.2", (36, 4, 3), "10.3", "12.6", "3.10", "stays on TensorRT 10.3: 11.x does not support JetPack 6"),
    JetPack("7.0", (38, 2), "10.13.3", "13.0", "3.12"),
    JetPack("7.1", (38, 4), "10.13.3", "13.0", "3.12"),
    JetPack("7.2", (39, 2, 0), "10.16.2", "13.2", "3.12"),
    JetPack(
        "7.2.2 or later",
        (39, 2, 2),
        "10.16.2",
        "13.2",
        "3.12",
        "AGX Orin and Thor can take TensorRT 11.4.1, from NVIDIA's SBSA package",
    ),
)


def jetpack_of(l4t: str) -> JetPack | None:
    """The row of an L4T release such as ``36.4.3``; None for one that is older than the table.

    Example:
        >>> jetpack_of("36.4.3").tensorrt
        '10.3'
    """
    numbers = tuple(int(part) for part in l4t.split(".") if part.isdigit())
    fitting = [row for row in _ROWS if row.l4t[0] == numbers[0] and row.l4t <= (*numbers, 0, 0)]
    return fitting[-1] if fitting else None
