"""Discovery is one contract: the same cases on a registry, on the link to a dispatcher, and on Consul."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from modal_nomad.dispatcher._codec import decode
from modal_nomad.dispatcher._peer import Peer
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.gateway.consul import ConsulDiscovery
from modal_nomad.dispatcher.gateway.directory import Directory, Known
from modal_nomad.dispatcher.gateway.discovery import (
    ContainerAddress,
    Registry,
    ServedFunction,
    container_key,
)
from modal_nomad.dispatcher.gateway.link import Link
from modal_nomad.dispatcher.gateway.loads import Loads
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.dispatcher.gateway_sessions import GatewaySession
from modal_nomad.hashicorp.consul import ConsulClient, ConsulSettings, ConsulUnavailable
from tests._consul import Consul

LIMIT = 90.0
SECRET = "a secret of the tests"
JOB = "default/shop-web"


class Seen:
    """A gateway that notes what it is told."""

    def __init__(self) -> None:
        self.functions: dict[str, ServedFunction] = {}
        self.containers: dict[str, dict[str, ContainerAddress]] = {}
        self.news = asyncio.Event()

    def serve(self, function: ServedFunction) -> None:
        self.functions[function.function_id] = function
        self.containers.setdefault(function.function_id, {})
        self.news.set()

    def withdraw(self, function_id: str) -> None:
        self.functions.pop(function_id)
        self.containers.pop(function_id)
        self.news.set()

    def instance_up(self, function_id: str, address: ContainerAddress) -> None:
        self.containers[function_id][address.container_id] = address
        self.news.set()

    def instance_out(self, function_id: str, container_id: str) -> None:
        self.containers[function_id].pop(container_id)
        self.news.set()

    def fail(self, function_id: str, status: int, text: str) -> None: ...

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), LIMIT)


def function(limit: int = 5) -> ServedFunction:
    route = Route("shop-web", JOB, domains=("shop.example.com",), owner="shop", environment="test")
    return ServedFunction(JOB, (route,), limit, job=JOB)


def address(container_id: str, port: int = 1234) -> ContainerAddress:
    return ContainerAddress(container_id, "127.0.0.1", port, container_key(SECRET.encode(), container_id))


class ByRegistry:
    """The registry, followed in its own process."""

    def __init__(self, seen: Seen) -> None:
        self.registry = Registry()
        self.seen = seen

    async def begin(self) -> None:
        self.registry.follow(self.seen)

    async def up(self, container_id: str) -> None:
        self.registry.serve(function())
        self.registry.instance_up(JOB, address(container_id))

    async def out(self, container_id: str) -> None:
        self.registry.instance_out(JOB, container_id)

    async def gone(self) -> None:
        self.registry.withdraw(JOB)

    async def close(self) -> None: ...


class ByLink(ByRegistry):
    """The same, followed by a gateway over a socket."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(seen)
        self.web: Any = SimpleNamespace(
            registry=self.registry, gateways={}, loads=Loads(lambda *x: None), gateway_gone=lambda x: None
        )
        self.stack = contextlib.AsyncExitStack()

    async def begin(self) -> None:
        async def connect(request: web.Request) -> web.StreamResponse:
            peer = Peer()
            answer = await peer.accept(request)
            sessions: list[GatewaySession] = []

            def hello(data: bytes) -> None:
                session = GatewaySession(peer, Identity("gateway"), self.web, decode(data)[0])
                session.send_frame({"t": "welcome"})
                session.begin()
                sessions.append(session)

            peer.start(hello)
            await peer.closed
            sessions[0].end()
            return answer

        app = web.Application()
        app.router.add_get("/v1/connect", connect)
        runner = web.AppRunner(app)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready = asyncio.Event()
        link = Link(
            (url,),
            lambda: SECRET,
            "aaaaaa",
            None,
            Directory(self.seen),
            lambda *x: None,
            self.seen.fail,
            ready.set,
        )
        task = asyncio.create_task(link.run())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            link.close()

        self.stack.push_async_callback(end)
        await asyncio.wait_for(ready.wait(), LIMIT)

    async def close(self) -> None:
        await self.stack.aclose()


class ByConsul:
    """What jobs register there."""

    def __init__(self, seen: Seen, consul: Consul) -> None:
        self.seen = seen
        self.client = ConsulClient(ConsulSettings(consul.address, wait=5.0))
        self.task: asyncio.Task[None] | None = None
        self.ups: set[str] = set()

    async def begin(self) -> None:
        found = ConsulDiscovery(self.client, SECRET.encode(), self.seen)
        self.task = asyncio.create_task(found.run())

    async def up(self, container_id: str, name: str = "shop-web", **more: Any) -> None:
        meta = {
            "app": "shop", "container": container_id, "deployed": "true", "domains": "shop.example.com",
            "environment": "test", "function": "web", "job": JOB, "label": name, "max_inputs": "5",
            "method": "", "proxy_auth": "false", "single_use": "false", "version": "v1",
        }  # fmt: skip
        self.ups.add(container_id)
        await self.client.register(
            name,
            container_id,
            "127.0.0.1",
            1234,
            tags=["modal-nomad"],
            meta={**meta, **more.pop("meta", {})},
            **more,
        )

    async def out(self, container_id: str) -> None:
        self.ups.discard(container_id)
        await self.client.deregister(container_id)

    async def gone(self) -> None:
        for container_id in list(self.ups):
            await self.out(container_id)

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.client.close()


