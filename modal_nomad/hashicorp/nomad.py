"""A thin adapter to Nomad's HTTP API: python-nomad in threads, aiohttp for what must stream.

python-nomad is synchronous, so it never runs on an event loop. What it lacks (event stream, followed
logs, exec, the key set) goes through aiohttp. Verification and time-outs are always explicit.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import nomad  # type: ignore[import-untyped]
import nomad.api.exceptions  # type: ignore[import-untyped]
import requests

from modal_nomad.hashicorp._unix import UnixAdapter

T = TypeVar("T")
_THREADS = 8
_STDIN_CHUNK = 32 * 1024
# Nomad sends a heartbeat on an idle event stream every 30 s or sooner: longer silence is a dead peer.
_EVENT_SILENCE = 75.0
_NOT_FOUND = ("not found", "unknown allocation", "no such file", "failed to list entries")


class NomadError(Exception):
    """Nomad refused or failed; ``status`` is the HTTP status, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NomadUnavailable(NomadError):
    """No answer from Nomad, or one that says to try again later."""


class NomadDenied(NomadError):
    """The token does not allow it."""


class NomadNotFound(NomadError):
    """No such job, allocation or file."""


@dataclass(frozen=True)
class NomadSettings:
    """How to reach Nomad.

    Attributes:
        address: ``http://…``, ``https://…`` or ``unix:///…/api.sock`` (the task API).
        token: ACL token used where a call brings none.
        token_file: file with that token, read at every call: workload identities are renewed.
        region: Nomad region, empty for the agent's own.
        ca_file: CA bundle for https; empty uses the system's.
        client_cert: client certificate for mutual TLS.
        client_key: its key.
        timeout: seconds a plain request may take.
    """

    address: str = "http://127.0.0.1:4646"
    token: str = ""
    token_file: str = ""
    region: str = ""
    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    timeout: float = 10.0

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> NomadSettings:
        """Read the variables that the ``nomad`` command reads."""
        return cls(
            address=env.get("NOMAD_ADDR") or cls.address,
            token=env.get("NOMAD_TOKEN", ""),
            region=env.get("NOMAD_REGION", ""),
            ca_file=env.get("NOMAD_CACERT", ""),
            client_cert=env.get("NOMAD_CLIENT_CERT", ""),
            client_key=env.get("NOMAD_CLIENT_KEY", ""),
        )

    @property
    def socket_path(self) -> str:
        """The Unix socket of ``address``, empty when it is no socket."""
        return self.address[len("unix://") :] if self.address.startswith("unix://") else ""

    @property
    def base_url(self) -> str:
        return "http://localhost" if self.socket_path else self.address.rstrip("/")


def _failure(status: int, text: str) -> NomadError:
    text = " ".join(text.split()) or f"HTTP {status}"
    # Nomad answers 500 for what its servers refused, with the reason in the text.
    if status == 403 or "Permission denied" in text:
        return NomadDenied(f"Nomad: {text}: use a token whose policy allows this", status)
    if status == 404 or any(words in text.lower() for words in _NOT_FOUND):
        return NomadNotFound(f"Nomad: {text}", status)
    if status in (429, 502, 503, 504) or "No cluster leader" in text or "No path to region" in text:
        return NomadUnavailable(f"Nomad: {text}: try again when it has a leader", status)
    return NomadError(f"Nomad: {text}", status)


