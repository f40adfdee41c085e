"""manifest.json, without its own digest: whatever it says, the bundle opens or is refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from gamma_runtime.bundle import MANIFEST, open_bundle
from tests.fuzz.harness import Target
from tests.runtime.tiny_bundle import make_bundle


def _seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "b.gamma")
        content = (bundle.folder / MANIFEST).read_bytes()
    return [json.dumps(json.loads(content) | {"manifest_sha256": None}).encode(), content, b"{}", b"[[1]]"]


def _read(folder: Path, _: bytes) -> None:
    open_bundle(folder).contract()


TARGET = Target(_seeds, lambda folder, data: (folder / MANIFEST).write_bytes(data), _read, json=True)
