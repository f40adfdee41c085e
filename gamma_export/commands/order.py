"""gamma-order: does this bundle put a sharp photo above its blurred, noisy and over-compressed copies?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamma_runtime.cli import CommonOptions, log, option, out, quoted, require, run_command
from gamma_runtime.errors import EXIT_GATE, EXIT_OK, OutputError

if TYPE_CHECKING:
    from gamma_export.photos import Degradation, Pixels
    from gamma_runtime.scorer import Scorer

__all__ = ["COPIES", "Row", "main", "order_command"]

COPIES: tuple[tuple[Degradation, float], ...] = (("blur", 2.5), ("noise", 30), ("jpeg", 6))
_SHOWN = ("01-astronaut.jpg", "06-dogs.jpg", "07-pagoda.jpg", "11-stream.jpg")  # sharp, of four kinds


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrderOptions(CommonOptions):
    """Flags of gamma-order."""

    bundle: Path = option(help="the bundle folder, NAME.gamma", positional=True)
    photo: tuple[Path, ...] = option((), "a sharp photo; four of the packaged ones when left out", repeat=True)
    scene: str | None = option(None, "scene; the bundle's first one when left out")
    picture: Path | None = option(None, "also write them side by side, with their scores: a PNG or JPEG")


@dataclasses.dataclass(frozen=True)
class Row:
    """A photo's own score, and those of its copies by name."""

    name: str
    score: float
    copies: dict[str, float]

    @property
    def ordered(self) -> bool:
        """Whether the photo is above all of its copies."""
        return all(self.score > score for score in self.copies.values())


def order_command(options: OrderOptions) -> int:
    """Score photos and worse copies of them; exit code 7 when a copy is not below its photo."""
    from gamma_export.photos import packaged_photos
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.scorer import load
    from gamma_runtime.tables import text_table

    photos = options.photo or tuple(path for path in packaged_photos() if path.name in _SHOWN)
    bundle = open_bundle(options.bundle)
    with load(bundle, scene=options.scene) as scorer:
        made = [_row(path, scorer) for path in photos]
    label = bundle.manifest.checkpoint.label
    rows = [row for row, _ in made]
    if options.picture:
        _write(options.picture, [strip for _, strip in made])
    if options.json:
        out(json.dumps({"checkpoint": label, "photos": [_plain(row) for row in rows]}))
    else:
        titles = ("photo", "sharp", *(f"{kind} {level:g}" for kind, level in COPIES), "order")
        lines = [(r.name, *(f"{s:.4f}" for s in (r.score, *r.copies.values())), _verdict(r)) for r in rows]
        out(text_table(titles, lines, right=titles[1:-1]))
    wrong = [row.name for row in rows if not row.ordered]
    if wrong:
        log(f"error: a copy is not below its photo: {', '.join(wrong)}")
        return EXIT_GATE
    if options.picture and not options.quiet:
        log(f"side by side: {quoted(options.picture)}")
    return EXIT_OK


def _row(path: Path, scorer: Scorer) -> tuple[Row, Pixels]:
    """Scores of a photo and its copies, and all of them in one strip."""
    import numpy as np

    from gamma_export.photos import degraded
    from gamma_runtime.contract import Limits
    from gamma_runtime.decode import decode
    from gamma_training.data.contact_sheet import captioned

    sharp = decode(path, Limits()).pixels
    copies: dict[str, Pixels] = {kind: degraded(sharp, kind, level) for kind, level in COPIES}
    score = scorer.score(sharp).value
    scores = {kind: scorer.score(pixels).value for kind, pixels in copies.items()}
    tiles = [captioned(sharp, f"sharp: {score:.3f}")]
    tiles += [captioned(pixels, f"{kind}: {scores[kind]:.3f}") for kind, pixels in copies.items()]
    return Row(path.name, score, scores), np.concatenate(tiles, axis=1)


def _write(path: Path, strips: list[Pixels]) -> None:
    import numpy as np

    cv2 = require("cv2", "cpu")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = cv2.imwrite(str(path), np.concatenate(strips)[:, :, ::-1])
    except (OSError, cv2.error) as error:
        raise OutputError(f"{path}: cannot be written ({error})", hint="a name that ends in .png or .jpg") from error
    if not written:
        raise OutputError(f"{path}: cannot be written", hint="a name that ends in .png or .jpg")


def _plain(row: Row) -> dict[str, Any]:
    return {"photo": row.name, "score": row.score, "copies": row.copies, "ordered": row.ordered}


def _verdict(row: Row) -> str:
    return "as it should be" if row.ordered else "WRONG"


def main() -> int:
    """Entry point."""
    return run_command("gamma-order", order_command, OrderOptions)
