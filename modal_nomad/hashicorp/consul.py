"""A thin adapter to Consul's HTTP API: python-consul2 in threads, aiohttp for blocking queries.

python-consul2 is synchronous: a thread for each query that waits would be one for each service, and none of
them could be given up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import consul  # type: ignore[import-untyped]
import requests

logger = logging.getLogger("modal_nomad.dispatcher")

T = TypeVar("T")
_TO_READ = "service_prefix and node_prefix with policy read"
_NOT_CONSUL = "what answers there speaks as no Consul does"
_THREADS = 2
_SLACK_SECONDS = 20.0
"""Consul may answer a blocking query this much later than it was asked to, and by a sixteenth of its time."""


class ConsulError(Exception):
    """Consul refused or failed; the text is one line that names the remedy."""


class ConsulUnavailable(ConsulError):
    """No answer from Consul, or it has no leader."""


class ConsulDenied(ConsulError):
    """The token does not allow it."""


@dataclass(frozen=True)
class ConsulSettings:
    """How to reach Consul.

    Attributes:
        address: ``http://…`` or ``https://…`` of an agent.
        token: ACL token; empty for none.
        ca_file: CA bundle for https; empty uses the system's.
        datacenter: empty for the agent's own.
        timeout: seconds a plain request may take.
        wait: seconds that a blocking query waits for something new.
    """

    address: str = "http://127.0.0.1:8500"
    token: str = field(default="", repr=False)
    ca_file: str = ""
    datacenter: str = ""
    timeout: float = 10.0
    wait: float = 60.0

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> ConsulSettings:
        """Read the token and the authority that the ``consul`` command reads; never the address."""
        return cls(token=env.get("CONSUL_HTTP_TOKEN", ""), ca_file=env.get("CONSUL_CACERT", ""))


def index_after(asked: int, answered: int) -> int:
    """Return the index to ask for next: none where it went back, as that is another Consul's."""
    return answered if answered >= asked else 0


class ConsulClient:
    """One Consul. All methods raise ConsulError.

    Args:
        settings: how to reach it.
    """

    def __init__(self, settings: ConsulSettings) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="consul")
        self._http: aiohttp.ClientSession | None = None
        self._client: Any = None
        self._hidden = False

    async def close(self) -> None:
        """Release connections and threads."""
        if self._http is not None:
            await self._http.close()
            self._http = None
        await asyncio.to_thread(self._threads.shutdown, True, cancel_futures=True)
        if self._client is not None:
            self._client.http.session.close()

    # --- python-consul2, in threads ---------------------------------------------------------------

    async def leader(self) -> str:
        """Return the leader's address: the cheapest proof that Consul answers."""
        return str(await self._run("", lambda c: c.status.leader()))

    async def register(
        self,
        name: str,
        service_id: str,
        address: str,
        port: int,
        *,
        tags: Sequence[str] = (),
        meta: Mapping[str, str] = {},
        check: Mapping[str, Any] | None = None,
    ) -> None:
        """Register a service with the agent, in place of one of that id."""
        await self._run(
            f'service "{name}" with policy write',
            lambda c: c.agent.service.register(
                name,
                service_id=service_id,
                address=address,
                port=port,
                tags=list(tags),
                meta=dict(meta),
                check=None if check is None else dict(check),
            ),
        )

    async def deregister(self, service_id: str) -> None:
        """Take a service of the agent's away."""
        await self._run("the right to write the service", lambda c: c.agent.service.deregister(service_id))

    async def _run(self, needs: str, work: Callable[[Any], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._guarded, needs, work)

    def _guarded(self, needs: str, work: Callable[[Any], T]) -> T:
        try:
            return work(self._consul())
        except consul.ACLPermissionDenied as error:
            raise self._denied(str(error), needs) from None
        except (consul.ConsulException, consul.Timeout, requests.RequestException, OSError) as error:
            raise self._unavailable(error) from None

    def _consul(self) -> Any:
        if self._client is None:
            settings, parts = self.settings, urlsplit(self.settings.address)
            with warnings.catch_warnings():
                # It warns of its own support for tokens of before Consul 1.4, which nobody asks for here.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._client = consul.Consul(
                    host=parts.hostname or "127.0.0.1",
                    port=parts.port or (443 if parts.scheme == "https" else 80),
                    scheme=parts.scheme,
                    token=settings.token or None,
                    dc=settings.datacenter or None,
                    verify=settings.ca_file or True,
                    timeout=settings.timeout,
                )
        return self._client

    # --- blocking queries -------------------------------------------------------------------------

    async def services(self, index: int = 0) -> tuple[int, dict[str, list[str]]]:
        """Return the tags of all services by name, as soon as they are newer than ``index``."""
        newer, found = await self._watch("/v1/catalog/services", index)
        if not isinstance(found, dict):
            raise self._unavailable(ValueError(_NOT_CONSUL))
        return newer, {str(name): [str(x) for x in tags or ()] for name, tags in found.items()}

    async def healthy(self, name: str, tag: str, index: int = 0) -> tuple[int, list[dict[str, Any]]]:
        """Return the instances of a service whose checks pass, as soon as they are newer than ``index``."""
        path = f"/v1/health/service/{quote(name, safe='')}"
        newer, found = await self._watch(path, index, passing="1", tag=tag)
        if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
            raise self._unavailable(ValueError(_NOT_CONSUL))
        return newer, found

    async def _watch(self, path: str, index: int, **options: str) -> tuple[int, Any]:
        settings = self.settings
        params = dict(options)
        if settings.datacenter:
            params["dc"] = settings.datacenter
        limit = settings.timeout
        if index:
            params |= {"index": str(index), "wait": f"{settings.wait:g}s"}
            limit = settings.wait * 17 / 16 + _SLACK_SECONDS
        headers = {"X-Consul-Token": settings.token} if settings.token else {}
        try:
            async with self._session().get(
                settings.address.rstrip("/") + path,
                params=params,
                headers=headers,
                timeout=aiohttp.ClientTimeout(limit),
            ) as answer:
                if answer.status == 403:
                    raise self._denied(await answer.text(), _TO_READ)
                if answer.status != 200:
                    raise ConsulUnavailable(
                        f"Consul at {settings.address} answers {answer.status}: {(await answer.text())[:200]}"
                    )
                if answer.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true" and not self._hidden:
                    self._hidden = True
                    logger.warning("Consul hides services from this token: to see all it needs %s", _TO_READ)
                newer = int(answer.headers.get("X-Consul-Index", 0))
                if newer < 1:
                    # Asked again with it, this would answer at once, and again.
                    raise ValueError(_NOT_CONSUL)
                return index_after(index, newer), await answer.json()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            raise self._unavailable(error) from None

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            tls: ssl.SSLContext | bool = False
            if self.settings.address.startswith("https:"):
                tls = ssl.create_default_context(cafile=self.settings.ca_file or None)
            # Every service has a query that waits.
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=0))
        return self._http

    def _denied(self, text: str, needs: str) -> ConsulDenied:
        words = " ".join(text.split())[:100] or "no reason given"
        return ConsulDenied(f"Consul refuses this token ({words}): it needs {needs}")

    def _unavailable(self, error: Exception) -> ConsulUnavailable:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        return ConsulUnavailable(
            f"Consul at {self.settings.address} cannot be used ({words}): see that an agent listens there"
        )
