"""Calling a generator: what it yields comes while it runs, no further ahead than a window."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from . import _execution_context as context
from . import exception
from ._bridge import io
from ._invocation import blob_payload, connection_error, decode_output, encode_input
from ._wakeup import Wakeup
from .wire.connection import Call, Output
from .wire.ids import new_id
from .wire.serialization import loads
from .wire.window import ReadWindow

if TYPE_CHECKING:
    from .client import Client

_PAGE = 1000
_POLL_SECONDS = 20.0


class _Stream(Wakeup):
    """A generator's call that this process reads."""

    def __init__(self, client: Client, function_id: str, method: str) -> None:
        super().__init__()
        self.window = ReadWindow()
        self.end: Output | None = None
        self.error: BaseException | None = None
        self.call = Call(
            new_id("fc"),
            function_id,
            self._ended,
            self._failed,
            parent=context.current_input_id() or "",
            method=method,
            window=self.window,
            on_items=self.wake,
        )

    def _ended(self, outputs: list[Output]) -> None:
        self.end = outputs[0]
        self.wake()

    def _failed(self, error: BaseException) -> None:
        self.error = connection_error(error)
        self.wake()

    def something_to_do(self) -> bool:
        return bool(self.window) or self.end is not None or self.error is not None


async def stream_remote(
    client: Client,
    function_id: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    home: str = "",
    method: str = "",
) -> AsyncIterator[Any]:
    """Run a generator remotely and yield what it yields; closed early, it is closed there as well."""
    payload, flags = await encode_input(client, args, kwargs, home)
    stream = _Stream(client, function_id, method)
    window = stream.window
    client._submit(stream.call, [(0, payload, flags)])
    try:
        while True:
            if window:
                payload, flags = window.take()
                taken = window.to_tell()
                if taken is not None:
                    client._taken(stream.call, taken)
                if flags:
                    payload = await blob_payload(client, payload, flags)
                yield loads(payload)
            elif stream.error is not None:
                raise stream.error
            elif stream.end is not None:
                if window:
                    # They came between the two looks.
                    continue
                _check_end(await decode_output(client, *stream.end[1:]), window.taken)
                return
            else:
                waiter = stream.waiter(stream.something_to_do)
                if waiter is not None:
                    await io(waiter)
    finally:
        client._end(stream.call)


async def stream_spawned(client: Client, call_id: str) -> AsyncIterator[Any]:
    """Yield what a spawned generator yielded and yields, from its first item on."""
    start = 0
    while True:
        args = {"call_id": call_id, "index": 0, "start": start, "limit": _PAGE, "timeout": _POLL_SECONDS}
        value, payloads = await io(client._request_full("call.items", args))
        if value["done"]:
            _check_end(await decode_output(client, value["status"], payloads[0], value["flags"]), start)
            return
        for payload, flags in zip(payloads, value["flags"]):  # noqa: B905 (not on 3.9)
            start += 1
            yield loads(await blob_payload(client, payload, flags))


def _check_end(count: Any, taken: int) -> None:
    if count != taken:
        raise exception.InternalFailure(f"a generator yielded {count} items and {taken} of them arrived")
