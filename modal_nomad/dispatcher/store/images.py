"""The contract of a store for built images: what was built under which content key."""

from __future__ import annotations

import abc


class ImageStore(abc.ABC):
    """What was built. All methods raise StoreError when the medium fails them."""

    @abc.abstractmethod
    async def built_image(self, key: str) -> str | None:
        """Return the reference of what was built under a key, or None."""

    @abc.abstractmethod
    async def put_built_image(self, key: str, reference: str) -> None:
        """Keep what was built under a key, in place of what was before."""
