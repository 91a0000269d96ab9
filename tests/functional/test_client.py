"""Clients: the shared one, one of its own token, and what is said of one that is closed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception, runner
from modal_nomad.client import Client


@pytest.fixture
def app(live: Live) -> Iterator[modal.App]:
    app = modal.App("clients")

    @app.function(serialized=True, name="double")
    def double(x: int) -> int:
        return 2 * x

    yield app


def test_there_is_one_client_for_each_server_and_token(live: Live) -> None:
    client = Client.from_env()
    assert Client.from_env() is client and not client.is_closed()
    assert client.hello() is None
    other = Client.from_credentials("ak-other", "as-other")
    assert other is not client and other.hello() is None
    client._close()
    assert client.is_closed() and not other.is_closed()
    with pytest.raises(exception.ClientClosed, match=r"Client\.from_env\(\)"):
        client.hello()
    again = Client.from_env()
    assert again is not client and not again.is_closed()


async def test_async_twins(live: Live) -> None:
    client = await Client.from_env.aio()
    assert await client.hello.aio() is None
    assert not (await Client.from_credentials.aio("ak-1", "as-1")).is_closed()


def test_a_client_that_is_given_is_the_one_that_is_used(app: modal.App, live: Live) -> None:
    mine = Client.from_credentials("ak-mine", "as-mine")
    with app.run(client=mine):
        assert app["double"].remote(2) == 4
        assert app["double"]._client is mine
        call = app["double"].spawn(3)
        assert modal.FunctionCall.from_id(call.object_id, client=mine).get() == 6
    result = runner.deploy_app(app, "clients-deployed", client=mine)
    try:
        assert modal.App.lookup("clients-deployed", client=mine).app_id == result.app_id
        found = modal.Function.from_name("clients-deployed", "double", client=mine)
        assert found.hydrate()._client is mine
        assert modal.Function.from_name("clients-deployed", "double").hydrate(client=mine)._client is mine
    finally:
        live.request("app.stop", app_id=result.app_id)


def test_credentials_are_checked_by_the_server(
    own: Live, serve: Callable[..., subprocess.Popen[str]]
) -> None:
    serve(auth="token")
    with pytest.raises(exception.AuthError, match="token"):
        Client.from_credentials("ak-wrong", "as-wrong")
    issued = own.cli("dispatcher", "token", "create", "--json", "--config", str(own.home / "dispatcher.toml"))
    token: dict[str, Any] = json.loads(issued.stdout)
    client = Client.from_credentials(token["token_id"], token["token_secret"])
    assert not client.is_closed() and client.hello() is None
