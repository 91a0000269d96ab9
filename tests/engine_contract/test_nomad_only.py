"""What only a scheduler can do: fail to place, be listed anew, lose its event stream."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

import aiohttp
import pytest

from modal_nomad.engines.base import Capacity, ContainerState, Engine
from modal_nomad.engines.nomad import NomadEngine
from modal_nomad.hashicorp.nomad import NomadSettings
from tests._loops import serving
from tests.engine_contract.conftest import LIMIT, Bench

pytestmark = pytest.mark.parametrize("engine", ["nomad"], indirect=True)


async def test_too_much_memory_is_said_in_words(bench: Bench) -> None:
    container = await bench.start("true", memory=900_000_000)
    event = await bench.wait(container, lambda e: bool(e.reason))
    assert event.state is ContainerState.PENDING
    assert "needs 900,000,000 MiB of memory: 1 node has too little free" in event.reason
    await bench.engine.stop_container(container)
    end = await bench.ended(container)
    assert end.state is ContainerState.FAILED and "before it was placed" in end.reason


async def test_impossible_constraint_is_said_in_words(bench: Bench) -> None:
    never = [{"LTarget": "${attr.kernel.name}", "RTarget": "plan9", "Operand": "="}]
    job = bench.job("true", Constraints=never)
    plan = await bench.engine.plan(job)
    assert "plan9" in plan.failures["container"]
    container = await bench.start("true", Constraints=never)
    event = await bench.wait(container, lambda e: bool(e.reason))
    assert "plan9" in event.reason


async def test_a_second_engine_learns_what_runs(bench: Bench, engine: Engine, nomad_address: str) -> None:
    running = await bench.start("while :; do sleep 0.1; done")
    await bench.running(running)
    waiting = await bench.start("true", memory=900_000_000)
    await bench.wait(waiting, lambda e: bool(e.reason))
    other = NomadEngine(NomadSettings(address=nomad_address))
    await other.start()
    try:
        known = {event.container_id: event for event in await other.containers()}
        assert known[running].state is ContainerState.RUNNING
        assert "memory" in known[waiting].reason
        await other.stop_container(running)
        await bench.ended(running)
    finally:
        await other.close()


async def test_a_node_that_takes_no_more_containers_is_no_capacity(
    bench: Bench, engine: Engine, nomad_address: str
) -> None:
    assert isinstance(engine, NomadEngine)
    (node,) = await engine.client.nodes()
    capacities = engine.capacities()
    before = await anext(capacities)

    async def eligible(value: str) -> None:
        async with aiohttp.ClientSession(nomad_address) as http:
            body = {"NodeID": node["ID"], "Eligibility": value}
            (await http.put(f"/v1/node/{node['ID']}/eligibility", json=body)).raise_for_status()

    await eligible("ineligible")
    try:
        assert await asyncio.wait_for(anext(capacities), LIMIT) == Capacity(0, 0)
    finally:
        await eligible("eligible")
    assert await asyncio.wait_for(anext(capacities), LIMIT) == before


class _Cable:
    """A TCP relay that can be cut: every connection through it breaks and new ones are refused."""

    def __init__(self, address: str) -> None:
        url = urlsplit(address)
        self._target = (url.hostname, url.port)
        self._plugged = contextlib.AsyncExitStack()
        self.port = 0

    async def plug(self) -> None:
        self.port = await self._plugged.enter_async_context(serving(self._serve, self.port))

    async def cut(self) -> None:
        await self._plugged.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            back.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


async def test_what_happened_while_cut_off_is_told_afterwards(bench: Bench, nomad_address: str) -> None:
    cable = _Cable(nomad_address)
    await cable.plug()
    far = NomadEngine(NomadSettings(address=f"http://127.0.0.1:{cable.port}"))
    await far.start()
    told = Bench(far)
    try:
        first = await bench.start("while :; do sleep 0.1; done")
        await told.running(first)
        await cable.cut()
        await bench.engine.stop_container(first)
        await bench.ended(first)
        second = await bench.start("exit 4")
        await bench.ended(second)
        await cable.plug()
        assert (await told.ended(first)).state.ended
        assert (await told.ended(second)).exit_code == 4
    finally:
        await told.close()
        await far.close()
        await cable.cut()
