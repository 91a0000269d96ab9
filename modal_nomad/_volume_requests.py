"""Requests about a Volume's tree: blocking ones, each on a thread, their errors those of the public API."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TypeVar

from . import exception
from ._bridge import io

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Do something that blocks, and return what it returns.

    Args:
        work: asks the dispatcher, or a mounted Volume.

    Raises:
        FileNotFoundError: nothing is at a path.
        FileExistsError: something is there already.
        ConnectionError: the dispatcher did not answer.
        OSError: there is no space left (``ENOSPC``), and where.
        Error: what it answered.
    """
    from .client import _translate
    from .wire.asking import Refused

    try:
        return await io(_on_a_thread(work))
    except Refused as error:
        builtin = {"PathMissing": FileNotFoundError, "PathExists": FileExistsError}.get(error.kind)
        raise (builtin(str(error)) if builtin else _translate(error)) from None
    except (FileNotFoundError, PermissionError, TimeoutError):
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise exception.ConnectionError(f"the dispatcher did not answer: {error}") from None


async def _on_a_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)
