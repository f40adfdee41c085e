"""What NVIDIA's tegrastats says about a Jetson during a run: memory, loads, clocks, temperatures, power.

One line is one sample. The fields differ between modules and JetPack versions, so every known one is optional and
unknown ones are skipped; but a known field whose number cannot be read is an error, never a zero.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from gamma_runtime.errors import InputError

__all__ = ["INPUT_RAILS", "Clock", "Memory", "Rail", "Sample", "Summary", "parse_line", "parse_lines", "summarise"]

# What the whole board or module draws, in the order of preference: VIN of Thor's board, VDD_IN of the modules. The
# AGX Orin and AGX Xavier measure no such sum: there the rails are added up, which leaves out the carrier board.
INPUT_RAILS = ("VIN", "VDD_IN", "POM_5V_IN")
_WITHIN = ("VDDQ_VDD2_1V8AO",)  # AGX Orin: fed from VIN_SYS_5V0, which is measured too
_NOT_A_RAIL = ("NC",)  # a channel of the monitor that is not connected
_OFF_CELSIUS = -256.0  # what a sensor in a unit without power reads

_STAMP = re.compile(r"(\d{2})-(\d{2})-(\d{4}) (\d{2}):(\d{2}):(\d{2})(?=\s|$)", re.ASCII)
_MEMORY = re.compile(r"(\d{1,9})/(\d{1,9})MB(?=\s|$)(?: \(lfb (\d{1,9})x(\d{1,9})([kM])B\))?", re.ASCII)
_CORE = re.compile(r"(?:(\d{1,9})%)?@(\d{1,9})|(\d{1,9})%", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,9})%)?(?:@(?:(\d{1,9})|\[(\d{1,9}(?:,\d{1,9})*)\]))?(?=\s|$)", re.ASCII)
_TEMPERATURE = re.compile(r"(?<=\s)([A-Za-z][\w.-]*)@(\S+)C(?=\s|$)", re.ASCII)
_CELSIUS = re.compile(r"-?\d{1,9}(?:\.\d{1,9})?", re.ASCII)
_RAIL = re.compile(
    r"(?<=\s)((?:VDD|VIN|POM_)\w*|(?:CPU|GPU|SOC|CV|SYS5V|NC)(?= -?\d{1,9}(?:mW)?/))(?: (\S+)|$)", re.ASCII
)
_MILLIWATTS = re.compile(r"(-?\d{1,9})mW/(-?\d{1,9})mW(?:/(-?\d{1,9})mW)?|(-?\d{1,9})/(-?\d{1,9})", re.ASCII)
_LONGEST = 1 << 14  # characters: a real line has fewer than 1000


@dataclasses.dataclass(frozen=True)
class Memory:
    """Megabytes in use and in all; ``largest_free`` is the largest free block, None where it is not said."""

    used: int
    total: int
    largest_free: float | None = None


@dataclasses.dataclass(frozen=True)
class Clock:
    """A unit's load in percent and its clocks in MHz, one for each cluster; None and () where they are not said."""

    load: int | None
    mhz: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rail:
    """A power rail, in milliwatts: now, the average since tegrastats started, and the peak (JetPack 7.2)."""

    now: int
    average: int
    peak: int | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """One line.

    Attributes:
        time: of the board's clock, without a zone, in whole seconds; None in JetPack 4 and where it was cut off.
        ram, swap: megabytes.
        cpus: one for each core; None is a core that is switched off.
        emc: the memory controller.
        gpu: GR3D; several clocks where there are several clusters.
        celsius: degrees by sensor; sensors of units without power are left out.
        rails: milliwatts by rail.
    """

    time: datetime.datetime | None = None
    ram: Memory | None = None
    swap: Memory | None = None
    cpus: tuple[Clock | None, ...] = ()
    emc: Clock | None = None
    gpu: Clock | None = None
    celsius: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rails: Mapping[str, Rail] = dataclasses.field(default_factory=dict)

    @property
    def milliwatts(self) -> int | None:
        """What the board draws: its input rail, or the sum of all rails where it has none; None without rails."""
        for name in INPUT_RAILS:
            if name in self.rails:
                return self.rails[name].now
        return sum(rail.now for name, rail in self.rails.items() if name not in _WITHIN) if self.rails else None


