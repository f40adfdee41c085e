"""Tables for people: as wide as their content, so that nothing is cut in a pipe or a log."""

from __future__ import annotations

import io
from collections.abc import Sequence

__all__ = ["text_table"]


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Plain text; the columns named in ``right`` are aligned to the right.

    Example:
        >>> print(text_table(("path", "score"), [("a.jpg", "0.61")], right=("score",)))
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True, justify="right" if title in right else "left")
    for row in rows:
        table.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    text = io.StringIO()
    Console(file=text, width=400, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())
