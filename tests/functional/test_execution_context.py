"""What code knows of where it runs: is_local, the ids of input and call, the container's variables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal

IDS = tuple[bool, "str | None", "str | None"]


@pytest.fixture(scope="module")
def app(_shared_home: Any) -> Iterator[modal.App]:
    app = modal.App("context")

    @app.function(serialized=True, name="ids")
    def ids(x: int = 0) -> IDS:
        import modal_nomad as modal

        return modal.is_local(), modal.current_input_id(), modal.current_function_call_id()

    @app.function(serialized=True, name="later")
    @modal.concurrent(max_inputs=4)
    async def later(x: int = 0) -> IDS:
        import asyncio

        import modal_nomad as modal

        await asyncio.sleep(0)
        return modal.is_local(), modal.current_input_id(), modal.current_function_call_id()

    @app.function(serialized=True, name="items")
    def items() -> Iterator[IDS]:
        import modal_nomad as modal

        for _ in range(2):
            yield modal.is_local(), modal.current_input_id(), modal.current_function_call_id()

    @app.function(serialized=True, name="variables")
    def variables() -> dict[str, str]:
        import os

        return dict(os.environ)

    with app.run():
        yield app


@pytest.mark.parametrize("name", ["ids", "later"])
def test_each_input_has_its_own_id_and_its_calls(app: modal.App, name: str) -> None:
    call = app[name].spawn()
    local, input_id, call_id = call.get(timeout=100)
    assert (local, call_id) == (False, call.object_id) and input_id.startswith("in-")
    found = list(app[name].map(range(8)))
    assert len({x[1] for x in found}) == 8
    assert len({x[2] for x in found}) == 1 and found[0][2].startswith("fc-") and found[0][2] != call_id


def test_in_a_generator(app: modal.App) -> None:
    one, two = app["items"].remote_gen()
    assert one == two and one[0] is False and one[1].startswith("in-") and one[2].startswith("fc-")


def test_on_the_callers_machine(app: modal.App) -> None:
    assert app["ids"].local() == (True, None, None)


def test_what_a_containers_environment_says(app: modal.App) -> None:
    found = app["variables"].remote()
    assert found["MODAL_IS_REMOTE"] == "1" and found["MODAL_TASK_ID"].startswith("ta-")
    assert found["MODAL_IMAGE_ID"].startswith("im-") and found["MODAL_ENVIRONMENT"] == "main"


def test_ids_begin_with_the_word_for_what_they_name(app: modal.App) -> None:
    assert str(app.app_id).startswith("ap-") and app["ids"].object_id.startswith("fu-")
    call = app["ids"].spawn()
    assert call.object_id.startswith("fc-") and call.is_hydrated and app["ids"].is_hydrated
    image = modal.Image.debian_slim()
    assert not image.is_hydrated
    with modal.App("one", image=image).run(), pytest.raises(modal.exception.ExecutionError):
        _ = image.object_id


def test_handles_travel_as_what_they_are(app: modal.App, live: Live) -> None:
    caller = modal.App("handles")

    @caller.function(serialized=True, name="use")
    def use(function: Any, call: Any) -> Any:
        return type(function).__name__, function.is_hydrated, function.remote(1)[0], type(call).__name__

    with caller.run():
        call = app["ids"].spawn()
        assert caller["use"].remote(app["ids"], call) == ("Function", True, False, "FunctionCall")
        loose = modal.App("loose").function(serialized=True, name="loose")(lambda: 1)
        with pytest.raises(modal.exception.InvalidError, match="before it is hydrated"):
            caller["use"].remote(loose, call)
