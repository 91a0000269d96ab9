"""Secrets of a machine without Vault: one encrypted file, 0600, and its key beside it.

Who can read both files reads the Secrets, as can whoever may read this process. The encryption keeps them
out of what copies one file and not the other, and out of every search for readable text.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from modal_nomad.dispatcher.secrets.base import (
    SecretExists,
    SecretInfo,
    SecretKey,
    SecretStore,
    SecretStoreError,
)
from modal_nomad.dispatcher.secrets.key import derive, load_key

T = TypeVar("T")
FILE = "secrets.enc"
_MAGIC = b"modal-nomad secrets 1\n"
_NONCE = 12
_Entries = dict[SecretKey, dict[str, Any]]


class FileSecretStore(SecretStore):
    """Secrets in one file of a private directory.

    Args:
        home: the directory.
        clock: the time in seconds.
    """

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._path = home / FILE
        self._clock = clock
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        await self._run(self._read)

    async def close(self) -> None:
        pass

    async def put(
        self, key: SecretKey, values: Mapping[str, str], *, replace: bool = False, created_by: str = ""
    ) -> SecretInfo:
        def change(entries: _Entries) -> SecretInfo:
            old = entries.get(key)
            if old is not None and not replace:
                raise SecretExists(f"there is a Secret {key.name!r} in environment {key.environment!r}")
            entry = old or {"created_at": self._clock(), "created_by": created_by}
            entries[key] = {**entry, "values": dict(values)}
            return _info(key, entries[key])

        return await self._change(change)

    async def merge(self, key: SecretKey, values: Mapping[str, str]) -> bool:
        def change(entries: _Entries) -> bool:
            if key in entries:
                entries[key]["values"].update(values)
            return key in entries

        return await self._change(change)

    async def info(self, key: SecretKey) -> SecretInfo | None:
        entry = (await self._run(self._read)).get(key)
        return None if entry is None else _info(key, entry)

    async def fields(self, key: SecretKey) -> set[str] | None:
        values = await self.values(key)
        return None if values is None else set(values)

    async def values(self, key: SecretKey) -> dict[str, str] | None:
        entry = (await self._run(self._read)).get(key)
        return None if entry is None else dict(entry["values"])

    async def named(self, environment: str) -> list[SecretInfo]:
        found = (await self._run(self._read)).items()
        named = [_info(k, e) for k, e in found if k.environment == environment and not k.ephemeral]
        return sorted(named, key=lambda info: info.key.name)

    async def ephemerals(self) -> list[SecretInfo]:
        return [_info(k, e) for k, e in (await self._run(self._read)).items() if k.ephemeral]

    async def delete(self, key: SecretKey) -> bool:
        return await self._change(lambda entries: entries.pop(key, None) is not None)

    # --- below: on a thread, one at a time --------------------------------------------------------

    async def _run(self, work: Callable[[], T]) -> T:
        async with self._lock:
            try:
                return await asyncio.to_thread(work)
            except OSError as error:
                raise SecretStoreError(
                    f"{self._path} cannot be used: {error.strerror or error}; see that its folder is there,"
                    " writable and not full"
                ) from None

    async def _change(self, change: Callable[[_Entries], T]) -> T:
        def work() -> T:
            entries = self._read()
            result = change(entries)
            self._write(entries)
            return result

        return await self._run(work)

    def _cipher(self) -> Any:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(derive(load_key(self._home), "file"))

    def _read(self) -> _Entries:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        from cryptography.exceptions import InvalidTag

        nonce, sealed = data[len(_MAGIC) :][:_NONCE], data[len(_MAGIC) + _NONCE :]
        try:
            if not data.startswith(_MAGIC):
                raise ValueError
            rows = json.loads(self._cipher().decrypt(nonce, sealed, _MAGIC))
            return {
                SecretKey(row["environment"], row["name"], row["ephemeral"]): row["entry"] for row in rows
            }
        except (InvalidTag, ValueError, KeyError, TypeError):
            raise SecretStoreError(
                f"{self._path} cannot be decrypted: put back the secrets.key that it was written with, or"
                " remove the file and create its Secrets anew"
            ) from None

    def _write(self, entries: _Entries) -> None:
        rows = [
            {"environment": k.environment, "name": k.name, "ephemeral": k.ephemeral, "entry": entry}
            for k, entry in entries.items()
        ]
        nonce = secrets.token_bytes(_NONCE)
        sealed = self._cipher().encrypt(nonce, json.dumps(rows).encode(), _MAGIC)
        temporary = self._path.with_name(f"{FILE}.{secrets.token_hex(4)}")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(_MAGIC + nonce + sealed)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(self._home, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _info(key: SecretKey, entry: Mapping[str, Any]) -> SecretInfo:
    return SecretInfo(key, entry["created_at"], entry["created_by"])
