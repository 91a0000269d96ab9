"""One input in, one output back: how a call crosses to a container and its result comes home."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _execution_context as context
from . import exception
from ._bridge import io
from .wire import frames
from .wire._call import Call
from .wire._requests import Outcome
from .wire.ids import new_id
from .wire.serialization import dumps, loads, unpack_exception

if TYPE_CHECKING:
    from .client import Client
    from .wire.connection import Output
    from .wire.input_frames import Input


async def encode_input(
    client: Client, args: tuple[Any, ...], kwargs: dict[str, Any], home: str = ""
) -> tuple[bytes, int]:
    """Return payload and flags of one input, in the caller's thread.

    Args:
        client: where to.
        args: positional arguments.
        kwargs: keyword arguments.
        home: the module that the container has loaded, where that is known.
    """
    data = dumps((args, kwargs), home)
    if len(data) <= frames.INLINE_LIMIT:
        return data, 0
    return (await io(client._put_blob(data))).encode(), frames.FLAG_BLOB


async def decode_output(client: Client, status: int, payload: bytes, flags: int) -> Any:
    """Return the value of an output, or raise what it stands for, in the caller's thread."""
    payload = await blob_payload(client, payload, flags)
    if status == frames.SUCCESS:
        return loads(payload)
    raise output_error(status, payload)


async def blob_payload(client: Client, payload: bytes, flags: int) -> bytes:
    """Return the bytes that a payload stands for, which may be in a blob."""
    if flags & frames.FLAG_BLOB:
        return await io(client._get_blob(payload.decode()))
    return payload


def output_error(status: int, payload: bytes) -> BaseException:
    """Return the exception that an unsuccessful output stands for."""
    if status in (frames.FAILURE, frames.INIT_FAILURE):
        try:
            return unpack_exception(payload)
        except Exception:
            return exception.RemoteError(payload.decode(errors="replace"))
    text = payload.decode(errors="replace")
    if status == frames.TIMEOUT:
        return exception.FunctionTimeoutError(text or "the input ran longer than its function's timeout")
    if status == frames.TERMINATED:
        return exception.RemoteError(text or "the input was cancelled")
    return exception.RemoteError(text)


class Unary(Outcome):
    """A call of one input that this process waits for; ``io`` awaits its output."""

    def __init__(self, function_id: str, method: str = "") -> None:
        super().__init__()
        self.call = Call(
            new_id("fc"),
            function_id,
            self._arrived,
            self._failed,
            parent=context.current_input_id() or "",
            method=method,
            alone=True,
        )

    def _arrived(self, outputs: list[Output]) -> None:
        self.settle(outputs[0])

    def _failed(self, error: BaseException) -> None:
        self.fail(connection_error(error))


async def call_remote(
    client: Client,
    function_id: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    home: str = "",
    method: str = "",
) -> Any:
    """Run one input remotely and return its value; a cancelled wait cancels the input."""
    # A coroutine less is some microseconds less, in a call that takes two hundred.
    payload, flags = dumps((args, kwargs), home), 0
    if len(payload) > frames.INLINE_LIMIT:
        payload, flags = await encode_input(client, args, kwargs, home)
    connection = client._live()
    unary = Unary(function_id, method)
    call = unary.call
    connection.submit(call, [(0, payload, flags)])
    try:
        output: Output = await io(unary, connection.direct)
    finally:
        connection.end(call)
    _, status, payload, flags = output
    if status == frames.SUCCESS and not flags & frames.FLAG_BLOB:
        return loads(payload)
    return await decode_output(client, status, payload, flags)


async def spawn_call(client: Client, function_id: str, inputs: list[Input], method: str = "") -> str:
    """Hand inputs over for good and return the call's id: the store has them then."""
    parent = context.current_input_id() or ""
    call = Call(new_id("fc"), function_id, _ignore, _ignore, parent=parent, method=method)
    await io(client._submit_durable(call, inputs, len(inputs)))
    return call.call_id


def connection_error(error: BaseException) -> BaseException:
    """Return the public exception for a connection that failed for good."""
    if isinstance(error, exception.Error):
        return error
    kind = getattr(exception, getattr(error, "kind", ""), exception.ConnectionError)
    result: BaseException = kind(str(error))
    return result


def _ignore(_: Any) -> None:
    pass
