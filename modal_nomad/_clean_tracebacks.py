"""Tracebacks of calls without the library's own frames, as long as these explain nothing."""

from __future__ import annotations

import os
from types import TracebackType

_LIBRARY_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep


def cut_own_frames(error: Exception) -> None:
    """Cut the library's frames from an error's traceback.

    A failure inside the library itself keeps them all, and so does everything with ``MODAL_TRACEBACK=1``.
    """
    from .exception import Error

    frames = _frames(error.__traceback__)
    kept = [frame for frame in frames if not frame.tb_frame.f_code.co_filename.startswith(_LIBRARY_FOLDER)]
    raised_here = bool(frames) and frames[-1] not in kept
    if len(kept) == len(frames) or (raised_here and not isinstance(error, Error)) or _wants_them_all():
        return
    tb: TracebackType | None = None
    for frame in reversed(kept):
        tb = TracebackType(tb, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    error.__traceback__ = tb


def _frames(tb: TracebackType | None) -> list[TracebackType]:
    frames = []
    while tb is not None:
        frames.append(tb)
        tb = tb.tb_next
    return frames


def _wants_them_all() -> bool:
    from .config import config
    from .exception import InvalidError

    try:
        return bool(config["traceback"])
    except InvalidError:
        # The configuration itself is what is wrong.
        return True