def parse_line(line: str) -> Sample:
    """One line of any version.

    Raises:
        InputError: no line of tegrastats, or a known field with a number that cannot be read.

    Example:
        >>> parse_line("RAM 3162/7620MB (lfb 8x4MB) GR3D_FREQ 41%@[612] VDD_IN 5100mW/5000mW").gpu
        Clock(load=41, mhz=(612,))
    """
    if len(line) > _LONGEST:
        raise InputError(f"tegrastats: a line of {len(line)} characters; the longest that is read has {_LONGEST}")
    text = " " + " ".join(line.split())
    time, text = _stamp(text)
    if not re.match(r" RAM \d", text):
        raise InputError(f"tegrastats: no line of it (RAM is missing): {_short(line)}")
    return Sample(
        time=time,
        ram=_memory("RAM", text),
        swap=_memory("SWAP", text),
        cpus=_cpus(text),
        emc=_clock("EMC_FREQ", text),
        gpu=_clock("GR3D_FREQ", text),
        celsius=_temperatures(text),
        rails=_rails(text),
    )


def parse_lines(text: str) -> list[Sample]:
    """A whole log: empty lines are skipped, and so is a last line that the end of the log cut off.

    Raises:
        InputError: any other line that cannot be read, with its number; or no line at all.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    found = []
    for number, line in lines:
        try:
            found.append(parse_line(line))
        except InputError as error:
            if number == lines[-1][0] and not text.endswith("\n") and found:
                break
            raise InputError(f"line {number}: {error.message}", hint=error.hint) from error
    if not found:
        raise InputError("tegrastats: the log is empty", hint="tegrastats --interval 200 --logfile FILE")
    return found


def _short(text: str) -> str:
    return repr(text[:60] + ("..." if len(text) > 60 else ""))


def _bad(name: str, rest: str) -> InputError:
    return InputError(f"tegrastats: {name} is not understood: {_short(rest.strip())}")


def _after(name: str, text: str) -> str | None:
    """What follows a field's name; None where the line has no such field."""
    place = text.find(f" {name} ")
    if place < 0:
        if text.endswith(f" {name}"):
            raise _bad(name, "")
        return None
    return text[place + len(name) + 2 :]


def _stamp(text: str) -> tuple[datetime.datetime | None, str]:
    found = _STAMP.match(text, 1)
    if not found:
        return None, text
    month, day, year, hour, minute, second = (int(part) for part in found.groups())
    try:
        time = datetime.datetime(year, month, day, hour, minute, second)  # of no zone: none is said
    except ValueError as error:
        raise InputError(f"tegrastats: {found.group()} is no time ({error})") from error
    return time, text[found.end() :]


def _memory(name: str, text: str) -> Memory | None:
    rest = _after(name, text)
    if rest is None:
        return None
    found = _MEMORY.match(rest)
    if not found or int(found[2]) < int(found[1]):
        raise _bad(name, rest)
    free = int(found[4]) / (1024 if found[5] == "k" else 1) if found[4] else None
    return Memory(int(found[1]), int(found[2]), free)


def _cpus(text: str) -> tuple[Clock | None, ...]:
    rest = _after("CPU", text)
    if rest is None:
        return ()
    inside, closed, after = rest[1:].partition("]")
    if not rest.startswith("[") or not closed:
        raise _bad("CPU", rest)
    everywhere = re.match(r"@(\d{1,9})(?=\s|$)", after)  # [10%,20%,off]@1428: one clock for all of them
    cores: list[Clock | None] = []
    for word in inside.split(","):
        if word.strip() == "off":
            cores.append(None)
            continue
        found = _CORE.fullmatch(word.strip())
        if not found:
            raise _bad("CPU", rest)
        load = found[1] or found[3]
        mhz = found[2] or (everywhere and everywhere[1])
        cores.append(Clock(_percent("CPU", load) if load else None, (int(mhz),) if mhz else ()))
    return tuple(cores)


def _percent(name: str, number: str) -> int:
    if int(number) > 100:
        raise _bad(name, f"{number}%")
    return int(number)


def _clock(name: str, text: str) -> Clock | None:
    """A unit's ``41%@[612]``, ``41%@612``, ``41%``, ``@[314,314,314]``; ``off`` is no load and no clock."""
    rest = _after(name, text)
    if rest is None:
        return None
    if rest.split(" ", 1)[0] == "off":
        return Clock(0, ())
    found = _CLOCK.match(rest)
    if not found or not found.group():
        raise _bad(name, rest)
    numbers = found[2] or found[3] or ""
    mhz = tuple(int(number) for number in numbers.split(",") if number)
    return Clock(_percent(name, found[1]) if found[1] else None, mhz)


def _temperatures(text: str) -> dict[str, float]:
    celsius = {}
    for name, number in _TEMPERATURE.findall(text):
        if not _CELSIUS.fullmatch(number):
            raise _bad(name, f"{number}C")
        if float(number) > _OFF_CELSIUS:
            celsius[name] = float(number)
    return celsius


