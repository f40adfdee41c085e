"""Child process: a conditioned random-weight checkpoint in the authors' layout. It is untrained and says so."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from gamma_runtime.cli import option, run_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Where to, and how large."""

    path: Path = option(help="file to write", positional=True)
    tiny: bool = option(False, "width 128 and four blocks instead of ViT-B/16")


def make(options: CheckpointOptions) -> int:
    """Write the checkpoint: seed 0, conditioned on the packaged photos so that they get different scores."""
    from gamma_export.untrained import LABEL, conditioned_model
    from gamma_training.checkpoint import write_authors
    from gamma_training.dims import FULL_SIZE
    from gamma_training.initialise import smaller

    dims = smaller(FULL_SIZE, width=128, layers=4, first_moae=2) if options.tiny else FULL_SIZE
    model, _, _ = conditioned_model(dims, 0)
    options.path.parent.mkdir(parents=True, exist_ok=True)
    write_authors(options.path, model.state_dict(), label=LABEL)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("checkpoint", make, CheckpointOptions))
