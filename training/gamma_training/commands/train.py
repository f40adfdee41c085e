"""gamma-train: a base and labelled photos become a Gamma checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gamma_runtime.cli import CommonOptions, log, option, out, quoted, run_command
from gamma_runtime.errors import EXIT_OK

__all__ = ["TrainOptions", "main", "train_command"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(CommonOptions):
    """Flags of gamma-train; everything else is in the configuration."""

    config: Path = option(help="YAML with base, data, out and the recipe", positional=True)
    resume: bool = option(False, "go on with the run that lies in the configuration's out")


def train_command(options: TrainOptions) -> int:
    """Train a Gamma checkpoint by a configuration; also: gamma-train make-data, check-data, import-base."""
    from gamma_runtime.steps import Steps
    from gamma_training.train import read_config, train
    from gamma_training.train.report import plain_values

    config = read_config(options.config)
    report = train(config, resume=options.resume, steps=Steps(options.quiet))
    if report is None:  # a process of torchrun that does not lead
        return EXIT_OK
    if options.json:
        out(json.dumps(plain_values(dataclasses.asdict(report))))
    else:
        out((config.out / "report.md").read_text(encoding="utf-8").rstrip())
    if not options.quiet:
        log(f"next: gamma-export {quoted(os.path.relpath(report.best))}")
    return EXIT_OK


def _subcommand(name: str) -> tuple[Callable[[Any], int], type[Any]] | None:
    if name == "make-data":
        from gamma_training.commands.make_data import MakeDataOptions, make_data_command

        return make_data_command, MakeDataOptions
    if name == "check-data":
        from gamma_training.commands.check_data import CheckDataOptions, check_data_command

        return check_data_command, CheckDataOptions
    if name == "import-base":
        from gamma_training.commands.import_base import ImportBaseOptions, import_base_command

        return import_base_command, ImportBaseOptions
    return None


def main() -> None:
    """Entry point of gamma-train."""
    arguments = sys.argv[1:]
    if arguments and (found := _subcommand(arguments[0])):
        sys.exit(run_command(f"gamma-train {arguments[0]}", *found, arguments[1:]))
    sys.exit(run_command("gamma-train", train_command, TrainOptions, arguments))


if __name__ == "__main__":  # torchrun -m gamma_training.commands.train CONFIG.yaml
    main()
