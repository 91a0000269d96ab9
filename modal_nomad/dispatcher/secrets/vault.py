"""Secrets in Vault's KV version 2: ``<mount>/<prefix>/<environment>/<name>``, as ops keep theirs.

What somebody else wrote there is a Secret like those made here. The dispatcher learns the names of fields
without reading values (``subkeys``), so its policy on a cluster needs no right to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from datetime import datetime
from typing import Any, TypeVar

from modal_nomad.dispatcher.secrets.base import (
    SecretExists,
    SecretInfo,
    SecretKey,
    SecretStore,
    SecretStoreError,
    SecretStoreUnavailable,
)
from modal_nomad.hashicorp.vault import VaultClient, VaultConflict, VaultError, VaultUnavailable
from modal_nomad.wire.secret_values import plain

T = TypeVar("T")
_EPHEMERAL = "ephemeral"
_MAX_WORDS = 128
"""Characters of who created a Secret: Vault keeps at most 512 bytes."""


class VaultSecretStore(SecretStore):
    """Secrets below one folder of a KV engine.

    Args:
        client: the adapter; closed with the store.
        prefix: the folder above the environments' folders; may be empty.
    """

    def __init__(self, client: VaultClient, prefix: str = "modal") -> None:
        self._client = client
        self._prefix = prefix.strip("/")

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        await self._client.close()

    async def put(
        self, key: SecretKey, values: Mapping[str, str], *, replace: bool = False, created_by: str = ""
    ) -> SecretInfo:
        path = self._path(key)
        known = await self.info(key)
        if known is not None and not replace:
            raise SecretExists(f"there is a Secret {key.name!r} in environment {key.environment!r}")
        try:
            await _said(self._client.kv_write(path, values, new=known is None and not replace))
        except SecretExists:
            if await self.info(key) is not None:
                raise
            # Its last version was deleted elsewhere: Vault still counts from there.
            await _said(self._client.kv_write(path, values))
        if known is None and created_by:
            await _said(self._client.kv_describe(path, {"created_by": created_by[:_MAX_WORDS]}))
        info = await self.info(key)
        if info is None:
            raise SecretStoreError(f"{path} was removed from Vault while it was written; try again")
        return info

    async def merge(self, key: SecretKey, values: Mapping[str, str]) -> bool:
        if await self.info(key) is None:
            return False
        return await _said(self._client.kv_patch(self._path(key), values))

    async def info(self, key: SecretKey) -> SecretInfo | None:
        found = await _said(self._client.kv_metadata(self._path(key)))
        return None if found is None else _info(key, found)

    async def fields(self, key: SecretKey) -> set[str] | None:
        return await _said(self._client.kv_fields(self._path(key)))

    async def values(self, key: SecretKey) -> dict[str, str] | None:
        found = await _said(self._client.kv_read(self._path(key)))
        # Other writers may have put numbers or objects there; `merge` makes text of them.
        return None if found is None else dict(plain(found))

    async def named(self, environment: str) -> list[SecretInfo]:
        return await self._infos(environment, ephemeral=False)

    async def ephemerals(self) -> list[SecretInfo]:
        folders = await _said(self._client.kv_list(self._prefix))
        environments = [x.rstrip("/") for x in folders if x.endswith("/")]
        found = await asyncio.gather(*(self._infos(x, ephemeral=True) for x in environments))
        return [info for infos in found for info in infos]

    async def delete(self, key: SecretKey) -> bool:
        known = await self.info(key)
        if known is not None:
            await _said(self._client.kv_delete(self._path(key)))
        return known is not None

    def place(self, key: SecretKey) -> str:
        return self._client.kv_place(self._path(key))

    def _path(self, key: SecretKey) -> str:
        return self._join(key.environment, *([_EPHEMERAL] if key.ephemeral else []), key.name)

    def _join(self, *parts: str) -> str:
        return "/".join([*([self._prefix] if self._prefix else []), *parts])

    async def _infos(self, environment: str, *, ephemeral: bool) -> list[SecretInfo]:
        folder = self._join(environment, *([_EPHEMERAL] if ephemeral else []))
        names = [x for x in await _said(self._client.kv_list(folder)) if not x.endswith("/")]
        keys = [key for x in names if (key := _key(environment, x, ephemeral)) is not None]
        infos = await asyncio.gather(*map(self.info, keys))
        return sorted((x for x in infos if x is not None), key=lambda info: info.key.name)


async def _said(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except VaultConflict as error:
        raise SecretExists(str(error)) from None
    except VaultUnavailable as error:
        raise SecretStoreUnavailable(str(error)) from None
    except VaultError as error:
        raise SecretStoreError(str(error)) from None


def _key(environment: str, name: str, ephemeral: bool) -> SecretKey | None:
    from modal_nomad.exception import InvalidError

    try:
        return SecretKey(environment, name, ephemeral)
    except InvalidError:
        # Vault takes names that Secrets here cannot have.
        return None


def _info(key: SecretKey, found: Mapping[str, Any]) -> SecretInfo:
    stamp = str(found.get("created_time") or "1970-01-01T00:00:00Z")
    # Nanoseconds are more than Python 3.10 reads.
    whole, _, rest = stamp.rstrip("Z").partition(".")
    created = datetime.fromisoformat(f"{whole}.{(rest + '000000')[:6]}+00:00").timestamp()
    return SecretInfo(key, created, str((found.get("custom_metadata") or {}).get("created_by") or ""))
