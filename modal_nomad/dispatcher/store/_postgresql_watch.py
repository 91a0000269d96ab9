"""Whether a server is still at a statement that takes long: it is asked over another connection."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import asyncpg

LOOK_SECONDS = 10.0
"""So often it is asked, and so long it has to answer."""
_NAME = "modal-nomad watch"
_QUERY = (
    "SELECT state = 'active' OR state_change > clock_timestamp() - interval '5 s'"
    " FROM pg_stat_activity WHERE pid = $1"
)


class Watch:
    """Ends a connection on which no answer will come, so that who waits for one may connect anew.

    A server that is frozen answers nobody, though its kernel does; one that has answered, or was never
    asked, is not at the statement. What is at it may take its time.

    Args:
        loop: the connection's, which runs while a statement does.
        connection: which.
        dsn: the server.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Any, dsn: str) -> None:
        self.reason = ""
        self._loop = loop
        self._connection = connection
        self._dsn = dsn
        self._task: asyncio.Task[None] | None = None
        self._timer = loop.call_later(LOOK_SECONDS, self._begin)

    def end(self) -> None:
        """Look no more: there is an answer, or none will come."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._look())

    async def _look(self) -> None:
        while True:
            try:
                at_it = await asyncio.wait_for(self._ask(), LOOK_SECONDS)
            except asyncpg.PostgresError:
                # It answers, be it that it has no connection left.
                at_it = True
            except (asyncio.TimeoutError, TimeoutError):
                self.reason = f"no answer within {LOOK_SECONDS:g} s"
                break
            except (OSError, asyncpg.InterfaceError) as error:
                self.reason = str(error) or type(error).__name__
                break
            if not at_it:
                self.reason = "it is not at our statement any more"
                break
            await asyncio.sleep(LOOK_SECONDS)
        self._connection.terminate()

    async def _ask(self) -> bool:
        # Of several hosts the one that we are connected to.
        address = getattr(self._connection, "_addr", None)
        where = dict(zip(("host", "port"), address, strict=False)) if isinstance(address, tuple) else {}
        other = await asyncpg.connect(self._dsn, server_settings={"application_name": _NAME}, **where)
        try:
            return bool(await other.fetchval(_QUERY, self._connection.get_server_pid()))
        finally:
            other.terminate()
