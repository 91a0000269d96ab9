"""Dicts on a real dispatcher: from one process, from two, from containers, under kills."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception

ON_BOTH_STORES = True


def test_methods_and_operators(live: Live) -> None:
    with modal.Dict.ephemeral({"a": 1}) as d:
        d["b"] = [1, 2]
        d[("k", 3)] = None
        assert d["b"] == [1, 2] and d[("k", 3)] is None and "a" in d and "z" not in d
        assert d.contains("a") and d.len() == 3 and d.get("z") is None and d.get("z", 7) == 7
        assert sorted(d.keys(), key=str) == [("k", 3), "a", "b"]
        assert dict(d.items()) == {"a": 1, "b": [1, 2], ("k", 3): None}
        assert len(list(d.values())) == 3
        assert d.pop("a") == 1
        for missing in (lambda: d.pop("a"), lambda: d["a"], lambda: d.__delitem__("a")):
            with pytest.raises(KeyError, match="a"):
                missing()
        assert d.pop("a", "none") == "none"
        del d["b"]
        d.update({1: "x"}, y="z")
        d.update([(2, "w")])
        assert (d[1], d[2], d["y"]) == ("x", "w", "z")
        d.clear()
        assert d.len() == 0 and list(d.items()) == []


async def test_the_async_twins(live: Live) -> None:
    async with modal.Dict.ephemeral() as d:
        assert await d.put.aio("foo", "bar") is True
        assert await d.put.aio("foo", "baz", skip_if_exists=True) is False
        assert await d.get.aio("foo") == "bar"
        assert [k async for k in d.keys.aio()] == ["foo"]
        assert await d.pop.aio("foo") == "bar" and await d.len.aio() == 0
    with pytest.raises(exception.NotFoundError, match="Dict di-"):
        await d.get.aio("foo")


def test_of_many_that_put_one_key_one_writes(live: Live) -> None:
    with modal.Dict.ephemeral() as d:

        async def race() -> list[bool]:
            return await asyncio.gather(*(d.put.aio("lock", i, skip_if_exists=True) for i in range(50)))

        wins = asyncio.run(race())
        assert sum(wins) == 1 and d["lock"] == wins.index(True)


def test_names_environments_and_listing(live: Live) -> None:
    with pytest.raises(exception.NotFoundError, match=r"'absent'.*'main'"):
        modal.Dict.from_name("absent").hydrate()
    for name in ("", "a b", "x" * 65, "ap-" + "a" * 22, 3):
        with pytest.raises(exception.InvalidError, match="Invalid Dict name"):
            modal.Dict.from_name(name)  # type: ignore[arg-type]
    with pytest.raises(exception.InvalidError, match="environment name"):
        modal.Dict.from_name("a", environment_name="-x")
    one = modal.Dict.from_name("shared", {"seed": 1}, create_if_missing=True)
    assert not one.is_hydrated and one.name == "shared"
    with pytest.raises(exception.ExecutionError, match="hydrate"):
        _ = one.object_id
    assert one["seed"] == 1 and one.object_id.startswith("di-")
    # Data is for a new one alone.
    modal.Dict.from_name("shared", {"seed": 2}, create_if_missing=True).hydrate()
    assert one["seed"] == 1
    other = modal.Dict.from_name("shared", environment_name="elsewhere", create_if_missing=True)
    assert "seed" not in other and other.object_id != one.object_id
    with pytest.warns(exception.DeprecationError, match="from_name"):
        assert modal.Dict.lookup("shared").object_id == one.object_id
    with pytest.warns(exception.DeprecationError, match="'name'"):
        assert modal.Dict.from_name(label="shared").hydrate().object_id == one.object_id  # type: ignore[call-arg]
    with pytest.raises(exception.AlreadyExistsError, match="shared"):
        modal.Dict.objects.create("shared")
    modal.Dict.objects.create("shared", allow_existing=True)
    assert [d.name for d in modal.Dict.objects.list()] == ["shared"]
    assert modal.Dict.objects.list(created_before="2001-01-01") == []
    info = one.info()
    assert info.name == "shared" and info.created_at.tzinfo is not None
    modal.Dict.delete("shared")
    modal.Dict.objects.delete("shared", environment_name="elsewhere")
    modal.Dict.objects.delete("shared", allow_missing=True)
    with pytest.raises(exception.NotFoundError, match="shared"):
        modal.Dict.objects.delete("shared")
    with pytest.raises(exception.NotFoundError, match="deleted"):
        one.get("seed")


def test_no_constructor(live: Live) -> None:
    with pytest.raises(exception.InvalidError, match="no constructor"):
        modal.Dict()


def test_large_values_travel_as_blobs_and_too_large_ones_not_at_all(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    import modal_nomad.dict as module

    with modal.Dict.ephemeral() as d:
        large = bytes(range(256)) * 20_000
        d["large"] = large
        assert d["large"] == large and dict(d.items()) == {"large": large} and d.pop("large") == large
        monkeypatch.setattr(module, "MAX_VALUE_BYTES", 1000)
        with pytest.raises(exception.RequestSizeError, match="Volume"):
            d["x"] = bytes(2000)
        with pytest.raises(exception.RequestSizeError, match="key"):
            d["k" * (257 << 10)] = 1


def test_a_walk_over_more_than_a_page(live: Live) -> None:
    with modal.Dict.ephemeral() as d:
        d.update(dict.fromkeys(range(1200), "v" * 10000))
        seen = set()
        for key in d.keys():  # noqa: SIM118 (a Dict is no dict)
            seen.add(key)
            if len(seen) == 100:
                d.update(dict.fromkeys(range(1200), "changed"))
        assert seen == set(range(1200))
        assert sorted(k for k, _ in d.items()) == list(range(1200))


def test_it_is_passed_to_containers(live: Live) -> None:
    app = modal.App("with-dict")

    @app.function(serialized=True)
    def fill(d: Any, key: str) -> str:
        d[key] = d.get("base") + 1
        return type(d).__name__

    with modal.Dict.ephemeral({"base": 1}) as d, app.run():
        assert fill.remote(d, "made") == "Dict" and d["made"] == 2
        with pytest.raises(exception.InvalidError, match="hydrate"):
            fill.remote(modal.Dict.from_name("unhydrated"), "x")


def test_what_was_put_outlives_a_killed_dispatcher_and_each_pop_is_answered_once(own: Live) -> None:
    """Pops are under way while the dispatcher is killed, again and again: each value comes exactly once."""
    d = modal.Dict.from_name("kept", create_if_missing=True)
    count = 300
    d.update({i: i * i for i in range(count)})
    popped: list[Any] = []
    writes: list[bool] = []

    def work(start: int) -> None:
        for key in range(start, count, 3):
            popped.append(d.pop(key))
            writes.append(d.put(("done", key), 1, skip_if_exists=True))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for reached in (40, 140, 220):
        until(lambda reached=reached: len(popped) >= reached, 100)  # type: ignore[misc]
        own.kill()
    for thread in threads:
        thread.join(100)
    # A pop that was carried out but not answered would have raised KeyError when it was sent again.
    assert sorted(popped) == sorted(i * i for i in range(count))
    assert all(writes) and d.len() == count


def test_an_ephemeral_dict_goes_with_its_program(own: Live) -> None:
    script = own.write(
        "holder.py",
        """
        import os, sys, modal_nomad as modal
        context = modal.Dict.ephemeral({"a": 1})
        print(context.__enter__().object_id, flush=True)
        sys.stdin.read()
        os._exit(1)
        """,
    )
    with own.start(str(script), stdin=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stdin is not None
        object_id = program.stdout.readline().strip()
        found = modal.Dict.from_id(object_id)
        assert found["a"] == 1
        own.kill()
        assert found["a"] == 1
        program.stdin.close()

    def gone() -> bool:
        try:
            found.get("a")
        except exception.NotFoundError:
            return True
        return False

    until(gone, what="the end of the Dict")
