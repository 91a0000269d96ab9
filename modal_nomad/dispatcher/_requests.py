"""The table of requests, and what each reads its arguments with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from modal_nomad.exception import InvalidError

if TYPE_CHECKING:
    from modal_nomad.dispatcher.core import Dispatcher
    from modal_nomad.dispatcher.sessions import ClientSession

Answer: TypeAlias = "tuple[Any, list[bytes]]"


class Request(NamedTuple):
    """A request as it came.

    Attributes:
        session: whose it is.
        args: its arguments.
        payloads: the bytes that came with it.
        number: it comes again under the same one after a reconnect.
        answered: the client has the answers to all requests below this number.
    """

    session: ClientSession
    args: Mapping[str, Any]
    payloads: Sequence[bytes] = ()
    number: int = 0
    answered: int = 0

    @property
    def repeated(self) -> bool:
        """Whether it may have come before."""
        return self.number <= self.session.again


Method = Callable[["Dispatcher", "ClientSession", Mapping[str, Any]], Awaitable[Answer]]
FullMethod = Callable[["Dispatcher", Request], Awaitable[Answer]]

_METHODS: dict[str, FullMethod] = {}


def method(name: str) -> Callable[[Method], Method]:
    """Register a request that needs its arguments alone."""

    def register(function: Method) -> Method:
        def call(server: Dispatcher, request: Request) -> Awaitable[Answer]:
            return function(server, request.session, request.args)

        _METHODS[name] = call
        return function

    return register


def full_method(name: str) -> Callable[[FullMethod], FullMethod]:
    """Register a request that comes with payloads, or is answered once however often it comes."""

    def register(function: FullMethod) -> FullMethod:
        _METHODS[name] = function
        return function

    return register


def find(name: Any) -> FullMethod:
    """Return a method by name. Raises InvalidError."""
    found = _METHODS.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidError(
            f"this dispatcher has no request {name!r}; its version may be older than the client's"
        )
    return found


def text(args: Mapping[str, Any], name: str) -> str:
    """Return a string that must be there. Raises InvalidError."""
    value = args.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidError(f"the request needs {name} as a string")
    return value


def optional(args: Mapping[str, Any], name: str) -> str | None:
    """Return a string, or None where it is empty or absent. Raises InvalidError."""
    value = args.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidError(f"{name} must be a string")
    return value or None


def count(args: Mapping[str, Any], name: str) -> int:
    """Return a whole number of 0 or more. Raises InvalidError."""
    value = args.get(name)
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise InvalidError(f"the request needs {name} as a whole number of 0 or more")
    return value


def seconds(args: Mapping[str, Any], name: str) -> float:
    """Return a number of seconds. Raises InvalidError."""
    value = args.get(name)
    if not isinstance(value, (int, float)) or not value >= 0:
        raise InvalidError(f"the request needs {name} as a number of seconds")
    return float(value)