@pytest.fixture(params=["registry", "link", "consul"])
async def source(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    made: Any
    if request.param == "consul":
        made = ByConsul(Seen(), request.getfixturevalue("consul"))
    else:
        made = (ByRegistry if request.param == "registry" else ByLink)(Seen())
    try:
        yield made
    finally:
        await made.close()


async def test_what_there_is_and_what_becomes_of_it(source: Any) -> None:
    seen: Seen = source.seen
    await source.up("ta-one")
    await source.begin()
    await seen.until(lambda: "ta-one" in seen.containers.get(JOB, {}))
    assert seen.functions == {JOB: function()}
    assert seen.containers[JOB] == {"ta-one": address("ta-one")}
    await source.up("ta-two")
    await seen.until(lambda: len(seen.containers[JOB]) == 2)
    await source.out("ta-one")
    await seen.until(lambda: set(seen.containers[JOB]) == {"ta-two"})
    await source.gone()
    await seen.until(lambda: not seen.functions)
    await source.up("ta-three")
    await seen.until(lambda: "ta-three" in seen.containers.get(JOB, {}))


async def test_consul_takes_out_what_fails_its_check(consul: Consul) -> None:
    source = ByConsul(Seen(), consul)
    seen = source.seen
    try:
        await source.begin()
        await source.up("ta-good")
        # Its check was never answered: it is critical.
        await source.up("ta-bad", check={"ttl": "1h", "CheckID": "bad"})
        await seen.until(lambda: set(seen.containers.get(JOB, {})) == {"ta-good"})
        consul.put("/v1/agent/check/pass/bad")
        await seen.until(lambda: len(seen.containers[JOB]) == 2)
        consul.put("/v1/agent/check/fail/bad")
        await seen.until(lambda: set(seen.containers[JOB]) == {"ta-good"})
        # What is not of ours is no endpoint, whatever tag it has; a second endpoint is one of the same job.
        await source.up("stranger", meta={"job": "", "max_inputs": "many"})
        await source.up("ta-good-2", name="shop-other", meta={"container": "ta-good", "method": "other"})
        await seen.until(lambda: len(seen.functions[JOB].routes) == 2)
        assert [x.label for x in seen.functions[JOB].routes] == ["shop-other", "shop-web"]
        assert set(seen.containers) == {JOB} and set(seen.containers[JOB]) == {"ta-good"}
    finally:
        await source.close()


async def test_consul_may_go_and_come_back(consul: Consul) -> None:
    source = ByConsul(Seen(), consul)
    seen = source.seen
    try:
        await source.begin()
        await source.up("ta-one")
        await seen.until(lambda: "ta-one" in seen.containers.get(JOB, {}))
        await asyncio.to_thread(consul.stop)
        with pytest.raises(ConsulUnavailable, match="see that an agent listens there"):
            await source.client.services()
        with pytest.raises(ConsulUnavailable):
            await source.client.leader()
        # What was known holds meanwhile.
        assert "ta-one" in seen.containers[JOB]
        await asyncio.to_thread(consul.start)
        assert await source.client.leader()
        await source.up("ta-two")
        await seen.until(lambda: len(seen.containers[JOB]) == 2)
        await source.out("ta-one")
        await seen.until(lambda: set(seen.containers[JOB]) == {"ta-two"})
    finally:
        await source.close()


async def test_a_dispatcher_s_word_counts_before_consul_s() -> None:
    seen = Seen()
    directory = Directory(seen)
    directory.consul.serve(function())
    directory.consul.instance_up(JOB, address("ta-one"))
    assert set(seen.containers[JOB]) == {"ta-one"}
    directory.link_begins()
    directory.told(JOB)
    directory.dispatcher.serve(function(7))
    directory.dispatcher.instance_up(JOB, address("ta-one"))
    directory.dispatcher.instance_up(JOB, address("ta-two"))
    directory.synced()
    assert seen.functions[JOB].limit == 7 and len(seen.containers[JOB]) == 2
    # Its socket closed: it is out, though Consul has not noticed.
    directory.dispatcher.instance_out(JOB, "ta-one")
    directory.consul.instance_up(JOB, address("ta-one"))
    directory.forget_out()
    assert set(seen.containers[JOB]) == {"ta-two"}
    directory.link_lost()
    assert set(seen.containers[JOB]) == {"ta-two"}
    # A new dispatcher does not know the container yet, and its worker comes back or not.
    directory.link_begins()
    directory.told(JOB)
    directory.dispatcher.serve(function(7))
    directory.synced()
    assert set(seen.containers[JOB]) == {"ta-two"}
    directory.settled()
    assert set(seen.containers[JOB]) == set()
    # What it does not serve is not served, stale as Consul may be.
    directory.link_lost()
    directory.link_begins()
    directory.synced()
    assert not seen.functions
    directory.link_lost()
    assert JOB in seen.functions


def test_known_forgets_what_is_withdrawn() -> None:
    changed: list[str] = []
    known = Known(changed.append)
    known.serve(function())
    known.instance_up(JOB, address("ta-one"))
    known.withdraw(JOB)
    assert not known.functions and not known.containers and changed == [JOB] * 3
