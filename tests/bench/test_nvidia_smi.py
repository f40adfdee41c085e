"""nvidia-smi's CSV: units, what is not reported, several GPUs, reasons in words, broken lines."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gamma_export.bench.nvidia_smi import HOLDING_BACK, QUERY, REASONS, Gpu, parse, reasons
from gamma_runtime.errors import InputError

DATA = Path(__file__).parents[1] / "data" / "bench"
HEADER = ", ".join(QUERY)
GOOD = "NVIDIA L4, 580.95.05, P0, 1035 MHz, 6251 MHz, 0x0000000000000024, 71.93 W, 79"


def read(name: str) -> list[Gpu]:
    return parse((DATA / f"nvidia-smi-{name}.txt").read_text())


def test_one_gpu_over_time() -> None:
    first, _, idle = read("one")
    assert first == Gpu("NVIDIA L4", "580.95.05", "P0", 1035, 6251, 0x24, 71.93, 79.0)
    assert first.reasons == ("power cap", "heat")
    assert first.held_back == ("power cap", "heat")
    assert idle.reasons == ("idle",)
    assert idle.held_back == ()


def test_several_gpus_and_what_they_do_not_report() -> None:
    fast, small, jetson = read("several")
    assert fast.reasons == ()
    assert (small.watts, small.reasons, small.held_back) == (None, ("application clocks set",), ())
    assert jetson == Gpu("Orin (nvgpu)", "540.4.0", None, None, None, None, None, None)
    assert jetson.reasons == ()


def test_an_old_driver_says_throttle() -> None:
    hot, silent = read("470")
    assert hot.held_back == ("hardware slowdown", "heat", "heat (hardware)")
    assert (silent.reason_bits, silent.watts, silent.celsius) == (None, None, 94.0)


def test_no_units_other_orders_and_a_header_again() -> None:
    plain = GOOD.replace(" MHz", "").replace(" W", "")
    assert parse(f"{HEADER}\n{plain}\n") == parse(f"{HEADER}\r\n{GOOD}\r\n{HEADER}\r\n")
    turned = ", ".join(reversed(QUERY)), ", ".join(reversed(GOOD.split(", ")))
    assert parse("\n".join(turned)) == parse(f"{HEADER}\n{GOOD}")


def test_reasons_in_words() -> None:
    assert reasons(0) == ()
    assert reasons(sum(REASONS)) == tuple(REASONS.values())
    assert reasons(0x1004) == ("power cap", "unknown 0x1000")
    assert HOLDING_BACK & 0x113 == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "No devices were found",
        HEADER,
        f"{HEADER}, name\n{GOOD}, x",
        HEADER.replace("pstate", "pstat") + f"\n{GOOD}",
        HEADER.replace("power.draw", "power.draw [mW]") + f"\n{GOOD}",
        HEADER.replace("pstate", "pstate [W]") + f"\n{GOOD}",
        f"{HEADER}\n{GOOD}, 1",
        f"{HEADER}\n{GOOD[:40]}",
        *(
            f"{HEADER}\n{GOOD.replace(a, b)}"
            for a, b in (
                ("1035 MHz", "1035 GHz"),
                ("1035 MHz", "-5 MHz"),
                ("1035 MHz", "10.5 MHz"),
                ("1035 MHz", ""),
                ("0x0000000000000024", "36"),
                ("0x0000000000000024", "Active"),
                ("0x0000000000000024", "0x" + "f" * 17),
                ("71.93 W", "nan W"),
                ("71.93 W", "71.93 mW"),
                ("79", "ERR!"),
                ("NVIDIA L4", ""),
                ("NVIDIA L4", "x" * 70_000),
            )
        ),
    ],
)
def test_what_is_broken_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="nvidia-smi"):
        parse(text)


def test_cut_or_changed_text_is_read_or_refused() -> None:
    chance = random.Random(13)  # noqa: S311 - broken text, not secrets
    for path in sorted(DATA.glob("nvidia-smi-*.txt")):
        whole = path.read_text()
        broken = [whole[:end] for end in range(len(whole))]
        for _ in range(500):
            at = chance.randrange(len(whole))
            broken.append(whole[:at] + chance.choice("%@[],/ x0-.\x00é\n") + whole[at + chance.randrange(3) :])
        for text in broken:
            try:
                parse(text)
            except InputError:
                continue
