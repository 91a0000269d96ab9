"""The threads in which synchronous web code runs: whoever cancels a request cancels what runs there.

A task that waits for a thread cannot be cancelled without leaving the thread alone, with its work, past the
container's ``max_inputs``, or waiting for ever for somebody who takes its next part. So the thread is thrown
at, and the task goes on when it has ended.
"""

import inspect
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import update_wrapper
from types import FunctionType
from typing import Any, Callable, Mapping, Optional, Protocol, Sequence

from ..exception import InputCancellation
from ._threads import ThreadCall


class Owner(Protocol):
    """A request, which knows the thread that works for it."""

    thread: "Optional[RequestThread]"


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


def in_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that FastAPI takes for the same one, and that its request knows when it runs."""
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        return function

    def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        request = owner.get()
        if request is None:
            return function(*args, **kwargs)
        request.thread = thread = RequestThread(function, args, kwargs)
        return thread.run()

    def called(*args: Any, **kwargs: Any) -> Any:
        return run(args, kwargs)

    # FastAPI looks the names of annotations up in the function's globals.
    names = getattr(function, "__globals__", {})
    made = FunctionType(called.__code__, names, called.__name__, None, called.__closure__)
    return update_wrapper(made, function)
