"""Dispatchers on PostgreSQL: what they keep, a server that is killed, one that takes over from another."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _balancer import balancer
from conftest import Live, until

import modal_nomad as modal
from tests._ports import free_ports
from tests._postgresql import Postgresql
from tests._s3 import KEY_ID, SECRET_KEY, s3_server

Serve = Callable[..., "subprocess.Popen[str]"]
LIMIT = 90.0


def square_app(name: str) -> modal.App:
    app = modal.App(name)

    @app.function(serialized=True, name="square")
    def square(x: int) -> int:
        return x * x

    return app


def test_what_a_dispatcher_keeps_outlives_it(own: Live, serve: Serve, postgresql_database: str) -> None:
    killed = serve(store=postgresql_database)
    app = square_app("kept")
    app.deploy()
    call = app["square"].spawn(5)
    assert call.get(timeout=LIMIT) == 25
    many = app["square"].experimental_spawn_map(range(50))
    things = modal.Dict.from_name("things", create_if_missing=True)
    things["key"] = {"a": 1}
    things[b"long" * 10000] = "long"
    queue = modal.Queue.from_name("jobs", create_if_missing=True)
    queue.put_many([1, 2, 3])
    assert queue.get() == 1
    volume = modal.Volume.from_name("files", create_if_missing=True)
    with volume.batch_upload() as batch:
        batch.put_file(Path(__file__), "/deep/er/test.py")
    home = own.home / "state"
    killed.kill()
    killed.wait()
    assert not (home / "store.db").exists()

    serve(store=postgresql_database)
    assert call.get(timeout=LIMIT) == 25
    assert things["key"] == {"a": 1} and things[b"long" * 10000] == "long"
    assert queue.get_many(5) == [2, 3]
    assert b"".join(volume.read_file("deep/er/test.py")) == Path(__file__).read_bytes()
    assert list(many.iter()) == [x * x for x in range(50)]
    again = modal.Function.from_name("kept", "square")
    assert again.remote(6) == 36
    assert "things" in own.cli("dict", "list").stdout


def test_tokens_are_made_beside_a_dispatcher(own: Live, serve: Serve, postgresql_database: str) -> None:
    serve(store=postgresql_database, auth="token")
    config = str(own.home / "dispatcher.toml")
    made = own.cli("dispatcher", "token", "create", "--config", config)
    assert made.returncode == 0 and "in use" not in made.stderr, made.stderr
    assert len(own.cli("dispatcher", "token", "list", "--config", config).stdout.splitlines()) > 1


def test_a_store_that_cannot_be_had_is_one_line(own: Live) -> None:
    config = own.write(
        "d.toml",
        f"""
        listen = "unix://{own.home}/d.sock"
        home = "{own.home}/state"
        store = "postgresql://me:secret@127.0.0.1:1/rows"
        engine = "local"
        auth = "none"
        """,
    )
    done = own.cli("dispatcher", "--config", str(config))
    assert done.returncode == 1 and "secret" not in done.stderr
    assert "no PostgreSQL answers at postgresql://127.0.0.1:1/rows" in done.stderr.splitlines()[-1]
    config.write_text(config.read_text().replace("postgresql:", "mysql:"))
    done = own.cli("dispatcher", "--config", str(config))
    assert done.returncode == 1 and "store is no address of PostgreSQL" in done.stderr
    assert "secret" not in done.stderr


def test_a_killed_server_costs_no_accepted_input_and_no_result(
    serve: Serve, own_postgresql: Postgresql
) -> None:
    serve(store=own_postgresql.dsn())
    app = square_app("server")
    app.deploy()
    queue = modal.Queue.from_name("numbers", create_if_missing=True)

    async def work() -> tuple[list[int], list[int]]:
        spawning = asyncio.gather(*(app["square"].spawn.aio(x) for x in range(600)))
        putting = asyncio.gather(*(queue.put.aio(x) for x in range(100)))
        first = await app["square"].spawn.aio(1)
        await first.get.aio(timeout=LIMIT)
        await asyncio.to_thread(own_postgresql.kill)
        await asyncio.to_thread(own_postgresql.start)
        await putting
        results = await asyncio.gather(*(call.get.aio(timeout=LIMIT) for call in await spawning))
        return list(results), await queue.get_many.aio(200)

    results, items = asyncio.run(work())
    assert results == [x * x for x in range(600)]
    assert sorted(items) == list(range(100))


class _Dispatchers:
    """Two on one database, each with a home of its own and with the same blobs."""

    def __init__(self, own: Live, store: str, s3: str = "") -> None:
        self._own = own
        self._store = store
        self._s3 = s3
        self.ports = free_ports(2)
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, port: int, advertise: int) -> None:
        home = self._own.home / str(port)
        (self._own.home / "blobs").mkdir(exist_ok=True)
        home.mkdir(exist_ok=True)
        if not self._s3 and not (home / "blobs").exists():
            (home / "blobs").symlink_to(self._own.home / "blobs")
        config = self._own.write(
            f"{port}.toml",
            f"""
            listen = "http://127.0.0.1:{port}"
            advertise = "http://127.0.0.1:{advertise}"
            home = "{home}"
            store = "{self._store}"
            engine = "local"
            auth = "none"
            {self._s3}
            """,
        )
        with (self._own.home / f"{port}.log").open("ab") as log:
            self.processes[port] = self._own.start(
                "-m", "modal_nomad.dispatcher", "--config", str(config), stdout=log, stderr=log
            )
        until(lambda: self.health(port), LIMIT, f"the dispatcher's answer on port {port}")

    def health(self, port: int) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
                return str(answer.status) + str(answer.read())
        except urllib.error.HTTPError as error:
            return str(error.code) + str(error.read())
        except OSError:
            return ""

    def kill(self, port: int) -> None:
        process = self.processes.pop(port)
        process.kill()
        process.wait(LIMIT)

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(LIMIT)


def test_a_standby_takes_over_what_a_killed_dispatcher_had(
    own: Live, postgresql_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = _Dispatchers(own, postgresql_database)
    first, second = pair.ports
    with balancer(pair.ports) as port:
        try:
            monkeypatch.setenv("MODAL_SERVER_URL", f"http://127.0.0.1:{port}")
            pair.start(first, port)
            pair.start(second, port)
            assert pair.health(first).startswith("200") and "standby" in pair.health(second)
            app = square_app("standby")
            app.deploy()
            queue = modal.Queue.from_name("left", create_if_missing=True)
            queue.put_many(range(10))
            taken = queue.get_many(3)

            async def spawn() -> list[Any]:
                calls = await asyncio.gather(*(app["square"].spawn.aio(x) for x in range(300)))
                # All are acknowledged, and most have not run.
                pair.processes[first].kill()
                return list(await asyncio.gather(*(call.get.aio(timeout=LIMIT) for call in calls)))

            assert asyncio.run(spawn()) == [x * x for x in range(300)]
            pair.kill(first)
            assert pair.health(second).startswith("200")
            assert taken + queue.get_many(10) == list(range(10))

            # The other way round, in the middle of a map, with a spawn_map that has hardly begun.
            pair.start(first, port)
            assert "standby" in pair.health(first)
            many = app["square"].experimental_spawn_map(range(2000))
            results = []
            for value in app["square"].map(range(4000)):
                results.append(value)
                if len(results) == 500:
                    os.kill(pair.processes[second].pid, signal.SIGKILL)
            assert results == [x * x for x in range(4000)]
            assert list(many.iter()) == [x * x for x in range(2000)]
        finally:
            pair.close()


def test_the_embedded_dispatcher_takes_it_from_its_own_file(own: Live, postgresql_database: str) -> None:
    (own.home / "local.toml").write_text(f'store = "{postgresql_database}"\n')
    modal.Dict.from_name("things", create_if_missing=True)["key"] = 1
    own.kill()
    assert modal.Dict.from_name("things")["key"] == 1
    assert not (own.home / "store.db").exists()


def test_a_standby_takes_over_with_blobs_in_a_bucket(
    own: Live, postgresql_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = os.urandom(5 << 20)
    with s3_server(tmp_path) as s3:
        table = {"bucket": s3.bucket("pair"), "endpoint": s3.address, "access_key_id": KEY_ID}
        table |= {"secret_access_key": SECRET_KEY}
        lines = [f'{name} = "{value}"' for name, value in table.items()]
        pair = _Dispatchers(own, postgresql_database, "\n".join(["[s3]", "path_style = true", *lines]))
        first, second = pair.ports
        with balancer(pair.ports) as port:
            try:
                monkeypatch.setenv("MODAL_SERVER_URL", f"http://127.0.0.1:{port}")
                pair.start(first, port)
                pair.start(second, port)
                app = modal.App("bucket")

                @app.function(serialized=True, name="turn")
                def turn(data: bytes) -> bytes:
                    return data[::-1]

                app.deploy()
                done = app["turn"].spawn(large)
                assert done.get(timeout=LIMIT) == large[::-1]
                things = modal.Dict.from_name("large", create_if_missing=True)
                things["value"] = large
                volume = modal.Volume.from_name("large", create_if_missing=True)
                with volume.batch_upload() as batch:
                    batch.put_file(io.BytesIO(large), "large")
                accepted = app["turn"].spawn(large[:-1])
                pair.kill(first)
                assert accepted.get(timeout=LIMIT) == large[-2::-1]
                assert pair.health(second).startswith("200")
                assert modal.FunctionCall.from_id(done.object_id).get(timeout=LIMIT) == large[::-1]
                assert things["value"] == large and b"".join(volume.read_file("large")) == large
                assert app["turn"].remote(large) == large[::-1]
                assert not [x for x in own.home.glob("*/blobs/**/*") if x.is_file()]
            finally:
                pair.close()
