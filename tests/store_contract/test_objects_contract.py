"""Named objects in the store: expiry, answers given once, blobs that are in use, contents that go along."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from modal_nomad.dispatcher.store import Store, StoreError, TokenRecord
from modal_nomad.dispatcher.store.leases import LeaseRecord
from modal_nomad.dispatcher.store.objects import (
    Entry,
    EnvironmentRecord,
    Item,
    Kept,
    ObjectRecord,
    Ticket,
)
from modal_nomad.dispatcher.store.schedules import ScheduleRecord
from modal_nomad.wire.spec import ScheduleSpec
from modal_nomad.wire.volumes.entries import Entry as VolumeEntry

RECORD = ObjectRecord("di-1", "dict", "d", "main", 5.0, "me", "", {"x": 1})


async def test_a_name_is_taken_once_in_its_environment(store: Store) -> None:
    assert await store.add_object(RECORD) == RECORD
    assert await store.add_object(replace(RECORD, object_id="di-2")) == RECORD
    others = [
        replace(RECORD, object_id="di-3", environment="dev"),
        replace(RECORD, object_id="qu-1", kind="queue", created_at=7.0),
        replace(RECORD, object_id="di-4", name=None, owner="cl-1"),
        replace(RECORD, object_id="di-5", name=None, owner="cl-1"),
    ]
    for other in others:
        assert await store.add_object(other) == other
    assert await store.object("di-1") == await store.object_named("dict", "d", "main") == RECORD
    assert await store.object("di-2") is None
    assert await store.objects("dict", "main") == [RECORD]
    assert [x.object_id for x in await store.objects(environment="main")] == ["qu-1", "di-1"]
    assert [x.object_id for x in await store.objects(created_before=6.0, limit=1)] in (["di-1"], ["di-3"])
    assert {x.object_id for x in await store.objects(ephemeral=True)} == {"di-4", "di-5"}


async def test_a_rename_takes_no_name_that_is_taken(store: Store) -> None:
    await store.add_object(RECORD)
    await store.add_object(replace(RECORD, object_id="di-2", name="e"))
    assert not await store.set_object_name("di-1", "e")
    assert await store.set_object_name("di-1", "d") and await store.set_object_name("di-1", "f")
    assert not await store.set_object_name("di-9", "g")
    await store.set_object_detail("di-1", {"y": [2]})
    assert await store.object("di-1") == replace(RECORD, name="f", detail={"y": [2]})


async def test_entries_expire_by_their_last_write_and_len_counts_them_until_they_are_removed(
    store: Store,
) -> None:
    await store.dict_put("di-1", [Entry(b"a", b"1"), Entry(b"b", b"2")], 50.0, 0.0, Ticket("c", 1))
    await store.dict_put("di-1", [Entry(b"b", b"3")], 70.0, 20.0, Ticket("c", 2))
    assert await store.dict_get("di-1", b"a", 49.0) == Entry(b"a", b"1", 0, 1)
    assert await store.dict_get("di-1", b"a", 50.0) is None
    assert [x.key for x in await store.dict_entries("di-1", 0, 10, 60.0)] == [b"b"]
    assert await store.dict_len("di-1") == 2
    # An expired one is no obstacle to skip_if_exists, and no prize for pop.
    again = await store.dict_put("di-1", [Entry(b"a", b"4")], 90.0, 60.0, Ticket("c", 3), only_missing=True)
    assert again == Kept({"written": 1})
    assert await store.dict_pop("di-1", b"b", 71.0, Ticket("c", 4)) == Kept({"found": False})
    await store.expire_objects(90.0, 0.0)
    assert await store.dict_len("di-1") == 0


async def test_a_request_is_carried_out_once_and_its_answer_kept_until_it_arrived(store: Store) -> None:
    await store.dict_put("di-1", [Entry(b"a", b"1", 1)], 1e9, 0.0, Ticket("c", 1))
    popped = await store.dict_pop("di-1", b"a", 0.0, Ticket("c", 2))
    assert popped == Kept({"found": True}, b"1", 1)
    await store.dict_put("di-1", [Entry(b"a", b"new")], 1e9, 0.0, Ticket("other", 2))
    assert await store.dict_pop("di-1", b"a", 0.0, Ticket("c", 2)) == popped
    assert await store.dict_len("di-1") == 1
    assert await store.kept_answer(Ticket("c", 2)) == popped
    assert await store.kept_answer(Ticket("c", 3)) is None
    # The client has the answers to all below 3.
    await store.dict_clear("di-1", Ticket("c", 3, 3))
    assert await store.kept_answer(Ticket("c", 2)) is None
    assert await store.kept_answer(Ticket("c", 3)) == Kept({})
    await store.expire_objects(0.0, 101.0)
    assert await store.kept_answer(Ticket("c", 3)) is None


async def test_blobs_of_entries_and_of_answers_are_in_use(store: Store) -> None:
    name = "ab" * 32
    await store.dict_put("di-1", [Entry(b"a", name.encode(), 1), Entry(b"b", b"x")], 1e9, 0.0, Ticket("c", 1))
    assert (await store.referenced_blobs()).names == {name}
    await store.dict_pop("di-1", b"a", 0.0, Ticket("c", 2, 1))
    assert (await store.referenced_blobs()).names == {name}
    await store.dict_clear("di-1", Ticket("c", 3, 3))
    assert (await store.referenced_blobs()).names == set()


async def test_what_was_written_to_an_object_that_had_just_gone_is_removed(store: Store) -> None:
    for object_id in ("di-2", "qu-4", "vo-1"):
        await store.add_object(ObjectRecord(object_id, "dict", object_id, "main", 0.0))
    await store.volume_commit("vo-1", "c", [VolumeEntry("a", 1)].__iter__, rule="last", now=0.0)
    for number, object_id in enumerate(("di-1", "di-2", "di-3"), 1):
        await store.dict_put(object_id, [Entry(b"k", b"v")], 1e12, 0.0, Ticket("c", number))
    for number in range(3, 6):
        await store.queue_put(f"qu-{number}", [(Item(number, "", 1, 1e12), b"x")], Ticket("q", number))
    await store.drop_orphans()
    assert [await store.dict_len(f"di-{n}") for n in (1, 2, 3)] == [0, 1, 0]
    assert [len(await store.queue_items(f"qu-{n}")) for n in (3, 4, 5)] == [0, 1, 0]
    assert await store.volume_entry("vo-1", "a") is not None


async def test_items_are_put_and_taken_once(store: Store) -> None:
    items = [(Item(n, "p", 1, 50.0), b"%d" % n) for n in (7, 8, 9)]
    await store.queue_put("qu-1", items, Ticket("c", 1))
    await store.queue_put("qu-1", [(Item(7, "p", 1, 50.0), b"again")], Ticket("c", 1))
    assert await store.queue_items("qu-1") == [item for item, _ in items]
    assert await store.queue_payloads("qu-1", [7, 9, 10]) == {7: b"7", 9: b"9"}
    assert await store.queue_payloads("qu-2", [7]) == {}
    taken = Kept({"taken": [7, 8]}, b"78")
    assert await store.queue_take("qu-1", [8, 7], taken, Ticket("c", 2)) == taken
    assert await store.queue_take("qu-1", [9], Kept({"taken": [9]}), Ticket("c", 2)) == taken
    assert await store.kept_answer(Ticket("c", 2)) == taken
    assert [x.number for x in await store.queue_items("qu-1")] == [9] and await store.last_item() == 9
    await store.queue_drop("qu-1", [9])
    assert await store.queue_items("qu-1") == [] and await store.last_item() == 0


async def test_what_is_in_an_object_goes_with_it(store: Store) -> None:
    for record in (RECORD, replace(RECORD, object_id="qu-1", kind="queue", environment="dev")):
        await store.add_object(record)
    await store.dict_put("di-1", [Entry(b"a", b"1")], 1e9, 0.0, Ticket("c", 1))
    await store.queue_put("qu-1", [(Item(1, "", 1, 1e9), b"1")], Ticket("c", 2))
    await store.remove_object("di-1")
    await store.remove_object("di-1")
    await store.remove_environment("dev")
    assert await store.dict_len("di-1") == 0 and await store.queue_items("qu-1") == []
    assert await store.objects() == [] and await store.objects(ephemeral=True) == []


async def test_environments_are_what_was_created_and_what_is_used(store: Store) -> None:
    assert await store.add_environment(EnvironmentRecord("empty", 1.0, "e"))
    assert not await store.add_environment(EnvironmentRecord("empty", 1.0, "f"))
    await store.add_object(replace(RECORD, environment="used"))
    await store.add_token(TokenRecord("ak-1", "", ("used", "more")))
    expected = [EnvironmentRecord("empty", 1.0, "f"), EnvironmentRecord("used", 5.0)]
    assert await store.environments() == expected
    await store.rename_environment("used", "renamed")
    assert [x.name for x in await store.environments()] == ["empty", "renamed"]
    assert (await store.tokens())[0].environments == ("renamed", "more")
    assert await store.object_named("dict", "d", "renamed") is not None


async def test_keys_of_any_length_are_found_again(store: Store) -> None:
    keys = [b"", bytes(range(256)) * 1024, b"\xff" * (256 << 10)]
    for number, key in enumerate(keys):
        await store.dict_put("di-1", [Entry(key, b"%d" % number)], 10.0, 0.0, Ticket("c", number))
        await store.dict_put(
            "di-1", [Entry(key, b"again")], 10.0, 0.0, Ticket("d", number), only_missing=True
        )
    assert [e.payload for e in await store.dict_entries("di-1", 0, 10, 0.0)] == [b"0", b"1", b"2"]
    found = await store.dict_get("di-1", keys[1], 0.0)
    assert found is not None and found.key == keys[1]
    assert (await store.dict_pop("di-1", keys[2], 0.0, Ticket("c", 9))).payload == b"2"
    assert await store.dict_get("di-1", keys[2], 0.0) is None


async def test_schedules_are_followed_until_they_are_removed(store: Store) -> None:
    first = ScheduleRecord("fu-1", ScheduleSpec(cron="0 * * * *", timezone="UTC"), 1.0, 2.5)
    await store.put_schedule(first)
    await store.put_schedule(replace(first, function_id="fu-2"))
    await store.put_schedule(replace(first, next_at=3.5, last_call="fc-1"))
    await store.remove_schedule("fu-2")
    await store.remove_schedule("fu-none")
    assert await store.schedules() == [replace(first, next_at=3.5, last_call="fc-1")]


async def test_leases_are_kept_until_they_are_revoked(store: Store) -> None:
    first = LeaseRecord("a/creds/b/1", "ta-1", "a/creds/b")
    for record in (first, replace(first, lease_id="a/creds/b/2"), first):
        await store.put_lease(record)
    await store.remove_leases(["a/creds/b/2", "none"])
    assert await store.leases() == [first]


async def test_answers_that_arrived_are_not_kept_because_an_earlier_request_waits(store: Store) -> None:
    async def put(number: int, *confirmed: int) -> Kept:
        item = Item(number, "", 1, 1e9)
        return await store.queue_put("qu-1", [(item, b"x")], Ticket("c", number, 1, confirmed))

    async def kept() -> list[int]:
        return [x for x in range(1, 9) if await store.kept_answer(Ticket("c", x)) is not None]

    await put(2)
    await put(3)
    await put(4, 2, 3)
    assert await kept() == [4]
    await store.dict_put("di-1", [Entry(b"a", b"1")], 1e9, 0.0, Ticket("c", 5, 1, (4,)))
    assert await kept() == [5]
    await store.dict_clear("di-1", Ticket("d", 5))
    await store.forget_answers("c")
    assert await kept() == [] and await store.kept_answer(Ticket("d", 5)) == Kept({})


async def test_items_of_many_clients_are_put_and_taken_at_once(store: Store) -> None:
    async def put(client: int) -> Kept:
        item = (Item(client + 1, "p", 1, 50.0), b"%d" % client)
        return await store.queue_put(f"qu-{client % 3}", [item], Ticket(f"c{client}", 1))

    async def take(client: int) -> Kept:
        said = Kept({"taken": [client + 1]}, b"%d" % client)
        return await store.queue_take(f"qu-{client % 3}", [client + 1], said, Ticket(f"c{client}", 2, 2))

    assert await asyncio.gather(*map(put, range(60))) == [Kept({"accepted": True})] * 60
    mixed = await asyncio.gather(*map(take, range(30)), *map(put, range(30, 60)), *map(put, range(60, 90)))
    assert mixed[:30] == [Kept({"taken": [n + 1]}, b"%d" % n) for n in range(30)]
    assert mixed[30:] == [Kept({"accepted": True})] * 60
    assert await take(0) == Kept({"taken": [1]}, b"0")
    # The answer to its first request is needed no more, and that to its second is.
    assert await store.kept_answer(Ticket("c0", 1)) is None
    assert await store.kept_answer(Ticket("c0", 2)) == Kept({"taken": [1]}, b"0")
    left = [x.number for n in range(3) for x in await store.queue_items(f"qu-{n}")]
    assert sorted(left) == list(range(31, 91))
    # One that cannot be carried out, for its number is taken, costs the others nothing.
    clash = store.queue_put("qu-0", [(Item(40, "p", 1, 50.0), b"")], Ticket("d", 1))
    results = await asyncio.gather(put(90), clash, put(91), return_exceptions=True)
    assert [isinstance(x, StoreError) for x in results] == [False, True, False]
