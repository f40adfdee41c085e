"""Shared by the exporter's tests."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from tests import tiny_export

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="session")
def oracle_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' layout with random weights, unpacked."""
    path = tmp_path_factory.mktemp("oracle") / "authors_tiny.pth"
    path.write_bytes(lzma.decompress((DATA / "authors_tiny.pth.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def two_photos() -> Path:
    """A folder with two of the packaged photos: six verification crops instead of 48."""
    return tiny_export.photos()


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """Two blocks, one with experts; random weights in the authors' layout."""
    return tiny_export.checkpoint()
