"""Exceptions to one clear line and an exit code: 1 for failures, 2 for usage errors, 130 for Ctrl-C."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from modal_nomad.cli import _terminal

FAILURE = 1
USAGE = 2
INTERRUPTED = 130

_PACKAGE_DIR = str(Path(__file__).resolve().parent.parent) + os.sep
# Our own frames in a traceback that came from a container, whatever directory the runtime stood in.
_REMOTE_RUNTIME = re.compile(r"(?:^|/)modal_nomad/(?:worker|wire)/[^/]+\.py$")


class CommandError(Exception):
    """Something the user can set right; its text is printed alone and the exit code is ``code``."""

    code = FAILURE


class UsageError(CommandError):
    """The command line itself is wrong: a missing file, an unknown name, a bad flag."""

    code = USAGE


def config_files(given: list[Path], command: str) -> list[Path]:
    """Return the files that ``--config`` names. Raises UsageError."""
    for path in given:
        if not path.is_file():
            raise UsageError(
                f"{path}: no such file. 'modal-nomad {command} --print-config' prints one to start from."
            )
    return given


class UserCodeError(Exception):
    """The user's code raised; ``__cause__`` is what it raised."""


@contextmanager
def user_code() -> Iterator[None]:
    """Mark what runs inside as the user's: an ``Exception`` that leaves it is printed with its traceback.

    Errors of modal_nomad itself pass through unchanged, they say the remedy in their own words.
    """
    try:
        yield
    except (CommandError, UserCodeError):
        raise
    except Exception as exc:
        if belongs_to_typer(exc) or _is_ours(exc):
            raise
        raise UserCodeError from exc


def belongs_to_typer(exc: BaseException) -> bool:
    """Say whether typer itself turns this exception into an exit code."""
    # BadParameter < UsageError < ClickException, in typer's own copy of click or in click proper.
    return isinstance(exc, (typer.Exit, typer.Abort, *typer.BadParameter.__mro__[1:3]))


def report(exc: BaseException) -> int:
    """Print an exception to stderr the way a user wants to read it and return the exit code."""
    if isinstance(exc, KeyboardInterrupt):
        _say("Cancelled.")
        return INTERRUPTED
    if isinstance(exc, UserCodeError) and exc.__cause__ is not None:
        sys.stderr.write(user_traceback(exc.__cause__))
        return FAILURE
    if isinstance(exc, CommandError):
        _say(f"Error: {exc}")
        return exc.code
    if _wants_full_traceback():
        traceback.print_exception(exc)
        return FAILURE
    if _is_ours(exc) or isinstance(exc, (OSError, TimeoutError)):
        _say(f"Error: {_one_line(exc)}{_where(exc)}")
        return FAILURE
    frame = traceback.extract_tb(exc.__traceback__)[-1:]
    where = f" ({Path(frame[0].filename).name}:{frame[0].lineno})" if frame else ""
    _say(
        f"Error: unexpected {type(exc).__name__}: {_one_line(exc)}{where}."
        " Set MODAL_TRACEBACK=1 for the whole traceback."
    )
    return FAILURE


def user_traceback(exc: BaseException) -> str:
    """Return the traceback of an exception, without the frames that only carried the call."""
    shown = traceback.TracebackException.from_exception(exc)
    if not _wants_full_traceback():
        pending: list[traceback.TracebackException | None] = [shown]
        seen: set[int] = set()
        while pending:
            part = pending.pop()
            if part is None or id(part) in seen:
                continue
            seen.add(id(part))
            kept = [frame for frame in part.stack if _is_user_frame(frame.filename)]
            # A file that does not parse has no frame of its own: the error itself names the line.
            if kept or getattr(part, "msg", None) is not None:
                part.stack[:] = kept
            pending += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
    return "".join(shown.format())


def _is_user_frame(filename: str) -> bool:
    if filename.startswith(_PACKAGE_DIR) or _REMOTE_RUNTIME.search(filename):
        return False
    if filename.startswith("<frozen importlib") or filename == "<frozen runpy>":
        return False
    return "/asyncio/" not in filename and "/importlib/" not in filename


def _is_ours(exc: BaseException) -> bool:
    # Looked up, not imported: a command that never loaded the SDK cannot have raised its errors.
    module = sys.modules.get("modal_nomad.exception")
    return module is not None and isinstance(exc, module.Error)


def _one_line(exc: BaseException) -> str:
    text = str(exc).strip()
    return text or type(exc).__name__


def _where(exc: BaseException) -> str:
    """Name the user's line that led to an error of ours, where there is one."""
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if _is_user_frame(f.filename)]
    site = [f for f in frames if "site-packages" not in f.filename and not _is_stdlib(f.filename)]
    if not site or "\n" in str(exc):
        return ""
    return f" ({os.path.relpath(site[-1].filename)}:{site[-1].lineno})"


def _is_stdlib(filename: str) -> bool:
    return filename.startswith("<") or filename.startswith(str(Path(os.__file__).parent) + os.sep)


def _wants_full_traceback() -> bool:
    from modal_nomad.config import config
    from modal_nomad.exception import InvalidError

    try:
        return bool(config["traceback"])
    except InvalidError:
        # The configuration itself is what is wrong, and what is being reported.
        return False


def _say(text: str) -> None:
    _terminal.say(text, "red" if text.startswith("Error") else None, err=True)
