"""The contract in a manifest, and the crop policy as text on a command line."""

from __future__ import annotations

import json
from pathlib import Path

from gamma_runtime.bundle import parse_json
from gamma_runtime.contract import Contract, CropPolicy
from gamma_runtime.errors import InputError
from tests.fuzz.harness import Target

POLICIES = (
    "centre",
    "five",
    "grid3x2",
    "random10",
    "random10:seed7",
    "grid99x99",
    "random0",
    "grid\u0663x2",
    "frame1x1",
)


def _seeds() -> list[bytes]:
    contract = Contract({"natural-quality": 384, "plain": None}, CropPolicy("grid", rows=2, cols=3))
    return [json.dumps(contract.to_json()).encode(), *(policy.encode() for policy in POLICIES)]


def _read(_: Path, data: bytes) -> None:
    if data[:1] != b"{":
        policy = CropPolicy.parse(data.decode(errors="surrogateescape"))
        if CropPolicy.parse(str(policy)) != policy or not 1 <= policy.crops <= 64:
            raise AssertionError(f"{policy} is not what was parsed")
        return
    try:
        contract = Contract.from_json(parse_json(Path("contract"), data))
    except (TypeError, KeyError, ValueError, AttributeError) as error:  # what the reader of a manifest expects
        raise InputError("not understood") from error
    contract.sha256()


TARGET = Target(_seeds, lambda folder, data: None, _read, codes=(2, 3, 4), json=True, longest=2048)
