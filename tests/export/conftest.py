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


@pytest.fixture(scope="session")
def two_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two of the packaged photos: six verification crops instead of 48."""
    from gamma_export.photos import packaged_photos

    folder = tmp_path_factory.mktemp("photos")
    for photo in packaged_photos()[:2]:
        (folder / photo.name).write_bytes(photo.read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks, one with experts; random weights in the authors' layout."""
    from gamma_training.checkpoint import write_authors
    from gamma_training.dims import FULL_SIZE
    from gamma_training.initialise import random_state, smaller

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    dims = smaller(FULL_SIZE, width=64, layers=2, first_moae=1)
    write_authors(path, random_state(dims, 7), label="untrained", prompts="sdp")
    return path
