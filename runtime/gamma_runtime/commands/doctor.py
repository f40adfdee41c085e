"""gamma-doctor: what this machine has, and which bundles and engines fit it."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path

from gamma_runtime.cli import CommonOptions, log, option, out, run_command

__all__ = ["DoctorOptions", "doctor", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions(CommonOptions):
    """Flags of gamma-doctor."""

    bundles: tuple[Path, ...] = option((), "bundle folders to check", positional=True)
    engine_dir: Path | None = option(None, "where the bundles' engines lie, if not inside them")


def doctor(options: DoctorOptions) -> int:
    """Show versions, backends and GPU, and say of every named bundle and engine whether it fits this machine."""
    from gamma_runtime.doctor import Facts, diagnose, render

    facts: Facts = diagnose(options.bundles, options.engine_dir)
    out(json.dumps(dataclasses.asdict(facts)) if options.json else render(facts))
    if not options.quiet:
        log(f"next: {_next(options, facts.exit_code)}")
    return facts.exit_code


def _next(options: DoctorOptions, exit_code: int) -> str:
    if not options.bundles:
        return "gamma-export, or gamma-doctor BUNDLE"
    bundle = shlex.quote(str(options.bundles[0]))
    return f"gamma-run {bundle} PHOTO" if exit_code == 0 else "restore the files named above, or run gamma-export again"


def main() -> int:
    """Entry point of gamma-doctor."""
    return run_command("gamma-doctor", doctor, DoctorOptions)


if __name__ == "__main__":
    sys.exit(main())
