"""A call that was spawned: its results can be fetched later, from anywhere."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._bridge import blocking, blocking_function, io
from ._invocation import decode_output

if TYPE_CHECKING:
    from .client import Client

T = TypeVar("T")


class FunctionCall(Generic[T]):
    """A handle on a spawned call; keep ``object_id`` to find it again.

    Example:
        >>> call = square.spawn(3)  # doctest: +SKIP
        >>> call.get(timeout=10)  # doctest: +SKIP
        9
    """

    def __init__(self, call_id: str, client: Client | None = None) -> None:
        self._call_id = call_id
        self._client = client

    def __repr__(self) -> str:
        return f"FunctionCall({self._call_id!r})"

    def __reduce__(self) -> Any:
        return FunctionCall, (self._call_id,)

    @property
    def object_id(self) -> str:
        """The call's id, ``fc-…``."""
        return self._call_id

    @staticmethod
    @blocking_function
    async def from_id(
        function_call_id: str, client: Client | None = None, is_generator: bool = False
    ) -> FunctionCall[Any]:
        """Return the handle of a call by its id; nothing is asked of the server until it is used."""
        return FunctionCall(function_call_id, client)

    @blocking
    async def get(self, timeout: float | None = None) -> T:
        """Wait for the result and return it.

        Args:
            timeout: seconds; 0 asks without waiting, None waits for ever.

        Raises:
            TimeoutError: the builtin one: there is no result yet.
            OutputExpiredError: the result is no longer kept.
            NotFoundError: there is no such call.
        """
        client = await self._connected()
        value, payloads = await io(
            client._request_full("call.get", {"call_id": self._call_id, "index": 0, "timeout": timeout})
        )
        if not value["done"]:
            raise builtins.TimeoutError(f"call {self._call_id} has no result yet")
        result: T = await decode_output(client, value["status"], payloads[0], value["flags"])
        return result

    @blocking
    async def cancel(self, terminate_containers: bool = False) -> None:
        """Cancel what has not finished.

        Args:
            terminate_containers: also end the containers that run it; other inputs on them run again
                elsewhere.
        """
        client = await self._connected()
        await io(
            client._request(
                "call.cancel", {"call_id": self._call_id, "terminate_containers": terminate_containers}
            )
        )

    async def _connected(self) -> Client:
        if self._client is None or self._client.is_closed():
            from .client import Client

            self._client = await Client.from_env.aio()
        return self._client


@blocking_function
async def gather(*function_calls: FunctionCall[Any]) -> list[Any]:
    """Wait for several calls and return their results in the order of the arguments.

    Raises:
        BaseException: what the first failing call (in that order) raises.
    """
    return [await call.get.aio() for call in function_calls]
