"""How a command ends that was not given what it needs, or failed: one line on standard error, and the exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import typer

from unfused_fast.errors import Interrupted, UserError, cause, escaped
from unfused_fast.launch import RESTARTS_LEFT

USER_ERROR, FAULT, INTERRUPTED = 1, 70, 130
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # of click, or of typer's own copy of it
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""torchrun's variable with the file in which a process leaves the reason why it failed."""
_FULL, _NO_RIGHT = "free space, then run the same command again", "name another path, or get permission for this one"
_OTHER_KIND = "name another path"
_REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _NO_RIGHT),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG), _OTHER_KIND),
}
"""Numbers of what a file system refuses -> what to do, for errors that no command has a sentence of its own for."""


def end_of_usage(error: Any) -> NoReturn:
    """Ends on a command line with unknown, missing or wrong parts, in one line as other errors."""
    message = str(error.format_message()).strip().removeprefix("Invalid value: ").replace("Value error, ", "")
    if type(error).__name__ != "NoArgsIsHelpError":  # that one has printed its help
        asked = "" if error.ctx is None else f"; see: {error.ctx.command_path} --help"
        message = f"error: {escaped(' '.join(message.removesuffix('.').split()))}{asked}"
    if message:
        print(message, file=sys.stderr)
    if named := next((name for name in sys.argv[1:] if name.startswith("-") and Path(name).exists()), None):
        shown = escaped(named)
        print(f"{shown} is a file here, but reads as an option: write ./{shown}, or ./* for all files", file=sys.stderr)
    sys.exit(error.exit_code)


def end(error: Exception) -> NoReturn:
    """Ends on an error: exit code 1 for what the user can repair, 130 for an interruption, 70 for a fault in here."""
    kind = type(error).__name__  # of classes that would have to be imported
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        where = "" if error.filename is None else f"{error.filename}: "
        error = UserError(f"{where}{cause(error)}; {_REFUSALS[error.errno]}")
    mendable = isinstance(error, UserError | BrokenPipeError | Interrupted)
    leave_reason(f"error: {error}", again=kind == "RankLost" or not mendable)
    if isinstance(error, Interrupted):
        print(escaped(str(error)), file=sys.stderr)
        sys.exit(INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(USER_ERROR)
    if isinstance(error, UserError):
        if kind == "RankLost" and int(os.environ.get(RESTARTS_LEFT, "0")):  # what follows is the launcher's to say
            print(escaped(str(error).split(";")[0]), file=sys.stderr)
        elif kind != "FailedOnFirst":  # rank 0 has said it
            lines = "\n".join(map(escaped, str(error).split("\n")))
            print(f"error: {lines}", file=sys.stderr)
        sys.exit(USER_ERROR)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the second is of torch on a CPU
        print("error: not enough memory; end other programs, or allow this one more (see ulimit -v)", file=sys.stderr)
        sys.exit(USER_ERROR)
    if kind == "OutOfMemoryError":  # torch's, outside a training loop, which has advice of its own
        print("error: not enough memory on the GPU; end other programs there, or use --device cpu", file=sys.stderr)
        sys.exit(USER_ERROR)
    print(f"error: {kind}: {error} (this is a bug in unfused-fast; --debug shows where)", file=sys.stderr)
    sys.exit(FAULT)


def leave_reason(text: str, again: bool) -> None:
    """Leaves why this process fails to what started it: torchrun, or a launcher here; `again`: whether the same command
    may succeed. Where the file cannot be written nothing is left, and the error itself is printed as ever.
    """
    if path := os.environ.get(ERROR_FILE):
        reason = {"message": text, "timestamp": int(time.time()), "again": again}
        with suppress(OSError):
            Path(path).write_text(json.dumps(reason), encoding="utf-8")


def reason_left(path: str | Path) -> tuple[str, bool] | None:
    """What leave_reason wrote; None where it did not, or not to the end."""
    try:
        reason = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(reason["message"]), bool(reason["again"])


class Terminal(io.FileIO):
    """A terminal that may be closed while a command saves its work: what is written after that goes nowhere."""

    def write(self, data: Any, /) -> int:
        """As of io.FileIO."""
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(data).nbytes


def run_app(app: typer.Typer | Callable[[], None]) -> NoReturn:
    """Runs the command line; ends with one sentence and an exit code instead of a traceback, unless --debug is
    given.
    """
    debug = "--debug" in sys.argv[1:] or bool(os.environ.get("UNFUSED_DEBUG"))
    sys.argv[1:] = [
        *(["--debug"] if "--debug" in sys.argv[1:] else []),
        *(item for item in sys.argv[1:] if item != "--debug"),
    ]
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or Path(os.devnull).open("w")  # noqa: SIM115 (None where it was closed)
        if stream.isatty():
            raw = io.BufferedWriter(Terminal(stream.fileno(), "w", closefd=False))
            stream = TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)
        setattr(sys, name, stream)
    if isinstance(sys.stdout, TextIOWrapper):  # characters that the terminal's encoding lacks are written as \uNNNN
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False) if isinstance(app, typer.Typer) else app()
    except UsageError as error:
        end_of_usage(error)
    except Exception as error:
        if debug:
            traceback.print_exc()
        end(error)
    else:
        if code == INTERRUPTED:  # so typer ends on Ctrl-C, without a word
            print("interrupted", file=sys.stderr)
        sys.exit(code or 0)
