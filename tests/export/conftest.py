"""Shared by the exporter's tests."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="session")
def oracle_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' layout with random weights, unpacked."""
    path = tmp_path_factory.mktemp("oracle") / "authors_tiny.pth"
    path.write_bytes(lzma.decompress((DATA / "authors_tiny.pth.xz").read_bytes()))
    return path
