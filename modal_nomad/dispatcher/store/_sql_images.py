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

    async def named_image(self, environment: str, name: str, tag: str) -> str | None:
        asked = "SELECT spec FROM image_names WHERE environment = ? AND name = ? AND tag = ?"
        rows = await self._rows(asked, (environment, name, tag))
        return str(rows[0][0]) if rows else None

    async def put_image_name(self, environment: str, name: str, tag: str, spec: str) -> None:
        row = (environment, name, tag, spec, self._clock())
        await self._execute(upsert("image_names", "environment, name, tag, spec, published_at", 3), row)
