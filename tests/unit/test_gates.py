"""Who is alone waits for the others, and they for it."""

from __future__ import annotations

import asyncio

from modal_nomad.dispatcher._gates import Gates


async def test_one_alone_waits_for_those_who_are_there_and_others_for_it() -> None:
    gates, log = Gates(), list[str]()
    came, leave = asyncio.Event(), asyncio.Event()

    async def user(name: str) -> None:
        async with gates.shared("a"):
            log.append(name)
            if name == "first":
                came.set()
                await leave.wait()
                log.append("first leaves")

    async def alone() -> None:
        async with gates.alone("a"):
            log.append("alone")
            await asyncio.sleep(0)
            log.append("no more")

    tasks = [asyncio.ensure_future(x) for x in (user("first"), alone(), user("second"), alone())]
    await came.wait()
    async with gates.shared("b"):
        leave.set()
    await asyncio.gather(*tasks)
    assert log[:4] == ["first", "first leaves", "alone", "no more"]
    second = log.index("alone", 4)
    assert sorted(log[4:]) == ["alone", "no more", "second"] and log[second + 1] == "no more"
    assert not gates._places


async def test_who_is_cancelled_while_it_waits_to_be_alone_holds_nobody_up() -> None:
    gates = Gates()
    async with gates.shared("a"):
        waiting = asyncio.ensure_future(_alone(gates))
        # It has begun to wait when somebody who comes now has to wait for it.
        behind = asyncio.ensure_future(_user(gates))
        await asyncio.wait([behind], timeout=0.01)
        assert not behind.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await behind
    assert not gates._places


async def _user(gates: Gates) -> None:
    async with gates.shared("a"):
        pass


async def _alone(gates: Gates) -> None:
    async with gates.alone("a"):
        raise AssertionError
