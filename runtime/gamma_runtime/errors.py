"""The errors a user can meet, one class for each exit code (design.md section 5).

0 done · 2 usage · 3 bad input · 4 integrity or trust · 5 environment · 6 output · 7 gate not met ·
8 measurement not valid · 1 our own bug · 128+n on a signal. Codes 7 and 8 are results, not exceptions.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = [
    "EXIT_BUG",
    "EXIT_GATE",
    "EXIT_INVALID_MEASUREMENT",
    "EXIT_OK",
    "EnvironmentFault",
    "GammaError",
    "InputError",
    "IntegrityError",
    "OutputError",
    "UsageError",
    "without_frames",
]

EXIT_OK = 0
EXIT_BUG = 1
EXIT_GATE = 7
EXIT_INVALID_MEASUREMENT = 8


class GammaError(Exception):
    """What went wrong, with the value and the limit, and where; `hint` says what to do next.

    Example:
        >>> raise InputError("a.jpg: 120x90 is smaller than 224 pixels", hint="use --small resize")
    """

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message, and the hint on a line of its own when there is one."""
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(GammaError):
    """The options do not fit together, or name something that does not exist (exit code 2)."""

    exit_code = 2


class InputError(GammaError):
    """A checkpoint, image, graph or list that cannot be used (exit code 3)."""

    exit_code = 3


class IntegrityError(GammaError):
    """Content that is not what it should be, or that must not be trusted (exit code 4)."""

    exit_code = 4


class EnvironmentFault(GammaError):  # noqa: N818 - EnvironmentError is a builtin (an alias of OSError)
    """A missing library, driver, GPU, or too little memory (exit code 5)."""

    exit_code = 5


class OutputError(GammaError):
    """The result cannot be written: disk, permission, lock (exit code 6)."""

    exit_code = 6


E = TypeVar("E", bound=BaseException)


def without_frames(error: E) -> E:
    """The same error, and those that led to it, without tracebacks: kept, they would hold the image's bytes."""
    chain: BaseException | None = error
    while chain is not None:
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__
    return error
