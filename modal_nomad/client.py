"""The client: this process's connection to a dispatcher."""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import exception
from ._bridge import blocking, blocking_function, io
from ._log import logger
from .wire._requests import Asked
from .wire.ids import new_id
from .wire.main_module import alias_main

if TYPE_CHECKING:
    from .wire.connection import Call, Connection
    from .wire.frames import Header
    from .wire.input_frames import Input


@dataclass(frozen=True)
class ServerInfo:
    """What the dispatcher said of itself.

    Attributes:
        version: its version.
        engine: ``local`` or ``nomad``.
        render: the settings for rendering jobs.
        address: its URL.
    """

    version: str = ""
    engine: str = ""
    render: Mapping[str, Any] = field(default_factory=dict)
    address: str = ""


class _Session:
    """The clients of this process, by server; a forked child starts with none."""

    def __init__(self) -> None:
        self._pid = 0
        self._clients: dict[tuple[str, str], Client] = {}

    def clients(self) -> dict[tuple[str, str], Client]:
        if self._pid != os.getpid():
            self._pid, self._clients = os.getpid(), {}
            atexit.unregister(self._bye)
            atexit.register(self._bye)
        return self._clients

    def _bye(self) -> None:
        if self._pid == os.getpid():
            for client in list(self._clients.values()):
                client._bye()


_session = _Session()


