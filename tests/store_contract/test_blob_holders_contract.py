"""Holders of blobs in the store."""

from __future__ import annotations

from .conftest import Stores


async def test_holders_are_kept_renewed_and_forgotten(stores: Stores) -> None:
    now = [100.0]
    store = await stores.open(clock=lambda: now[0])
    names = [f"{number:064x}" for number in range(600)]
    assert not await store.has_blob_holders("dev")
    assert await store.blob_holders(names) == {} == await store.blob_holders([])
    await store.put_blob_holder("dev", names[:400])
    assert not await store.has_blob_holders("dev")
    await store.put_blob_holder("dev,prod", names[399:])
    assert await store.has_blob_holders("dev") and await store.has_blob_holders("prod")
    found = await store.blob_holders(names)
    assert list(map(len, found.values())).count(1) == 599
    assert sorted(found[names[399]]) == ["dev", "dev,prod"]
    assert await store.blob_holders(names[:1]) == {names[0]: ["dev"]}

    now[0] = 200.0
    await store.put_blob_holder("dev", names[:1])
    await store.remove_blob_holders(names[:2], 150.0)
    assert await store.blob_holders(names[:3]) == {names[0]: ["dev"], names[2]: ["dev"]}
