"""The contract of a store for blobs' holders: whose tokens may read a blob that they know the hash of."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence


class BlobHolderStore(abc.ABC):
    """Holders of blobs, by the blobs' names. All methods raise StoreError when the medium fails them."""

    @abc.abstractmethod
    async def blob_holders(self, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return who holds each of some blobs; those that nobody holds are left out."""

    @abc.abstractmethod
    async def has_blob_holders(self, besides: str) -> bool:
        """Tell whether anybody but one holds any."""

    @abc.abstractmethod
    async def put_blob_holder(self, holder: str, names: Sequence[str]) -> None:
        """Make someone a holder of blobs; the time of one that holds it already starts anew."""

    @abc.abstractmethod
    async def remove_blob_holders(self, names: Sequence[str], before: float) -> None:
        """Forget who became holders of blobs before a time, in seconds since 1970."""
