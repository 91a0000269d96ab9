"""One call of synchronous code in a thread of its own, which can be thrown at."""

import contextvars
import threading
from typing import Any, Callable, Mapping, Optional, Sequence

from ..exception import FunctionTimeoutError, InputCancellation
from ._pool import throw

_THROWN = (FunctionTimeoutError, InputCancellation)


class ThreadCall:
    """A call for an executor: ``executor.submit(ThreadCall(...).run)``.

    Args:
        function: synchronous code.
        args: positional arguments.
        kwargs: keyword arguments.
    """

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._context = contextvars.copy_context()
        self._ident: Optional[int] = None
        self._lock = threading.Lock()

    def run(self) -> Any:
        """Call the function, in the context that made this object."""
        self._ident = threading.get_ident()
        try:
            return self._context.run(self._function, *self._args, **self._kwargs)
        finally:
            self._end()

    def _end(self) -> None:
        # What is thrown late must not hit the executor's own code, or the next call in this thread.
        while self._ident is not None:
            try:
                with self._lock:
                    ident, self._ident = self._ident, None
                    throw(ident, None)
            except _THROWN:
                continue

    def interrupt(self, error: BaseException) -> None:
        """Throw into the running function; nothing happens when it has ended."""
        with self._lock:
            if self._ident is not None:
                throw(self._ident, type(error))
