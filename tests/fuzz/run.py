"""Fuzz one target with atheris: ``python -m tests.fuzz.run TARGET [libFuzzer's options]``.

Starts from the target's seeds and the kept corpus; new inputs go to build/fuzz/TARGET/corpus, and what escapes to
build/fuzz/TARGET/crashes, from where it is copied to tests/fuzz/crashes/TARGET under a name that says what it is.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.fuzz.harness import HERE, Target, check, kept, mutated_json

OWN = ["gamma_runtime", "gamma_calib", "gamma_training"]
LIMITS = ("-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1")


def main(name: str, options: list[str]) -> None:
    """Never returns: libFuzzer ends the process, with 0 when nothing escaped."""
    import atheris

    with atheris.instrument_imports(include=OWN):
        target: Target = importlib.import_module(f"tests.fuzz.{name}").TARGET
    work = HERE.parent.parent / "build" / "fuzz" / name
    corpus, crashes, seeds = (work / part for part in ("corpus", "crashes", "seeds"))
    for folder in (corpus, crashes, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate([*target.seeds(), *(path.read_bytes() for path in kept(name))]):
        (seeds / f"{number:03}").write_bytes(seed)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        made = mutated_json(data, seed) if seed % 2 else None
        return made[:longest] if made else bytes(atheris.Mutate(data, longest))

    arguments = [sys.argv[0], *LIMITS, f"-max_len={target.longest}", f"-artifact_prefix={crashes}/", *options]
    shared = {"custom_mutator": mutate} if target.json else {}
    atheris.Setup([*arguments, str(corpus), str(seeds)], lambda data: check(target, data) and None, **shared)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(sys.argv[1], sys.argv[2:])
