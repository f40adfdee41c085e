"""JSON that another program wrote: read strictly, refused in our words."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from gamma_runtime.errors import InputError

__all__ = ["load", "number", "rows", "text"]


def load(content: str, what: str) -> Any:
    """Any JSON value.

    Args:
        content: the file's text.
        what: it should be, for the message.

    Raises:
        InputError: no JSON, NaN or infinity in it, numbers beyond any sense, or nested too deeply.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: no JSON ({str(error)[:100]})") from error


def rows(value: Any, what: str) -> list[dict[str, Any]]:
    """A list of objects.

    Raises:
        InputError: anything else.
    """
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise InputError(f"{what}: not a list of JSON objects")
    return value


def number(row: dict[str, Any], key: str, what: str, *, least: float = -1e300) -> float:
    """A finite number of an object.

    Raises:
        InputError: it is missing, something else, or below ``least``.
    """
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < 1e300:
        return float(value)
    wanted = "a number" if least < 0 else f"a number from {least:g}"
    raise InputError(f"{what}: {key} is {str(value)[:40]!r}, not {wanted}")


def text(row: dict[str, Any], key: str, what: str) -> str:
    """A text of an object.

    Raises:
        InputError: it is missing, or something else.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"{what}: {key} is {str(value)[:40]!r}, not a text")
    return value
