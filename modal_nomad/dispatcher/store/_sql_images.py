"""Built images, in SQL."""

from __future__ import annotations

from modal_nomad.dispatcher.store._sql import SqlPart, upsert


class SqlImages(SqlPart):
    """The part of a store that holds what was built."""

    async def built_image(self, key: str) -> str | None:
        rows = await self._rows("SELECT reference FROM images WHERE key_of_image = ?", (key,))
        return str(rows[0][0]) if rows else None

    async def put_built_image(self, key: str, reference: str) -> None:
        row = (key, reference, self._clock())
        await self._execute(upsert("images", "key_of_image, reference, built_at", 1), row)
