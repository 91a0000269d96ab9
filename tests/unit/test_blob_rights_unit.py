"""Rights to blobs, without a dispatcher: what is looked up and written, and what is not."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from modal_nomad.dispatcher.blob_rights import BlobRights
from modal_nomad.dispatcher.blobs import DirectoryBlobs
from modal_nomad.dispatcher.store import SqliteStore


def unexpected(coroutine: Coroutine[Any, Any, Any]) -> None:
    coroutine.close()
    raise AssertionError("nothing is to be written")


async def test_without_scoped_tokens_nothing_is_asked_or_kept_but_bundles(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    try:
        blobs = DirectoryBlobs(tmp_path / "blobs")
        sha = await blobs.put(b"content")
        rights = BlobRights(store, blobs, unexpected)
        await rights.open()
        assert rights.knows((), [sha]) and await rights.lacking((), [sha]) == []
        rights.show_soon((), [sha])
        await rights.show((), [sha])
        await rights.grant((), [sha])
        await rights.check_values((), {"function_blob": sha})
        assert await store.blob_holders([sha]) == {}
        # A container that is not known by now may be of no token that has a scope.
        await rights.add_artifacts([sha])
        assert await rights.is_artifact(sha) and not rights.used
        again = BlobRights(store, blobs, unexpected)
        await again.open()
        assert await again.is_artifact(sha) and not again.used
        await again.grant(("dev",), [sha])
        assert again.used
        await rights.open()
        assert rights.used
        await again.forget([sha], -10.0)
        assert await store.blob_holders([sha]) == {}
    finally:
        await store.close()


async def test_a_job_s_image_is_read_as_what_it_is(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "blobs")
    inner = "a" * 64
    manifest = await blobs.put(f'[["/x", "{inner}", 420]]'.encode())
    rights = BlobRights(SqliteStore(tmp_path / "store.db"), blobs, unexpected)
    escaped = '{"layers": [{"options": {"\\u006danifest": "MANIFEST"}}]}'.replace("MANIFEST", manifest)
    found = await rights._names(({"Meta": {"modal_image": escaped}}, f"python@sha256:{'b' * 64}"))
    assert sorted(found) == sorted([manifest, inner])