class NomadClient:
    """One Nomad. Make it anywhere, use it on one event loop, ``close`` it there.

    Args:
        settings: how to reach it.
    """

    def __init__(self, settings: NomadSettings) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="nomad")
        self._local = threading.local()
        self._sessions: list[Any] = []
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Release connections and threads."""
        if self._http is not None:
            await self._http.close()
            self._http = None
        await asyncio.to_thread(self._threads.shutdown, True, cancel_futures=True)
        for session in self._sessions:
            session.close()

    # -- python-nomad, in threads

    async def leader(self) -> str:
        """Return the leader's address: the cheapest proof that Nomad answers."""
        return str(await self._call(lambda n: n.status.leader.get_leader()))

    async def validate(self, job: Mapping[str, Any], *, token: str | None = None) -> dict[str, Any]:
        """Return Nomad's validation of a job."""
        answer = await self._call(
            lambda n: n.validate.validate_job({"Job": job}).json(), _namespace(job), token
        )
        return dict(answer)

    async def plan(self, job: Mapping[str, Any], *, token: str | None = None) -> dict[str, Any]:
        """Return Nomad's dry run of a registration, with the diff."""
        answer = await self._call(
            lambda n: n.job.plan_job(job["ID"], {"Job": job}, diff=True), _namespace(job), token
        )
        return dict(answer)

    async def register(self, job: Mapping[str, Any], *, token: str | None = None) -> None:
        """Register or update a job."""
        await self._call(lambda n: n.jobs.register_job({"Job": job}), _namespace(job), token)

    async def deregister(self, job_id: str, *, namespace: str, token: str | None = None) -> None:
        """Stop a job at once, whatever its groups' shutdown delay; unknown ones raise NomadNotFound."""
        # python-nomad's own method does not know the last one.
        params = {"namespace": namespace, "no_shutdown_delay": "true"}
        await self._call(
            lambda n: n.job.request(job_id, params=params, method="delete").json(), namespace, token
        )

    async def dispatch(
        self, job_id: str, *, namespace: str, meta: Mapping[str, str], key: str, token: str | None = None
    ) -> str:
        """Dispatch a parameterized job and return the child's id, which contains ``key``.

        ``key`` also is the idempotency token: the same key gives the same child.
        """
        # As a query parameter, for Nomad reads the token nowhere else; python-nomad puts it in the body.
        answer = await self._call(
            lambda n: n.job.request(
                job_id,
                "dispatch",
                method="post",
                params={"idempotency_token": key},
                json={"Meta": dict(meta), "IdPrefixTemplate": key},
            ).json(),
            namespace,
            token,
        )
        return str(answer["DispatchedJobID"])

    async def job(self, job_id: str, *, namespace: str) -> dict[str, Any]:
        """Return a registered job; unknown ones raise NomadNotFound."""
        return dict(await self._call(lambda n: n.job.get_job(job_id, namespace=namespace), namespace))

    async def jobs(self, *, namespace: str = "*", prefix: str = "", filter: str = "") -> list[dict[str, Any]]:
        """List jobs, with their meta."""
        return list(
            await self._call(
                lambda n: n.jobs.get_jobs(
                    prefix=prefix or None, namespace=namespace, filter_=filter or None, meta=True
                )
            )
        )

    async def allocations(self, *, namespace: str = "*", filter: str = "") -> list[dict[str, Any]]:
        """List allocations, with their task states."""
        return list(
            await self._call(
                lambda n: n.allocations.request(
                    method="get", params={"namespace": namespace, "filter": filter or None}
                ).json()
            )
        )

    async def allocation(self, allocation_id: str) -> dict[str, Any]:
        """Return one allocation."""
        return dict(await self._call(lambda n: n.allocation.get_allocation(allocation_id)))

    async def nodes(self) -> list[dict[str, Any]]:
        """List the client nodes, with their resources."""
        return list(await self._get_json("/v1/nodes", {"resources": "true"}))

    async def node(self, node_id: str) -> dict[str, Any]:
        """Return all of a node."""
        return dict(await self._call(lambda n: n.node.get_node(node_id)))

    async def volumes(self, kind: str, *, namespace: str, token: str | None = None) -> list[dict[str, Any]]:
        """Return the volumes of a namespace that are ``csi``, or dynamic ``host`` ones."""
        found = await self._get_json("/v1/volumes", {"type": kind, "namespace": namespace}, token=token)
        return list(found or ())

    async def volume(
        self, kind: str, volume_id: str, *, namespace: str, token: str | None = None
    ) -> dict[str, Any]:
        """Return all of a volume. NomadNotFound when there is none."""
        path = f"/v1/volume/{kind}/{quote(volume_id, safe='')}"
        return dict(await self._get_json(path, {"namespace": namespace}, token=token))

    async def evaluations(self, job_id: str, *, namespace: str) -> list[dict[str, Any]]:
        """List a job's evaluations: they carry why nothing was placed."""
        return list(await self._call(lambda n: n.job.get_evaluations(job_id, namespace=namespace)))

    async def signal(self, allocation_id: str, signal: str, *, task: str) -> None:
        """Send a signal to a task."""
        await self._call(lambda n: n.client.allocation.signal_allocation(allocation_id, signal, task))

    async def stats(self, allocation_id: str) -> dict[str, Any]:
        """Return an allocation's use of resources."""
        return dict(await self._call(lambda n: n.client.allocation.read_allocation_stats(allocation_id)))

    async def _call(
        self, function: Callable[[Any], T], namespace: str | None = None, token: str | None = None
    ) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._blocking, function, namespace, token)

    def _blocking(self, function: Callable[[Any], T], namespace: str | None, token: str | None) -> T:
        s = self.settings
        library = nomad.Nomad(
            address=s.base_url,
            namespace=namespace,
            token=self._token(token) or None,
            timeout=s.timeout,
            region=s.region or None,
            verify=s.ca_file or True,
            cert=(s.client_cert, s.client_key) if s.client_cert else (),
            session=self._session(),
        )
        try:
            return function(library)
        except nomad.api.exceptions.BaseNomadException as error:
            response = error.nomad_resp
            if isinstance(response, requests.Response):
                raise _failure(response.status_code, response.text) from error
            raise self._unreachable(response) from error
        except requests.RequestException as error:
            raise self._unreachable(error) from error

    def _session(self) -> Any:
        session = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            # Proxies and CA bundles of the process's environment must not decide where tokens go.
            session.trust_env = False
            if self.settings.socket_path:
                session.mount("http://", UnixAdapter(self.settings.socket_path, self.settings.timeout))
            self._local.session = session
            self._sessions.append(session)
        return session

    # -- aiohttp

    async def token_self(self, token: str) -> dict[str, Any]:
        """Return what Nomad knows of an ACL token. NomadDenied when it is none."""
        return dict(await self._get_json("/v1/acl/token/self", token=token))

    async def acls_enabled(self) -> bool:
        """Tell whether this Nomad checks tokens at all."""
        try:
            # Under our own token: the task API answers nobody who has none, whatever the ACLs.
            await self._get_json("/v1/acl/policies")
        except NomadError as error:
            return "ACL support disabled" not in str(error)
        return True

    async def namespace(self, name: str) -> dict[str, Any]:
        """Return a namespace. NomadNotFound when there is none."""
        return dict(await self._call(lambda n: n.namespace.get_namespace(name)))

    async def create_namespace(self, namespace: Mapping[str, Any], *, token: str | None = None) -> None:
        """Make a namespace."""
        await self._call(lambda n: n.namespace.create_namespace(dict(namespace)), token=token)

    async def delete_namespace(self, name: str, *, token: str | None = None) -> None:
        """Remove a namespace; one in which something runs is refused."""
        await self._call(lambda n: n.namespace.delete_namespace(name), token=token)

    async def visible_namespaces(self, token: str) -> set[str]:
        """Return the names of the namespaces that an ACL token has any right in."""
        return {str(x["Name"]) for x in await self._get_json("/v1/namespaces", token=token)}

    async def jwks(self) -> dict[str, Any]:
        """Return the key set that signs workload identities."""
        return dict(await self._get_json("/.well-known/jwks.json"))

    async def _get_json(
        self, path: str, params: Mapping[str, str] | None = None, *, token: str | None = None
    ) -> Any:
        async with self._stream(path, params or {}, token=token, silence=self.settings.timeout) as response:
            return await response.json(content_type=None)

    @asynccontextmanager
    async def events(
        self, topics: Sequence[str], *, namespace: str = "*", index: int = 0
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Open the event stream; the value yields batches ``{"Index", "Events"}`` after ``index``."""
        params = [("topic", topic) for topic in topics] + [("namespace", namespace), ("index", str(index))]
        async with self._stream("/v1/event/stream", params, silence=_EVENT_SILENCE) as response:

            async def batches() -> AsyncIterator[dict[str, Any]]:
                async for value in _json_stream(response):
                    if value.get("Events"):
                        yield value

            yield batches()

    async def log_frames(
        self, allocation_id: str, task: str, stream: str, *, follow: bool
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Yield ``(file, bytes)`` of a task's log from the oldest file kept."""
        params = {"task": task, "type": stream, "origin": "start", "follow": "true" if follow else "false"}
        path = f"/v1/client/fs/logs/{allocation_id}"
        async with self._stream(path, params, silence=None) as response:
            async for frame in _json_stream(response):
                if frame.get("Data"):
                    yield str(frame.get("File", "")), base64.b64decode(frame["Data"])

    async def list_files(self, allocation_id: str, path: str) -> dict[str, int]:
        """Return the sizes of the files in an allocation's folder, by name."""
        try:
            files = await self._get_json(f"/v1/client/fs/ls/{allocation_id}", {"path": path})
        except json.JSONDecodeError as error:
            # Nomad answers 200 and plain words when a path of a known allocation does not exist.
            raise NomadNotFound(f"Nomad: allocation {allocation_id} has no folder {path}") from error
        return {str(file["Name"]): int(file["Size"]) for file in files if not file["IsDir"]}

    async def read_file(self, allocation_id: str, path: str, offset: int) -> bytes:
        """Return a file of an allocation from ``offset`` on. NomadNotFound where there is none."""
        # The framed form: the plain one answers 200 with the error's words in place of the file.
        params = {"path": path, "offset": str(offset), "origin": "start", "follow": "false"}
        async with self._stream(f"/v1/client/fs/stream/{allocation_id}", params, silence=60.0) as response:
            parts = [base64.b64decode(x["Data"]) async for x in _json_stream(response) if x.get("Data")]
        return b"".join(parts)

    async def exec(
        self, allocation_id: str, task: str, command: Sequence[str], *, stdin: bytes = b""
    ) -> tuple[int, bytes, bytes]:
        """Run a command in a task; return exit code, stdout and stderr."""
        url = self.settings.base_url + f"/v1/client/allocation/{allocation_id}/exec"
        params = {"task": task, "command": json.dumps(list(command)), "tty": "false", **self._region()}
        out: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        try:
            async with self._client().ws_connect(
                url, params=params, headers=self._headers(None), max_msg_size=0
            ) as socket:
                for start in range(0, len(stdin), _STDIN_CHUNK):
                    chunk = base64.b64encode(stdin[start : start + _STDIN_CHUNK]).decode()
                    await socket.send_json({"stdin": {"data": chunk}})
                # Without it Nomad never says that the command exited.
                await socket.send_json({"stdin": {"close": True}})
                async for message in socket:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        continue
                    frame = json.loads(message.data)
                    for name, parts in out.items():
                        if frame.get(name, {}).get("data"):
                            parts.append(base64.b64decode(frame[name]["data"]))
                    if frame.get("exited"):
                        code = int((frame.get("result") or {}).get("exit_code", 0))
                        return code, b"".join(out["stdout"]), b"".join(out["stderr"])
                reason = f"exec ended with WebSocket code {socket.close_code} before the command did"
                raise NomadError(f"Nomad: {reason}: is the container still running?")
        except aiohttp.WSServerHandshakeError as error:
            raise _failure(error.status, error.message) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    @asynccontextmanager
    async def _stream(
        self, path: str, params: Any, *, token: str | None = None, silence: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.settings.timeout, sock_read=silence)
        pairs = [*(params.items() if isinstance(params, dict) else params), *self._region().items()]
        try:
            async with self._client().get(
                self.settings.base_url + path, params=pairs, headers=self._headers(token), timeout=timeout
            ) as response:
                if response.status != 200:
                    raise _failure(response.status, await response.text())
                yield response
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            s = self.settings
            if s.socket_path:
                connector: aiohttp.BaseConnector = aiohttp.UnixConnector(s.socket_path, limit=0)
            else:
                context = ssl.create_default_context(cafile=s.ca_file or None)
                if s.client_cert:
                    context.load_cert_chain(s.client_cert, s.client_key)
                # Followed logs and event streams are open for hours: no limit may starve the rest.
                connector = aiohttp.TCPConnector(ssl=context, limit=0)
            self._http = aiohttp.ClientSession(connector=connector)
        return self._http

    def _region(self) -> dict[str, str]:
        return {"region": self.settings.region} if self.settings.region else {}

    def _headers(self, token: str | None) -> dict[str, str]:
        value = self._token(token)
        return {"X-Nomad-Token": value} if value else {}

    def _token(self, token: str | None) -> str:
        if token is not None:
            return token
        if self.settings.token_file:
            return Path(self.settings.token_file).read_text().strip()
        return self.settings.token

    def _unreachable(self, error: object) -> NomadUnavailable:
        text = " ".join(str(error).split()) or type(error).__name__
        # What the libraries under us say is wrapped several times; the system's own words tell it.
        if system := re.search(r"\[Errno -?\d+\] ([^'\")>]+)", text):
            text = system.group(1)
        return NomadUnavailable(f"Nomad at {self.settings.address} does not answer: {text}: check NOMAD_ADDR")


def _namespace(job: Mapping[str, Any]) -> str:
    return str(job.get("Namespace") or "default")


async def _json_stream(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON objects of a stream that may or may not put newlines between them.

    Raises NomadError for what is no JSON: Nomad reports a failure that late in plain words.
    """
    decoder = json.JSONDecoder()
    held = b""
    async for chunk in response.content.iter_any():
        held += chunk
        # Objects end with a brace; trying to parse before one is there costs a pass for nothing.
        if not held.rstrip().endswith(b"}"):
            continue
        try:
            text = held.decode()
        except UnicodeDecodeError:
            continue
        position, held = 0, b""
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            try:
                value, position = decoder.raw_decode(text, position)
            except json.JSONDecodeError:
                held = text[position:].encode()
                break
            yield value
    if held.strip():
        raise _failure(0, held.decode(errors="replace"))
