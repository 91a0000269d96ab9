"""The HTTP API of Docker on its Unix socket, which Podman speaks as well: what running containers needs."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp

from modal_nomad.engines.base import EngineError

# Known to Docker from 20.10 and to Podman from 4.0 on.
_VERSION = "v1.40"
_STDOUT, _STDERR = 1, 2
_HEAD_LIMIT = 1 << 16
_MOMENT = 30.0


class DockerError(EngineError):
    """The runtime refused or failed; ``status`` is its HTTP status, 0 where it did not answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class DockerAPI:
    """One runtime.

    Args:
        socket: path of its Unix socket.
        name: what it is called in messages, ``Docker`` or ``Podman``.
    """

    def __init__(self, socket: str, name: str) -> None:
        self.socket = socket
        self.name = name
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Drop all connections."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def ping(self) -> None:
        """See that it answers. Raises DockerError."""
        await self._json("GET", "/version", limit=_MOMENT)

    async def has_image(self, reference: str) -> bool:
        """Say whether an image is on this machine."""
        return await self._found("GET", f"/images/{quote(reference, safe='/:@')}/json")

    async def pull(self, reference: str, credentials: Mapping[str, str]) -> None:
        """Bring an image here. Raises DockerError with the registry's words."""
        name, tag = split_reference(reference)
        auth = base64.urlsafe_b64encode(json.dumps(dict(credentials)).encode()).decode()
        path = f"/images/create?fromImage={quote(name, safe='')}&tag={quote(tag, safe=':')}"
        try:
            text = await self._request("POST", path, headers={"X-Registry-Auth": auth})
        except DockerError as exc:
            if exc.status:
                raise DockerError(_not_pulled(reference, str(exc)), exc.status) from exc
            raise
        # It has said 200 long before anything went wrong.
        for line in text.splitlines():
            said = json.loads(line) if line.strip() else {}
            if said.get("error"):
                raise DockerError(_not_pulled(reference, said["error"]), 500)

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Make a container; returns its id."""
        made = await self._json("POST", f"/containers/create?name={quote(name)}", body)
        return str(made["Id"])

    async def start(self, container: str) -> None:
        """Start a container that was made."""
        await self._request("POST", f"/containers/{container}/start")

    async def wait(self, container: str) -> int:
        """Wait for a container's end; returns its exit code."""
        return int((await self._json("POST", f"/containers/{container}/wait"))["StatusCode"])

    async def inspect(self, container: str, *, size: bool = False) -> dict[str, Any]:
        """Return all about a container; with ``size`` what its files take, which takes a while to count."""
        path = f"/containers/{container}/json{'?size=true' if size else ''}"
        found: dict[str, Any] = await self._json("GET", path, limit=_MOMENT)
        return found

    async def usage(self, container: str) -> tuple[float, int]:
        """Return the processor seconds and bytes of memory that a container has used and uses."""
        path = f"/containers/{container}/stats?stream=false&one-shot=true"
        found = await self._json("GET", path, limit=_MOMENT)
        seconds = (found.get("cpu_stats", {}).get("cpu_usage") or {}).get("total_usage") or 0
        return seconds / 1e9, int((found.get("memory_stats") or {}).get("usage") or 0)

    async def kill(self, container: str, signal: int) -> None:
        """Signal a container's first process; one that has ended is no error."""
        await self._found("POST", f"/containers/{container}/kill?signal={int(signal)}", gone=(404, 409))

    async def remove(self, container: str) -> None:
        """End a container and all that is its own; one that is gone is no error."""
        await self._found("DELETE", f"/containers/{container}?force=true&v=true", gone=(404, 409))

    async def labelled(self, label: str) -> list[dict[str, Any]]:
        """Return the containers that have a label, ``name=value``, those that ended as well."""
        filters = quote(json.dumps({"label": [label]}))
        found: list[dict[str, Any]] = await self._json(
            "GET", f"/containers/json?all=true&filters={filters}", limit=_MOMENT
        )
        return found

    async def attach(self, container: str, take: Callable[[int, bytes], None]) -> asyncio.Task[None]:
        """Have everything that a container prints from now on; the task is done when it has ended."""
        reader, writer = await self._hijack(f"/containers/{container}/attach?stream=1&stdout=1&stderr=1", {})

        async def follow() -> None:
            try:
                await _frames(reader, take)
            finally:
                writer.close()

        return asyncio.ensure_future(follow())

    async def exec(self, container: str, command: Sequence[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        """Run a command in a container; returns its exit code and what it wrote."""
        options = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Cmd": list(command)}
        run = (await self._json("POST", f"/containers/{container}/exec", options))["Id"]
        reader, writer = await self._hijack(f"/exec/{run}/start", {"Detach": False, "Tty": False})
        wrote: dict[int, list[bytes]] = {_STDOUT: [], _STDERR: []}

        async def feed() -> None:
            writer.write(stdin)
            await writer.drain()
            writer.write_eof()

        feeding = asyncio.ensure_future(feed())
        try:
            await _frames(reader, lambda stream, data: wrote[stream].append(data))
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            writer.close()
        code = (await self._json("GET", f"/exec/{run}/json", limit=_MOMENT)).get("ExitCode")
        return int(code or 0), b"".join(wrote[_STDOUT]), b"".join(wrote[_STDERR])

    async def _hijack(
        self, path: str, body: Mapping[str, Any]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Turn a connection into a stream of both directions, which HTTP clients do not."""
        data = json.dumps(body).encode()
        reader, writer = await self._connect()
        try:
            writer.write(
                f"POST /{_VERSION}{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                + data
            )
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _MOMENT)
            status = int(head.split(b" ", 2)[1])
            if status not in (101, 200):
                text = (await asyncio.wait_for(reader.read(_HEAD_LIMIT), _MOMENT)).decode(errors="replace")
                raise DockerError(f"{self.name}: {text.strip()}", status)
        except (asyncio.IncompleteReadError, asyncio.TimeoutError, OSError) as exc:
            writer.close()
            raise DockerError(f"{self.name} gave no stream ({exc!r}): see that its daemon runs") from exc
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_unix_connection(self.socket)
        except OSError as exc:
            raise self._away(exc) from exc

    def _away(self, exc: BaseException) -> DockerError:
        return DockerError(f"{self.name} does not answer at {self.socket} ({exc}): see that its daemon runs")

    async def _found(self, method: str, path: str, gone: Sequence[int] = (404,)) -> bool:
        try:
            await self._request(method, path)
        except DockerError as exc:
            if exc.status not in gone:
                raise
            return False
        return True

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, limit: float | None = None
    ) -> Any:
        return json.loads(await self._request(method, path, body, limit=limit))

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] = {},
        limit: float | None = None,
    ) -> str:
        if self._http is None:
            # Containers of long life each hold a request open that waits for their end.
            connector = aiohttp.UnixConnector(path=self.socket, limit=0)
            self._http = aiohttp.ClientSession(connector=connector)
        timeout = aiohttp.ClientTimeout(total=limit)
        url = f"http://localhost/{_VERSION}{path}"
        try:
            async with self._http.request(method, url, json=body, headers=headers, timeout=timeout) as answer:
                text = await answer.text()
                if answer.status >= 400:
                    raise DockerError(_said(text), answer.status)
                return text
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as exc:
            raise self._away(exc) from exc


async def _frames(reader: asyncio.StreamReader, take: Callable[[int, bytes], None]) -> None:
    try:
        while True:
            stream, size = struct.unpack(">BxxxI", await reader.readexactly(8))
            while size:
                data = await reader.readexactly(min(size, _HEAD_LIMIT))
                size -= len(data)
                take(_STDERR if stream == _STDERR else _STDOUT, data)
    except (asyncio.IncompleteReadError, ConnectionError):
        return


def _not_pulled(reference: str, why: str) -> str:
    return (
        f"the image {reference} is not on this machine and cannot be pulled ({why.strip()}): correct its"
        " name, or log in to its registry (docker login)"
    )


def _said(text: str) -> str:
    try:
        return str(json.loads(text)["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return text.strip()


def split_reference(reference: str) -> tuple[str, str]:
    """Return an image's name and its tag or digest.

    Example:
        >>> split_reference("localhost:5000/mine")
        ('localhost:5000/mine', 'latest')
    """
    if "@" in reference:
        name, _, digest = reference.partition("@")
        return name, digest
    name, colon, tag = reference.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (reference, "latest")
