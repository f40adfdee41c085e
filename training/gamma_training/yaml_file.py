"""YAML files that people write: read with a limit, and never as a program."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from gamma_runtime.cli import require
from gamma_runtime.errors import InputError

__all__ = ["read_yaml"]

_MAX_FILE = 2**18  # bytes


def read_yaml(path: Path) -> Any:
    """What the file holds; its aliases may make a value that is endless when it is printed.

    Raises:
        InputError: not a regular file of at most 256 KiB, or not YAML. EnvironmentFault: no PyYAML.
    """
    yaml = require("yaml", "train")
    try:
        status = path.stat()  # before opening: a FIFO without a writer blocks
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE:
            raise InputError(f"{path}: not a regular file of at most {_MAX_FILE} bytes")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    # ValueError: not UTF-8, or a date or number of impossible value.
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split()):.200})") from error
