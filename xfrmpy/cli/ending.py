"""How every command ends: with an exit code, one sentence on what went wrong, and no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

import typer

from xfrmpy.cli.failure import tell_failure
from xfrmpy.cli.terminal import note
from xfrmpy.failures import ExitCode, Failure, OperatorError

INTERRUPTED = 128 + 2
"""What a shell reports of a process that died of SIGINT."""


def end(command: Callable[[], int]) -> int:
    """Run one command; returns its exit code, whatever happens."""
    try:
        code = _end(command)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


_UsageError: Any = typer.BadParameter.__base__
"""click's; it has no public name in typer, which brings its own click from 0.27 on."""


def _end(command: Callable[[], int]) -> int:
    try:
        return command()
    except _UsageError as error:
        return _tell_usage(error)
    except OperatorError as error:
        return tell_failure(error.failure)
    except BrokenPipeError:
        raise
    except SystemExit as error:  # shell completion ends with it
        return error.code if isinstance(error.code, int) else ExitCode.FAILED
    except Exception as error:  # the last line of defence: a code, and no traceback
        return tell_failure(_defect(error))


def _tell_usage(error: Any) -> int:
    """Whatever click's error is about, in one line, and where the help is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return ExitCode.USAGE
    command = error.ctx.command_path if error.ctx is not None else "xfrmpy"
    note(f"xfrmpy: {error.format_message()}")
    note(f"Try `{command} --help`.")
    return ExitCode.USAGE


def _defect(error: Exception) -> Failure:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "unknown"
    if place is not None:
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
    evidence = (("error", f"{type(error).__name__}: {error}"), ("at", where))
    return Failure(code="XF4006", summary="the command itself failed", evidence=evidence)


def _silence(stream: TextIO) -> None:
    """The reader has gone: what is still buffered must not raise again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
