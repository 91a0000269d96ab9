"""The contract of a store for leases: what Vault gave to which container, so that it can be taken back."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LeaseRecord:
    """A lease that somebody has to revoke. Its id gives no access to what was leased.

    Attributes:
        lease_id: Vault's name of it.
        container_id: the container that it ends with.
        path: what was read.
    """

    lease_id: str
    container_id: str
    path: str


class LeaseStore(abc.ABC):
    """Leases that were not revoked yet. All methods raise StoreError when the medium fails them."""

    @abc.abstractmethod
    async def leases(self) -> list[LeaseRecord]:
        """Return every lease that is kept."""

    @abc.abstractmethod
    async def put_lease(self, record: LeaseRecord) -> None:
        """Keep a lease; one that is kept already is no error."""

    @abc.abstractmethod
    async def remove_leases(self, lease_ids: Sequence[str]) -> None:
        """Forget leases; unknown ones are no error."""
