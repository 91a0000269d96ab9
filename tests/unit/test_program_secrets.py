"""How long values that a program brought are kept before its App is published."""

from __future__ import annotations

from pathlib import Path

from modal_nomad.dispatcher.secrets import PENDING_SECONDS, FileSecretStore, SecretKey, Secrets
from modal_nomad.wire.mounts import SecretRef
from modal_nomad.wire.spec import FunctionSpec


async def test_values_wait_for_a_publication_as_long_as_their_client_is_here(tmp_path: Path) -> None:
    now, here = [0.0], {"cl-1", "cl-2"}
    store = FileSecretStore(tmp_path)
    secrets = Secrets(store, tmp_path, clock=lambda: now[0])
    secrets.connected = here.__contains__
    [slow] = await secrets.keep("main", "one", [{"A": "1"}], owner="cl-1")
    [gone] = await secrets.keep("main", "two", [{"A": "2"}], owner="cl-2")
    here.remove("cl-2")
    assert await secrets.collect([]) == 0
    now[0] = PENDING_SECONDS + 1
    # The first one's image is still being built.
    assert await secrets.collect([]) == 1
    assert await store.info(SecretKey("main", gone, ephemeral=True)) is None
    assert await store.values(SecretKey("main", slow, ephemeral=True)) == {"A": "1"}
    spec = FunctionSpec("one", "f", secrets=(SecretRef(slow, ephemeral=True),))
    assert await secrets.collect([(spec, "main")]) == 0
    here.clear()
    assert await secrets.collect([(spec, "main")]) == 0
    # It lives with its App.
    assert await secrets.collect([]) == 1
