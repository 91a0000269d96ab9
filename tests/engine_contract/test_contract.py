"""What every engine must do alike."""

from __future__ import annotations

import asyncio
import os

import pytest

from modal_nomad.engines.base import ContainerState, EngineError
from modal_nomad.wire.ids import new_id
from tests.engine_contract.conftest import LIMIT, Bench

FOREVER = "echo up; while :; do sleep 0.1; done"


async def test_validate(bench: Bench) -> None:
    assert await bench.engine.validate(bench.job("true")) == []
    bad = bench.job("true")
    bad["TaskGroups"] = []
    faults = await bench.engine.validate(bad)
    assert faults and "group" in " ".join(faults).lower()


async def test_plan_new_unchanged_changed(bench: Bench) -> None:
    job = bench.job("true")
    new = await bench.engine.plan(job)
    assert new.changes and new.diff["Type"] == "Added"
    await bench.engine.submit(job)
    bench.jobs.append(job["ID"])
    same = await bench.engine.plan(job)
    assert not same.changes
    job["TaskGroups"][0]["Tasks"][0]["Env"]["NEW"] = "1"
    changed = await bench.engine.plan(job)
    assert changed.changes and changed.diff["Type"] == "Edited"


async def test_runs_to_completion_with_logs(bench: Bench) -> None:
    script = 'echo "I am $MODAL_TASK_ID and $A"; echo bad >&2'
    if loses_last_words(bench):
        container = await bench.start(f"{script}; {FOREVER}", env={"A": "b c"})
        assert await _said(bench, container, b"up\n") == f"I am {container} and b c\nup\n".encode()
        assert await _said(bench, container, b"bad\n", "stderr") == b"bad\n"
        return
    container = await bench.start(script, env={"A": "b c"})
    end = await bench.ended(container)
    assert (end.state, end.exit_code) == (ContainerState.COMPLETE, 0)
    assert await bench.log(container) == f"I am {container} and b c\n".encode()
    assert await bench.log(container, "stderr") == b"bad\n"
    assert container not in [e.container_id for e in await bench.engine.containers()]


async def test_nonzero_exit_is_failed(bench: Bench) -> None:
    end = await bench.ended(await bench.start("exit 7"))
    assert (end.state, end.exit_code) == (ContainerState.FAILED, 7)
    assert "7" in end.reason


async def test_killed_container_is_reported(bench: Bench) -> None:
    # The first process of a container has no signal that it did not ask for.
    script = "sh -c 'kill -9 $$'; exit $?" if bench.image else "kill -9 $$"
    end = await bench.ended(await bench.start(script))
    assert end.state is ContainerState.FAILED
    assert "killed by signal 9" in end.reason


@pytest.mark.parametrize("engine", ["local-docker", "nomad-docker"], indirect=True)
async def test_out_of_memory_is_said(bench: Bench) -> None:
    job = bench.job("python3 -c 'bytearray(1 << 30)'; exit $?")
    job["TaskGroups"][0]["Tasks"][0]["Config"]["memory_hard_limit"] = 64
    await bench.engine.submit(job)
    bench.jobs.append(job["ID"])
    end = await bench.ended(await bench.start_in(job["ID"]))
    assert (end.state, end.exit_code) == (ContainerState.FAILED, 137)
    assert end.reason.startswith("out of memory")


async def test_starting_an_id_twice_starts_one(bench: Bench) -> None:
    job = await bench.submit(FOREVER)
    container = new_id("ta")
    await asyncio.gather(bench.start_in(job, container), bench.start_in(job, container))
    await bench.running(container)
    await bench.start_in(job, container)
    mine = [e for e in await bench.engine.containers() if e.container_id == container]
    assert len(mine) == 1
    await bench.engine.stop_container(container)
    await bench.ended(container)
    assert len({e.allocation_id for e in bench.events if e.container_id == container} - {""}) <= 1


