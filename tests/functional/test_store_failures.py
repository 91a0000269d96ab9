"""A store that fails: nothing is acknowledged that is not on the disk, and all else goes on."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from _served import Served

from modal_nomad.dispatcher.objects import registry
from modal_nomad.dispatcher.store import SqliteStore, StoreError
from modal_nomad.wire.ids import new_id


def test_a_spawn_that_is_not_on_the_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # A Unix socket's path must be short, which pytest's own folders are not.
    with (
        tempfile.TemporaryDirectory(prefix="mn-", dir="/tmp") as home,
        Served(Path(home)).running() as served,
    ):
        client = served.client()
        _, function_id, job_id = served.function(client)
        call = new_id("fc")

        async def full(*args: Any, **options: Any) -> None:
            raise StoreError("no space left for the store: free some disk space")

        def spawn(number: int) -> dict[str, Any]:
            client.send({"t": "in", "c": call, "f": function_id, "x": [0], "d": 1, "i": number}, [b"in"])
            return client.take("rs")[0]

        with monkeypatch.context() as patch:
            patch.setattr(served.store, "add_inputs", full)
            answer = spawn(100)
        assert (answer["i"], answer["e"][0]) == (100, "InternalFailure")
        assert "free some disk space" in answer["e"][1]
        assert client.request("call.get", {"call_id": call, "timeout": 0})["e"][0] == "NotFoundError"
        assert not served.engine.asked.get(job_id), "what was refused must not run"

        # A call that its client waits for needs no store.
        client.send({"t": "in", "c": new_id("fc"), "f": function_id, "x": [0]}, [b"in"])
        worker = served.worker(job_id)
        lease = worker.take("run")[0]["x"][0]
        worker.send({"t": "done", "x": [lease], "d": 0.1}, [b"out"])
        assert client.take("out")[1] == [b"out"]

        # The same call again, once there is space: it runs, once.
        assert "e" not in spawn(101)
        lease = worker.take("run")[0]["x"][0]
        worker.send({"t": "done", "x": [lease], "d": 0.1}, [b"kept"])
        assert client.request("call.get", {"call_id": call, "timeout": 100})["v"]["done"]
        client.socket.close()
        worker.socket.close()


def test_expired_entries_are_looked_for_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []
    again = threading.Event()

    async def expire(self: SqliteStore, now: float, answers_before: float) -> None:
        tries.append(now)
        if len(tries) == 1:
            raise StoreError("the store went away")
        again.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(registry, "_EXPIRY_SECONDS", 0.0)
    monkeypatch.setattr(SqliteStore, "expire_objects", expire)
    with (
        tempfile.TemporaryDirectory(prefix="mn-", dir="/tmp") as home,
        Served(Path(home)).running(),
    ):
        assert again.wait(60)
