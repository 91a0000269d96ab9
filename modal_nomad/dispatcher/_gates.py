"""Many at once may use a thing, or one alone that changes it in several steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class _Place:
    def __init__(self) -> None:
        self.changed = asyncio.Condition()
        self.users = 0
        self.alone = False
        self.interested = 0


class Gates:
    """A gate for each key that anybody asks for."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    @asynccontextmanager
    async def shared(self, key: str) -> AsyncIterator[None]:
        """Be one of many; waits for who is alone, or waits to be."""
        async with self._place(key) as place:
            async with place.changed:
                await place.changed.wait_for(lambda: not place.alone)
                place.users += 1
            try:
                yield
            finally:
                place.users -= 1
                await self._tell(place)

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """Be the only one; whoever comes from now on waits."""
        async with self._place(key) as place:
            async with place.changed:
                await place.changed.wait_for(lambda: not place.alone)
                place.alone = True
            try:
                async with place.changed:
                    await place.changed.wait_for(lambda: not place.users)
                yield
            finally:
                place.alone = False
                await self._tell(place)

    @asynccontextmanager
    async def _place(self, key: str) -> AsyncIterator[_Place]:
        place = self._places.setdefault(key, _Place())
        place.interested += 1
        try:
            yield place
        finally:
            place.interested -= 1
            if not place.interested:
                del self._places[key]

    async def _tell(self, place: _Place) -> None:
        async with place.changed:
            place.changed.notify_all()
