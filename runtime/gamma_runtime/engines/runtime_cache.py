"""TensorRT-RTX compiles kernels when an engine first runs; what it compiled is kept beside the engine.

The file is ours: one line that names the engine and the digest of the rest, then TensorRT's bytes. A file that does not
match is ignored: the next run compiles again and writes a new one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from gamma_runtime.errors import EnvironmentFault, OutputError
from gamma_runtime.files import write_atomically

__all__ = ["RuntimeCache"]

_MAGIC = "gamma-rtx-cache 1"
_MAX_BYTES = 1 << 30


class RuntimeCache:
    """The cache of one engine, shared by its contexts.

    Attributes:
        warm: TensorRT took what an earlier run had left.
    """

    def __init__(self, path: Path, engine_sha256: str) -> None:
        self.path = path
        self._engine = engine_sha256
        self._cache: Any = None
        self._saved = b""
        self.warm = False

    def attach(self, config: Any) -> bool:
        """Give a runtime configuration the cache; False when TensorRT refuses it."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            content = self._read()
            if content and self._cache is not None and self._cache.deserialize(content):
                self.warm, self._saved = True, content
        return self._cache is not None and bool(config.set_runtime_cache(self._cache))

    def save(self) -> None:
        """Write what was compiled since, atomically.

        Raises:
            EnvironmentFault: TensorRT gave nothing. OutputError: the folder is not writable.
        """
        if self._cache is None:
            return
        made = self._cache.serialize()
        if made is None:
            raise EnvironmentFault(f"{self.path}: TensorRT-RTX gave no runtime cache")
        content = bytes(memoryview(made))
        if content and content != self._saved:
            write_atomically(self.path, f"{self._head(content)}\n".encode() + content)
            self._saved = content

    def _head(self, content: bytes) -> str:
        return f"{_MAGIC} {self._engine} {hashlib.sha256(content).hexdigest()}"

    def _read(self) -> bytes | None:
        try:
            if self.path.is_symlink() or not self.path.is_file() or self.path.stat().st_size > _MAX_BYTES:
                return None
            head, _, content = self.path.read_bytes().partition(b"\n")
        except OSError:
            return None
        return content if head == self._head(content).encode() else None

    def try_save(self) -> str | None:
        """Like `save`; the reason when it could not be written, which costs time at the next start and nothing else."""
        try:
            self.save()
        except (OutputError, EnvironmentFault) as error:
            return error.message
        return None
