"""One command is one typed function and one frozen options dataclass; the flags are made from the dataclass here.

Results go to stdout, the log to stderr, and errors become the exit codes of `gamma_runtime.errors`.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import shlex
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gamma_runtime.errors import EXIT_BUG, EnvironmentFault, GammaError, OutputError

__all__ = ["CommonOptions", "log", "option", "out", "printable", "quoted", "require", "run_command"]

T = TypeVar("T")
# How torch, ONNX Runtime, OpenVINO and the C++ library say it; their exceptions are RuntimeErrors.
_NO_MEMORY = ("can't allocate memory", "Failed to allocate memory", "bad_alloc", "annot allocate memory")
_EXTRAS_HINT = "pip install 'gamma-edge[{extra}]'"


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    positional: bool = False,
    alias: str | None = None,
    repeat: bool = False,
) -> Any:
    """A dataclass field that is also a flag: its default lives here and nowhere else.

    Args:
        default: the value when the flag is absent; leave out for a required one.
        help: the sentence that `--help` shows.
        positional: an argument without a flag name.
        alias: a short flag such as ``-o``.
        repeat: a tuple that grows with every ``--flag VALUE``; without it the last one silently wins.
    """
    meta = {"help": help, "positional": positional, "alias": alias, "repeat": repeat}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every command takes."""

    json: bool = option(False, "machine-readable result on stdout")
    quiet: bool = option(False, "no progress on stderr")
    debug: bool = option(False, "show the traceback of an error")


def out(text: str) -> None:
    """Write one line of the result to stdout."""
    sys.stdout.write(text + "\n")


def log(text: str) -> None:
    """Write one line for people to stderr, or a few; names in it cannot write to the terminal what they like."""
    sys.stderr.write("\n".join(printable(line) for line in text.expandtabs().split("\n")) + "\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    r"""Text that is safe on a terminal: control characters and undecodable bytes become escapes (``\n``)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as one can paste it into a shell: never a flag, never two words."""
    text = printable(os.fspath(path))
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def require(module: str, extra: str) -> Any:
    """Import an optional library, or say which extra brings it.

    Raises:
        EnvironmentFault: the library is not installed or does not load.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentFault(
            f"{module} is not usable here ({error})", hint=_EXTRAS_HINT.format(extra=extra)
        ) from error


def _metavar(field: dataclasses.Field[Any], hint: Any) -> str | None:
    """PATH rather than {None}|PATH for what may be left out, BUNDLE for a positional; None leaves it to tyro."""
    if field.metadata.get("positional") and typing.get_origin(hint) is not tuple:
        name = field.name.upper()
        return name if field.default is dataclasses.MISSING else f"[{name}]"
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if type(None) not in typing.get_args(hint) or len(parts) != 1:
        return None
    if typing.get_origin(parts[0]) is tuple:
        return " ".join(str(part.__name__).upper() for part in typing.get_args(parts[0]))
    if choices := typing.get_args(parts[0]):
        return "{" + ",".join(str(choice) for choice in choices if choice is not None) + "}"
    return str(parts[0].__name__).upper()


def _flag_class(options_type: type[T]) -> Any:
    """The same fields with tyro's annotations; tyro is imported only when a command really parses its flags."""
    import tyro

    hints = typing.get_type_hints(options_type)
    made: list[Any] = []
    for field in dataclasses.fields(options_type):  # type: ignore[arg-type]
        meta = field.metadata
        alias = meta.get("alias")
        # A repeated flag would add to its default, so its default is shown here and filled in by `parse`.
        shown = (
            f"; default: {','.join(field.default)}"
            if meta.get("repeat") and isinstance(field.default, tuple) and field.default
            else ""
        )
        arg = tyro.conf.arg(
            help=meta.get("help", "") + shown,
            aliases=(alias,) if alias else None,
            metavar=_metavar(field, hints[field.name]),
            help_behavior_hint="" if field.default is None or meta.get("repeat") else None,
        )
        kind: Any = typing.Annotated[hints[field.name], arg]
        if meta.get("positional"):
            kind = typing.Annotated[kind, tyro.conf.Positional]
        if meta.get("repeat"):
            kind = typing.Annotated[kind, tyro.conf.UseAppendAction]
        default = () if meta.get("repeat") else field.default
        filled = dataclasses.field() if default is dataclasses.MISSING else dataclasses.field(default=default)
        made.append((field.name, kind, filled))
    return dataclasses.make_dataclass(options_type.__name__, made, frozen=True, kw_only=True)


def parse(options_type: type[T], argv: Sequence[str], prog: str, description: str) -> T:
    """Turn command line arguments into the options dataclass; exits with 2 on a wrong flag, 0 after ``--help``."""
    import tyro

    flags = tyro.cli(
        _flag_class(options_type),
        prog=prog,
        description=description,
        args=list(argv),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
    )
    given = {f.name: getattr(flags, f.name) for f in dataclasses.fields(options_type)}  # type: ignore[arg-type]
    for field in dataclasses.fields(options_type):  # type: ignore[arg-type]
        if field.metadata.get("repeat") and not given[field.name]:
            given[field.name] = field.default
    return options_type(**given)


def _terminate(signum: int, _frame: object) -> None:
    raise SystemExit(128 + signum)


def run_command(
    prog: str, function: Callable[[Any], int], options_type: type[Any], argv: Sequence[str] | None = None
) -> int:
    """Parse, call, and map whatever happens to an exit code (design.md section 5).

    Args:
        prog: the command's name.
        function: takes the options, returns the exit code.
        options_type: the frozen dataclass the flags are made from.
        argv: arguments without the command's name; those of this process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        from gamma_runtime import __version__

        out(f"{prog} {__version__}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    debug = "--debug" in arguments
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        options = parse(options_type, arguments, prog, (function.__doc__ or "").strip())
        return function(options)
    except GammaError as error:
        return _report(error, debug)
    except KeyboardInterrupt:
        log("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of a pipe went away: `gamma-run … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if known := _known(error):
            return _report(known, debug)
        traceback.print_exc()
        log(f"{prog}: this is a bug in gamma-edge; please report it with the lines above")
        return EXIT_BUG
    finally:
        signal.signal(signal.SIGTERM, before)  # whoever called us from Python has a handler of its own


def _known(error: Exception) -> GammaError | None:
    """What the machine refused: memory, file handles, disk. None for a bug of ours."""
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        return EnvironmentFault(text, hint="too many open files: raise ulimit -n")
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(words in text for words in _NO_MEMORY):
        return EnvironmentFault(
            f"out of memory ({text[:300] or type(error).__name__})", hint="close other programs or add swap"
        )
    if isinstance(error, OSError):
        return OutputError(text, hint="check the path, the permissions and the free space")
    return None


def _report(error: GammaError, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    else:
        log(f"error: {error}")
    return error.exit_code
