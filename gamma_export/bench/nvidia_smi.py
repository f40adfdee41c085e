"""What nvidia-smi says about each GPU: clocks, power, heat, and why its clocks are held back.

The query is `QUERY`, its output CSV with a header; ``-lms 200`` repeats it, one line a GPU and moment. Reading only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from gamma_runtime.errors import InputError

__all__ = ["HOLDING_BACK", "QUERY", "REASONS", "Gpu", "parse", "reasons"]

QUERY = (
    *("name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks_event_reasons.active", "power.draw"),
    "temperature.gpu",
)
# Bits of NVML's NvmlClocksEventReasons.
REASONS = {
    0x1: "idle",
    0x2: "application clocks set",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat",
    0x40: "heat (hardware)",
    0x80: "power brake",
    0x100: "display clocks set",
}
HOLDING_BACK = 0x4 | 0x8 | 0x20 | 0x40 | 0x80  # these falsify a measurement; idleness and chosen clocks do not

# Drivers before 535 call the reasons "throttle" reasons; GPUs with several power sensors name the one they report.
_OTHER_NAMES = {
    "clocks_throttle_reasons.active": "clocks_event_reasons.active",
    "clocks.current.sm": "clocks.sm",
    "clocks.current.memory": "clocks.mem",
    "power.draw.instant": "power.draw",
    "power.draw.average": "power.draw",
}
_UNITS = {"clocks.sm": "MHz", "clocks.mem": "MHz", "power.draw": "W"}
_UNKNOWN = re.compile(r"\[?(?:N/A|Not Supported|Unknown Error|GPU requires reset|Insufficient Permissions)\]?")
_NUMBER = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(?: (\S+))?", re.ASCII)
_BITS = re.compile(r"0x[0-9a-fA-F]{1,16}")
_LONGEST = 1 << 16  # characters of a line

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU at one moment; None is what it does not report.

    Attributes:
        name: e.g. ``NVIDIA L4``.
        driver: its version.
        pstate: performance state, ``P0`` is the fastest.
        sm_mhz, memory_mhz: clocks.
        reason_bits: why the clocks are not higher.
        watts: power drawn.
        celsius: of the GPU.
    """

    name: str | None
    driver: str | None
    pstate: str | None
    sm_mhz: int | None
    memory_mhz: int | None
    reason_bits: int | None
    watts: float | None
    celsius: float | None

    @property
    def reasons(self) -> tuple[str, ...]:
        """The bits in words."""
        return reasons(self.reason_bits or 0)

    @property
    def held_back(self) -> tuple[str, ...]:
        """Those that falsify a measurement, in words."""
        return reasons((self.reason_bits or 0) & HOLDING_BACK)


def reasons(bits: int) -> tuple[str, ...]:
    """Bits in words, the lowest first; one that is not known keeps its number.

    Example:
        >>> reasons(0x24)
        ('power cap', 'heat')
    """
    names = [name for bit, name in REASONS.items() if bits & bit]
    unknown = bits & ~sum(REASONS)
    return (*names, *((f"unknown 0x{unknown:x}",) if unknown else ()))


def parse(text: str) -> list[Gpu]:
    """Every line of ``nvidia-smi --query-gpu=... --format=csv``, in order; columns may stand in any order.

    Raises:
        InputError: no header, columns that are not there, or a value that cannot be read.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise InputError("nvidia-smi: it said nothing", hint="--query-gpu=" + ",".join(QUERY) + " --format=csv")
    columns = _header(lines[0])
    found = []
    for number, line in enumerate(lines[1:], 2):
        if len(line) > _LONGEST:
            raise InputError(f"nvidia-smi: line {number} has {len(line)} characters")
        if line.split() == lines[0].split():
            continue  # the header again, of a log that was appended to
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(columns):
            raise InputError(f"nvidia-smi: line {number} has {len(cells)} values for {len(columns)} columns")
        found.append(_gpu(dict(zip(columns, cells, strict=True)), number))
    if not found:
        raise InputError("nvidia-smi: a header and no GPU")
    return found


def _header(line: str) -> list[str]:
    columns = []
    for cell in line[:_LONGEST].split(","):
        name, _, unit = cell.strip().partition(" ")
        name = _OTHER_NAMES.get(name, name)
        if unit and unit != f"[{_UNITS.get(name)}]":
            raise InputError(f"nvidia-smi: column {cell.strip()[:60]!r} has an unknown unit")
        columns.append(name)
    missing = [name for name in QUERY if name not in columns]
    if missing or len(set(columns)) < len(columns):
        raise InputError(
            f"nvidia-smi: no columns {', '.join(missing)}" if missing else "nvidia-smi: a column stands there twice",
            hint="--query-gpu=" + ",".join(QUERY) + " --format=csv",
        )
    return columns


def _gpu(cells: Mapping[str, str], number: int) -> Gpu:
    def read(column: str, convert: Callable[[str, str], T]) -> T | None:
        cell = cells[column]
        if _UNKNOWN.fullmatch(cell):
            return None
        try:
            return convert(column, cell)
        except ValueError as error:
            raise InputError(f"nvidia-smi: line {number}, {column} cannot be read: {cell[:40]!r}") from error

    return Gpu(
        name=read("name", _word),
        driver=read("driver_version", _word),
        pstate=read("pstate", _word),
        sm_mhz=read("clocks.sm", _whole),
        memory_mhz=read("clocks.mem", _whole),
        reason_bits=read("clocks_event_reasons.active", _bits),
        watts=read("power.draw", _number),
        celsius=read("temperature.gpu", _number),
    )


def _word(_: str, cell: str) -> str:
    if not cell:
        raise ValueError("empty")
    return cell


def _number(column: str, cell: str) -> float:
    found = _NUMBER.fullmatch(cell)
    if not found or found[2] not in (None, _UNITS.get(column)):
        raise ValueError("no number, or of another unit")
    return float(found[1])


def _whole(column: str, cell: str) -> int:
    value = _number(column, cell)
    if value != int(value):
        raise ValueError("a fraction")
    return int(value)


def _bits(_: str, cell: str) -> int:
    if not _BITS.fullmatch(cell):
        raise ValueError("no bits")
    return int(cell, 16)
