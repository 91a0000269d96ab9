"""What ``map(return_exceptions=True)`` yields for an input that raised."""

from __future__ import annotations

from typing import Any

_HEAP_TYPE = 1 << 9


class UserCodeException(Exception):
    """An exception of user code, returned instead of raised.

    What ``map`` yields is an instance of this class and of the exception's own: ``isinstance`` holds for
    both, and so do the attributes.

    Attributes:
        exc: the exception itself.

    Example:
        >>> returned_exception(KeyError("k"))
        UserCodeException(KeyError('k'))
        >>> isinstance(returned_exception(KeyError("k")), KeyError)
        True
    """

    exc: BaseException

    def __init__(self, exc: BaseException) -> None:
        super().__init__(exc)
        self.exc = exc

    def __repr__(self) -> str:
        return f"UserCodeException({self.exc!r})"

    def __reduce__(self) -> Any:
        # A class made at run time has no name that another process could find it by.
        return returned_exception, (self.exc,)


def returned_exception(error: BaseException) -> BaseException:
    """Return an exception as ``UserCodeException`` and as what it is."""
    kind = type(error)
    try:
        both: Any = type("UserCodeException", (UserCodeException, kind), {"__module__": __name__})
        native: Any = next(x for x in kind.__mro__ if not x.__flags__ & _HEAP_TYPE)
        # Fields of built-in exceptions (errno, a decoder's position) are not in their dict.
        arguments = native.__reduce__(error)[1]
        made = both.__new__(both, *arguments)
        native.__init__(made, *arguments)
        made.args = error.args
        made.__dict__.update(error.__dict__)
    except Exception:
        # A class that cannot be inherited from, or made without its own arguments.
        made = UserCodeException(error)
    made.exc = error
    made.__cause__, made.__context__ = error.__cause__, error.__context__
    made.__suppress_context__ = error.__suppress_context__
    result: BaseException = made.with_traceback(error.__traceback__)
    return result
