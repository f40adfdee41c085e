"""gamma-calib: what 8 bits do to a model, group by group and tensor by tensor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gamma_runtime.cli import log, out, run_command
from gamma_runtime.errors import EXIT_OK, UsageError

__all__ = ["main"]

_USAGE = """usage: gamma-calib sensitivity BUNDLE --calib PHOTOS [--json] ...
       gamma-calib explain BUNDLE [--record FILE] [--plot FILE] [--json] ...

  sensitivity   each group of products alone in int8: what it does to the scores
  explain       which tensors are 8 bits, their ranges, clipping and outliers, with plots

gamma-calib COMMAND --help shows all flags. INT8 bundles are made by gamma-export --precision int8 --calib PHOTOS."""


def _subcommand(name: str) -> tuple[Callable[[Any], int], type[Any]] | None:
    if name == "sensitivity":
        from gamma_calib.commands.sensitivity import SensitivityOptions, sensitivity_command

        return sensitivity_command, SensitivityOptions
    if name == "explain":
        from gamma_calib.commands.explain import ExplainOptions, explain_command

        return explain_command, ExplainOptions
    return None


def main() -> int:
    """Entry point of gamma-calib."""
    arguments = sys.argv[1:]
    if arguments and (found := _subcommand(arguments[0])):
        return run_command(f"gamma-calib {arguments[0]}", *found, arguments[1:])
    if arguments == ["--version"]:
        from gamma_runtime import __version__

        out(f"gamma-calib {__version__}")
        return EXIT_OK
    if arguments in (["--help"], ["-h"]):
        out(_USAGE)
        return EXIT_OK
    if arguments:
        log(f"error: gamma-calib has no command {arguments[0]!r}\nhint: gamma-calib --help")
    else:
        log(_USAGE)
    return UsageError.exit_code
