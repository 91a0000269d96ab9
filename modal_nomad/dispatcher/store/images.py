"""The contract of a store for images: what was built under which content key, and what has a name."""

from __future__ import annotations

import abc


class ImageStore(abc.ABC):
    """What was built, and what has a name. All methods raise StoreError when the medium fails them."""

    @abc.abstractmethod
    async def built_image(self, key: str) -> str | None:
        """Return the reference of what was built under a key, or None."""

    @abc.abstractmethod
    async def put_built_image(self, key: str, reference: str) -> None:
        """Keep what was built under a key, in place of what was before."""

    @abc.abstractmethod
    async def named_image(self, environment: str, name: str, tag: str) -> str | None:
        """Return the specification that has a name, as JSON, or None."""

    @abc.abstractmethod
    async def put_image_name(self, environment: str, name: str, tag: str, spec: str) -> None:
        """Give a specification, as JSON, a name, in place of what had it before; its blobs are kept."""