class Client:
    """A connection to a dispatcher; ``Client.from_env()`` is what every object uses by default.

    Example:
        >>> from modal_nomad import Client
        >>> client = Client.from_env()
        >>> client.is_closed()
        False
    """

    def __init__(self, server_url: str | None, token: str) -> None:
        self._url = server_url
        self._token = token
        self._id = new_id("cl")
        self._connection: Connection | None = None
        self._blobs: Any = None
        # Ids of Functions that were made from others here, and when, by what they were made of.
        self._variants: dict[tuple[str, bytes | None], tuple[str, float]] = {}
        self._handlers: dict[str, list[Callable[[Header, bytes], None]]] = {}
        self.server = ServerInfo()

    def __repr__(self) -> str:
        return f"Client({self.server.address or self._url or 'embedded'!r})"

    @staticmethod
    @blocking_function
    async def from_env() -> Client:
        """Return the client that the environment and the profile configure, connected.

        With no server configured it is the embedded dispatcher's, which is started when it does not run.

        Raises:
            AuthError: the server refused the token.
            ConnectionError: nobody answers.
            VersionError: the two sides are too far apart.

        Example:
            >>> Client.from_env().hello()
        """
        from .config import config

        token_id, secret = config.get("token_id"), config.get("token_secret")
        token = f"{token_id}:{secret}" if token_id and secret else (secret or "")
        token = token or _container_token()
        return await Client._shared(config.get("server_url"), token)

    @staticmethod
    @blocking_function
    async def from_credentials(token_id: str, token_secret: str) -> Client:
        """Return a client of the configured server under a token of its own.

        Example:
            >>> Client.from_credentials("ak-...", "as-...").is_closed()
            False
        """
        from .config import config

        token = f"{token_id}:{token_secret}" if token_id else token_secret
        return await Client._shared(config.get("server_url"), token)

    @staticmethod
    async def _shared(url: str | None, token: str) -> Client:
        from ._home import home

        clients = _session.clients()
        key = (url or f"embedded:{home()}", token)
        client = clients.get(key)
        if client is None or client.is_closed():
            alias_main()
            client = Client(url, token)
            await io(client._open())
            clients[key] = client
        return client

    def is_closed(self) -> bool:
        """Tell whether this client can no longer be used.

        Example:
            >>> Client.from_env().is_closed()
            False
        """
        return self._connection is None or self._connection.closed

    @blocking
    async def hello(self) -> None:
        """Ask the server whether it is there. Raises as ``from_env`` does.

        Example:
            >>> Client.from_env().hello()
        """
        await io(self._request("server.status", {}))

    # --- for the other modules of this package ----------------------------------------------------

    async def _open(self) -> None:
        from . import __version__
        from .wire import frames
        from .wire.connection import Connection, Refused

        hello = {
            "t": "hello",
            "v": frames.PROTOCOL_VERSION,
            "role": "client",
            "version": __version__,
            "client": self._id,
            "container": os.environ.get("MODAL_TASK_ID", "") if os.environ.get("MODAL_IS_REMOTE") else "",
        }
        connection = Connection(self._address, hello, on_event=self._event)
        try:
            await connection.open()
        except Refused as error:
            raise _translate(error) from None
        except (OSError, asyncio.TimeoutError) as error:
            raise exception.ConnectionError(
                f"no dispatcher answers at {self.server.address or self._url}: {_reason(error)}; "
                "check MODAL_SERVER_URL or the profile's server_url, or unset it to run on this machine"
            ) from None
        except ValueError as error:
            raise exception.InvalidError(str(error)) from None
        self._connection = connection
        welcome = connection.welcome
        self.server = ServerInfo(
            welcome.get("version", ""),
            welcome.get("engine", ""),
            welcome.get("render", {}),
            self.server.address,
        )
        logger().debug(
            "connected to %s (version %s, engine %s)",
            self.server.address,
            self.server.version,
            self.server.engine,
        )

    async def _address(self) -> tuple[str, str]:
        url = self._url
        if url is None:
            from ._daemon import ensure
            from ._home import home

            url = await asyncio.get_running_loop().run_in_executor(None, ensure, home())
        if self.server.address != url:
            from .wire.transport import BlobClient

            self._blobs = BlobClient(url, self._token)
            self.server = ServerInfo(address=url)
        return url, self._token

    def _live(self) -> Connection:
        if self._connection is None or self._connection.closed:
            raise exception.ClientClosed("this client is closed; make a new one with Client.from_env()")
        return self._connection

    async def _request(self, method: str, args: Mapping[str, Any]) -> Any:
        value = (await self._request_full(method, args))[0]
        if method == "app.publish" and args.get("state") == "ephemeral":
            self._live().own(value["app_id"])
        return value

    async def _request_full(
        self,
        method: str,
        args: Mapping[str, Any],
        payloads: Sequence[bytes] = (),
    ) -> tuple[Any, list[bytes]]:
        from .wire.connection import Refused

        try:
            return await self._live().request(method, args, payloads)
        except Refused as error:
            raise _translate(error) from None
        except OSError as error:
            raise exception.ConnectionError(str(error)) from None

    async def _ask(
        self, method: str, args: Mapping[str, Any], payloads: Sequence[bytes] = ()
    ) -> tuple[Any, list[bytes]]:
        """Make a request from the caller's thread, which reads the answer itself where it can.

        Awaited by a body, not by ``io``: nothing of it needs the library's loop.
        """
        asked = Asked()
        try:
            self._begin(asked, method, args, payloads)
            return await self._answer(asked)
        finally:
            self._forget(asked)

    def _begin(
        self,
        asked: Asked,
        method: str,
        args: Mapping[str, Any],
        payloads: Sequence[bytes] = (),
        patience: float | None = None,
    ) -> None:
        """Make a request; from any thread. ``_answer`` awaits it, ``_forget`` or ``_leave`` ends it."""
        try:
            self._live().ask(asked, method, args, payloads, patience=patience)
        except OSError as error:
            raise exception.ConnectionError(str(error)) from None

    async def _answer(self, asked: Asked) -> tuple[Any, list[bytes]]:
        """Return a request's answer. Raises NoAnswer when its patience ends."""
        from .wire.connection import Refused

        try:
            answer: tuple[Any, list[bytes]] = await io(asked, self._live().direct)
            return answer
        except Refused as error:
            raise _translate(error) from None
        except OSError as error:
            raise exception.ConnectionError(str(error)) from None

    def _leave(self, asked: Asked, then: Callable[[], None]) -> None:
        """Wait for an answer no more, and have ``then`` called when it comes; at once where none will."""
        connection = self._connection
        if not asked.number:
            asked.fail(ConnectionError("it was never sent"))

        def answered() -> None:
            self._forget(asked)
            then()

        asked.alone = False
        asked.then(answered)
        if connection is not None:
            connection.direct.look_soon()

    def _is_connected(self) -> bool:
        return self._connection is not None and self._connection.connected

    def _forget(self, asked: Asked) -> None:
        if self._connection is not None:
            self._connection.forget(asked)

    def _tell(
        self,
        method: str,
        args: Mapping[str, Any],
        payloads: Sequence[bytes] = (),
        then: Callable[[], None] | None = None,
    ) -> None:
        """Make a request whose answer nobody waits for, before any that is asked later; from any thread.

        Args:
            method: the request's name.
            args: its arguments.
            payloads: what comes with it.
            then: called when it has been answered, or has failed.
        """
        connection = self._connection
        if connection is None or connection.closed:
            if then is not None:
                then()
            return
        asked = Asked()
        asked.alone = False

        def answered() -> None:
            connection.forget(asked)
            if then is not None:
                then()

        asked.then(answered)
        try:
            connection.ask(asked, method, args, payloads)
        except OSError as error:
            asked.fail(error)

    async def _put_blob(self, data: bytes) -> str:
        return str(await self._blob_call(self._blobs.put, data))

    async def _put_blobs(self, contents: list[bytes]) -> list[str]:
        return list(await self._blob_call(self._blobs.put_all, contents))

    async def _put_blob_file(self, path: os.PathLike[str], sha: str) -> bool:
        """Store a file; False where it is not what was announced."""
        return bool(await self._blob_call(lambda name: self._blobs.put_file(path, name), sha))

    async def _get_blob(self, sha: str) -> bytes:
        try:
            return bytes(await self._blob_call(self._blobs.get, sha))
        except KeyError:
            raise exception.NotFoundError(f"the dispatcher has no blob {sha}") from None

    async def _blob_call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        loop = asyncio.get_running_loop()
        delay = 0.05
        for _ in range(12):
            try:
                return await loop.run_in_executor(None, function, argument)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise
                # A restarted dispatcher is back in a moment, and the connection is what starts it again.
                failure = error
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
        raise exception.ConnectionError(f"a blob transfer failed: {failure}")

    async def _submit_durable(self, call: Call, inputs: list[Input], total: int | None = None) -> None:
        from .wire.connection import Refused

        try:
            await self._live().submit_durable(call, inputs, total)
        except Refused as error:
            raise _translate(error) from None
        except OSError as error:
            raise exception.ConnectionError(str(error)) from None

    def _submit(self, call: Call, inputs: list[Input]) -> None:
        """Send inputs; from any thread."""
        self._live().submit(call, inputs)

    def _taken(self, call: Call, count: int) -> None:
        """Say how many items of a generator were taken; from any thread."""
        self._live().taken(call, count)

    def _end(self, call: Call) -> None:
        """Forget a call; from any thread."""
        if not self.is_closed():
            self._live().end(call)

    def _subscribe(self, app_id: str, callback: Callable[[Header, bytes], None]) -> None:
        """Have an App's log and progress frames passed to ``callback`` on the library's loop."""
        self._handlers.setdefault(app_id, []).append(callback)
        self._live().subscribe(app_id, {"logs": True})

    def _unsubscribe(self, app_id: str, callback: Callable[[Header, bytes], None]) -> None:
        handlers = self._handlers.get(app_id, [])
        if callback in handlers:
            handlers.remove(callback)

    def _event(self, header: Header, payloads: list[bytes]) -> None:
        for handler in list(self._handlers.get(header.get("a", ""), ())):
            handler(header, payloads[0] if payloads else b"")

    def _bye(self) -> None:
        if not self.is_closed():
            self._live().bye()

    @blocking
    async def _close(self) -> None:
        if self._connection is not None:
            await io(self._connection.close())


def _reason(error: BaseException) -> str:
    # asyncio's own words for a refused connection name an address tuple and an error number.
    number = getattr(error, "errno", None)
    return os.strerror(number) if number and number > 0 else str(error) or "no answer in time"


def _translate(error: Any) -> exception.Error:
    kind = getattr(exception, error.kind, None)
    if isinstance(kind, type) and issubclass(kind, exception.Error):
        return kind(str(error))
    return exception.RemoteError(f"{error.kind}: {error}")


def _container_token() -> str:
    token = os.environ.get("MODAL_WORKER_TOKEN", "")
    path = os.environ.get("MODAL_WORKER_TOKEN_FILE")
    if not token and path:
        with open(path) as file:
            token = file.read().strip()
    return token
