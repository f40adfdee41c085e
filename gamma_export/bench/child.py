"""One contender in a process of its own: ``python -m gamma_export.bench.child SPEC.json RESULT.json``.

Two runtimes in one process distort each other: each keeps a pool of spinning threads. And memory, imports and first
calls are a process's own.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path

from gamma_export.bench.spec import Spec
from gamma_runtime.errors import GammaError

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Measure and write the result, or the error that the parent raises again."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed parent leaves nobody who measures on
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    from gamma_export.bench.measure import measure

    spec, target = Spec.from_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    try:
        said = json.dumps(measure(spec), allow_nan=False)
    except GammaError as error:
        said = json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint})
    target.write_text(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
