"""Requests over HTTP that are made again while the dispatcher is away, and what its refusals are."""

import errno
import json
import time
from typing import Callable, Iterator, Optional, TypeVar

from .transport import FULL

T = TypeVar("T")
# A minute in all: for so long a container goes on without its dispatcher, which may be started elsewhere.
_ATTEMPTS = 36
_FIRST_PAUSE = 0.05
_LAST_PAUSE = 2.0


class Refused(Exception):
    """The dispatcher refused a request.

    Args:
        kind: the name of the exception.
        text: why.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def checked(status: int, body: bytes) -> bytes:
    """Return the body of an answer. Raises Refused, or OSError for what is no answer of a dispatcher."""
    if status < 300:
        return body
    if status == FULL:
        raise OSError(errno.ENOSPC, body[:500].decode("utf-8", "replace"))
    try:
        kind, text = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        raise ConnectionError(f"the dispatcher answered {status}: {body[:200]!r}") from None
    raise Refused(str(kind), str(text))


def pauses() -> Iterator[Optional[float]]:
    """Yield the seconds to wait after each attempt that failed; None after the last one."""
    for attempt in range(_ATTEMPTS - 1):
        yield min(_FIRST_PAUSE * 2**attempt, _LAST_PAUSE)
    yield None


def again(work: Callable[[], T]) -> T:
    """Do something once more while the dispatcher is away for a moment. Raises what ``work`` does."""
    for pause in pauses():
        try:
            return work()
        except OSError as error:
            if pause is None or error.errno == errno.ENOSPC:
                raise
            time.sleep(pause)
    raise AssertionError