def _rails(text: str) -> dict[str, Rail]:
    rails = {}
    for name, numbers in _RAIL.findall(text):
        found = _MILLIWATTS.fullmatch(numbers)
        if not found:
            raise _bad(name, numbers)
        if name not in _NOT_A_RAIL:
            now, average = int(found[1] or found[4]), int(found[2] or found[5])
            rails[name] = Rail(now, average, int(found[3]) if found[3] else None)
    return rails


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run of samples; None is what no sample says.

    Attributes:
        samples: their number.
        seconds: from the first to the last one; None without timestamps and interval.
        longest_gap: the longest time between two samples, in seconds.
        rail: what power means here: the input rail's name, or ``sum of`` all of them.
        mean_watts: over the time, or over the samples where there is no time.
        peak_watts: the highest sample.
        joules: energy by the trapezoid.
        max_celsius: the hottest sensor's, by sensor.
        gpu_mhz: lowest and highest clock of the GPU while it had work, of all clusters; of all samples where no load
            is said.
        gpu_load: mean percent.
        max_ram_mb: most memory in use, of everything on the board, in megabytes.
    """

    samples: int
    seconds: float | None
    longest_gap: float | None
    rail: str | None
    mean_watts: float | None
    peak_watts: float | None
    joules: float | None
    max_celsius: Mapping[str, float]
    gpu_mhz: tuple[int, int] | None
    gpu_load: float | None
    max_ram_mb: int | None


def summarise(samples: Sequence[Sample], interval: float | None = None) -> Summary:
    """What a run's samples say together.

    Args:
        samples: in order.
        interval: seconds between two of them, as given to ``--interval``; None takes the timestamps. These are whole
            seconds: samples of one second are spread evenly over it, so a duration is right to a second.

    Raises:
        InputError: no samples, an interval that is not positive, rails that change, or a clock that goes back.
    """
    if not samples:
        raise InputError("tegrastats: no samples to summarise")
    times = _times(samples, interval)
    power = _power(samples)
    gaps = [after - before for before, after in zip(times or (), (times or ())[1:], strict=False)]
    seconds = times[-1] - times[0] if times else None
    joules = None
    if power and gaps:
        joules = sum((a + b) / 2 * gap for a, b, gap in zip(power, power[1:], gaps, strict=False))
    mean = joules / seconds if joules is not None and seconds else (statistics.fmean(power) if power else None)
    loads = [sample.gpu.load for sample in samples if sample.gpu and sample.gpu.load is not None]
    memory = [sample.ram.used for sample in samples if sample.ram]
    return Summary(
        samples=len(samples),
        seconds=seconds,
        longest_gap=max(gaps) if gaps else None,
        rail=_rail_name(samples[0]),
        mean_watts=mean,
        peak_watts=max(power) if power else None,
        joules=joules,
        max_celsius=_hottest(samples),
        gpu_mhz=_gpu_range(samples),
        gpu_load=statistics.fmean(loads) if loads else None,
        max_ram_mb=max(memory) if memory else None,
    )


def _times(samples: Sequence[Sample], interval: float | None) -> list[float] | None:
    if interval is not None:
        if not 0 < interval < float("inf"):
            raise InputError(f"tegrastats: an interval of {interval} s is not above 0")
        return [index * interval for index in range(len(samples))]
    stamps = [sample.time for sample in samples if sample.time]
    if len(stamps) < len(samples):
        return None
    seconds = [(stamp - stamps[0]).total_seconds() for stamp in stamps]
    for before, after, stamp in zip(seconds, seconds[1:], stamps[1:], strict=False):
        if after < before:
            raise InputError(f"tegrastats: the clock goes back {before - after:.0f} s at {stamp}", hint="--interval")
    counts = Counter(seconds)
    return [second + index / count for second, count in sorted(counts.items()) for index in range(count)]


def _rail_name(sample: Sample) -> str | None:
    for name in INPUT_RAILS:
        if name in sample.rails:
            return name
    added = [name for name in sample.rails if name not in _WITHIN]
    return f"sum of {' + '.join(added)}" if added else None


def _power(samples: Sequence[Sample]) -> list[float]:
    """Watts of every sample; [] where none says it."""
    names = {_rail_name(sample) for sample in samples}
    if len(names) > 1:
        raise InputError(f"tegrastats: rails change from sample to sample: {', '.join(sorted(map(str, names)))}")
    return [watts / 1e3 for sample in samples if (watts := sample.milliwatts) is not None]


def _hottest(samples: Iterable[Sample]) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        for name, celsius in sample.celsius.items():
            found[name] = max(celsius, found.get(name, celsius))
    return found


def _gpu_range(samples: Iterable[Sample]) -> tuple[int, int] | None:
    clocks = [sample.gpu for sample in samples if sample.gpu and sample.gpu.mhz]
    busy = [clock for clock in clocks if clock.load]
    mhz = [value for clock in busy or clocks for value in clock.mhz]
    return (min(mhz), max(mhz)) if mhz else None
