"""The threads in which synchronous web code runs: whoever cancels a request cancels what runs there.

A task that waits for a thread cannot be cancelled without leaving the thread alone, with its work, past the
container's ``max_inputs``, or waiting for ever for somebody who takes its next part. So the thread is thrown
at, and the task goes on when it has ended.
"""

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import wraps
from typing import Any, Callable, Mapping, Optional, Protocol, Sequence

from ..exception import InputCancellation
from ._threads import ThreadCall


class Owner(Protocol):
    """A request, which knows the thread that works for it."""

    thread: "Optional[RequestThread]"


_FOLLOWED = "_modal_nomad_followed"

owner: "ContextVar[Optional[Owner]]" = ContextVar("modal_nomad_web_request", default=None)
"""The request that code runs for, in threads as well."""


class RequestThread:
    """A call of synchronous code for a request.

    Args:
        function: the code.
        args: positional arguments.
        kwargs: keyword arguments.

    Attributes:
        over: it has ended.
    """

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.over = False
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._cancelled = False
        self._call = ThreadCall(self._begin, (), {})

    def run(self) -> Any:
        """Call the code, in this thread."""
        try:
            return self._call.run()
        finally:
            self.over = True

    def _begin(self) -> Any:
        if self._cancelled:
            raise InputCancellation("the request was cancelled")
        return self._function(*self._args, **self._kwargs)

    def interrupt(self) -> None:
        """Throw InputCancellation into the code, or have it not begin."""
        if self._cancelled:
            # What it does to end is let be.
            return
        self._cancelled = True
        self._call.interrupt(InputCancellation("the request was cancelled"))


class RequestExecutor(ThreadPoolExecutor):
    """An executor whose work is that of the request that hands it in."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        request = owner.get()
        if request is None:
            return super().submit(fn, *args, **kwargs)
        request.thread = thread = RequestThread(fn, args, kwargs)
        return super().submit(thread.run)


def _run(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call code in this thread, for the request that it belongs to."""
    request = owner.get()
    if request is None:
        return function(*args, **kwargs)
    request.thread = thread = RequestThread(function, args, kwargs)
    return thread.run()


def follow_anyio() -> None:
    """Have requests know the threads that anyio runs code in: ``def`` routes of FastAPI and Starlette.

    To be called when the user's app is made: who has not imported anyio by then is not followed.
    """
    module: Any = sys.modules.get("anyio.to_thread")
    if module is None or hasattr(module.run_sync, _FOLLOWED):
        return
    run_sync = module.run_sync

    @wraps(run_sync)
    async def followed(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if owner.get() is None:
            return await run_sync(func, *args, **options)
        return await run_sync(_run, func, args, {}, **options)

    setattr(followed, _FOLLOWED, True)
    module.run_sync = followed