async def test_stop_container_lets_it_end_well(bench: Bench) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    container = await bench.start(script, kill_seconds=25)
    await bench.running(container)
    await _said(bench, container, b"up")
    await bench.engine.stop_container(container)
    end = await bench.ended(container)
    # None: Nomad now and then tears the task down before its driver has read the code.
    assert end.state is ContainerState.COMPLETE and end.exit_code in (0, None)
    log = await bench.log(container, follow=True)
    assert log == b"up\nbye\n" or (loses_last_words(bench) and log == b"up\n")


async def test_stop_container_by_force(bench: Bench) -> None:
    container = await bench.start("trap '' TERM; " + FOREVER)
    await bench.running(container)
    await _said(bench, container, b"up")
    await bench.engine.stop_container(container, force=True)
    assert (await bench.ended(container)).state.ended
    await bench.engine.stop_container(container, force=True)


async def test_stopping_a_job_ends_its_containers(bench: Bench) -> None:
    job = await bench.submit(FOREVER)
    containers = [await bench.start_in(job) for _ in range(3)]
    for container in containers:
        await bench.running(container)
    await bench.engine.stop(job)
    for container in containers:
        await bench.ended(container)
    with pytest.raises(EngineError):
        await bench.start_in(job)


async def test_logs_follow(bench: Bench) -> None:
    script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done; printf tail"
    if loses_last_words(bench):
        script += "; echo; " + FOREVER
        container = await bench.start(script)
        assert (await _said(bench, container, b"up\n")).startswith(b"line 1\nline 2\nline 3\n")
        return
    container = await bench.start(script)
    text = await asyncio.wait_for(bench.log(container, follow=True), LIMIT)
    assert text == b"line 1\nline 2\nline 3\nline 4\nline 5\ntail"


async def test_long_log_is_whole(bench: Bench) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i of many; i=$((i+1)); done"
    whole = b"".join(b"line %d of many\n" % i for i in range(20000))
    if loses_last_words(bench):
        container = await bench.start(script + "; " + FOREVER)
        text = (await _said(bench, container, b"up\n"))[: len(whole)]
    else:
        container = await bench.start(script)
        text = await asyncio.wait_for(bench.log(container, follow=True), LIMIT)
    assert text == whole


async def test_exec(bench: Bench) -> None:
    container = await bench.start(FOREVER)
    await bench.running(container)
    done = await bench.engine.exec(
        container, ["/bin/sh", "-c", "cat; echo err >&2; exit 3"], stdin=b"x" * 70000
    )
    assert (done.exit_code, done.stdout, done.stderr) == (3, b"x" * 70000, b"err\n")


async def test_stats(bench: Bench) -> None:
    container = await bench.start(FOREVER)
    await bench.running(container)
    stats = await bench.engine.stats(container)
    assert stats.cpu >= 0 and stats.memory >= 0


async def test_the_capacity_is_known_at_once(bench: Bench) -> None:
    capacities = bench.engine.capacities()
    first = await asyncio.wait_for(anext(capacities), LIMIT)
    assert first.cores == len(os.sched_getaffinity(0)) and first.nodes == 1
    await bench.engine.close()
    assert [c async for c in capacities] == []


async def test_unknown_ids(bench: Bench) -> None:
    unknown = new_id("ta")
    with pytest.raises(KeyError):
        await bench.log(unknown)
    with pytest.raises(KeyError):
        await bench.engine.exec(unknown, ["true"])
    with pytest.raises(KeyError):
        await bench.engine.stats(unknown)
    await bench.engine.stop_container(unknown)
    await bench.engine.stop("no-such-job")
    with pytest.raises(EngineError):
        await bench.start_in("no-such-job")


def loses_last_words(bench: Bench) -> bool:
    """Tell of Nomad's docker driver, which ends its reading of a log when the container has ended."""
    return bool(bench.image) and bench.engine.name == "nomad"


async def _said(bench: Bench, container: str, text: bytes, stream: str = "stdout") -> bytes:
    """Return a log when a text has come in it."""

    async def read() -> bytes:
        held = b""
        async for part in bench.engine.logs(container, stream=stream, follow=True):
            held += part
            if text in held:
                break
        return held

    return await asyncio.wait_for(read(), LIMIT)
