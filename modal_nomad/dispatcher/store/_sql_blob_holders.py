"""Holders of blobs, in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modal_nomad.dispatcher.store._sql import Connection, SqlPart, upsert

_AT_ONCE = 250
_ASKED = f"SELECT sha, holder FROM blob_holders WHERE sha IN ({', '.join('?' * _AT_ONCE)})"
_ASKED_ONE = "SELECT sha, holder FROM blob_holders WHERE sha = ?"


class SqlBlobHolders(SqlPart):
    """The part of a store that holds who may read which blobs."""

    async def blob_holders(self, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
        def look(db: Connection) -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            for start in range(0, len(names), _AT_ONCE):
                part = list(names[start : start + _AT_ONCE])
                if len(part) > 1:
                    # Of one length, so that the statement is prepared once.
                    part += part[-1:] * (_AT_ONCE - len(part))
                for sha, holder in db.execute(_ASKED if len(part) > 1 else _ASKED_ONE, part):
                    found.setdefault(sha, []).append(holder)
            return found

        return await self._look(look)

    async def has_blob_holders(self, besides: str) -> bool:
        return bool(await self._rows("SELECT 1 FROM blob_holders WHERE holder != ? LIMIT 1", (besides,)))

    async def put_blob_holder(self, holder: str, names: Sequence[str]) -> None:
        rows = [(sha, holder, self._clock()) for sha in names]

        def write(db: Connection) -> None:
            db.executemany(upsert("blob_holders", "sha, holder, at", 2), rows)

        await self._write(write)

    async def remove_blob_holders(self, names: Sequence[str], before: float) -> None:
        def write(db: Connection) -> None:
            db.executemany("DELETE FROM blob_holders WHERE sha = ? AND at < ?", [(x, before) for x in names])

        await self._write(write)
