"""The contract of a store for named objects: the registry, Dict entries, Queue items, environments.

A write that a client may send again carries a Ticket: its answer is kept in the same commit, and the same
ticket is answered from there, changing nothing.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class ObjectRecord:
    """A named or ephemeral object.

    Attributes:
        object_id: ``di-…``, ``qu-…``, ``st-…``, ``vo-…`` or ``sv-…``.
        kind: ``dict``, ``queue``, ``secret``, ``volume`` or ``nfs``.
        name: None for an ephemeral one.
        environment: where the name counts.
        created_at: seconds since 1970.
        created_by: who made it, for listings.
        owner: the client that an ephemeral one lives with; empty for a named one.
        detail: what else its kind keeps with it; JSON.
    """

    object_id: str
    kind: str
    name: str | None
    environment: str
    created_at: float
    created_by: str = ""
    owner: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EnvironmentRecord:
    """An environment that was created; others come to be when something is put into them."""

    name: str
    created_at: float
    web_suffix: str = ""


class Ticket(NamedTuple):
    """A client's request, by which the store knows it again.

    Attributes:
        client: whose.
        number: which.
        answered: answers to that client's requests below this number are needed no more.
        confirmed: nor are those to these.
    """

    client: str
    number: int
    answered: int = 0
    confirmed: tuple[int, ...] = ()


class Kept(NamedTuple):
    """An answer as it is kept: a JSON value and at most one payload."""

    value: Any
    payload: bytes | None = None
    flags: int = 0


class Entry(NamedTuple):
    """A Dict's entry; ``position`` is its place in a walk over the Dict."""

    key: bytes
    payload: bytes
    flags: int = 0
    position: int = 0


class Item(NamedTuple):
    """A Queue's item; later ones have higher numbers. ``expires_at`` is the last put's word for them all."""

    number: int
    partition: str
    size: int
    expires_at: float


class ObjectStore(abc.ABC):
    """Durable state of named objects. All methods raise StoreError when the medium fails them."""

    # The registry

    @abc.abstractmethod
    async def add_object(self, record: ObjectRecord) -> ObjectRecord:
        """Keep an object, unless its name is taken in its environment: then return the one that has it."""

    @abc.abstractmethod
    async def object(self, object_id: str) -> ObjectRecord | None:
        """Return an object by id."""

    @abc.abstractmethod
    async def object_named(self, kind: str, name: str, environment: str) -> ObjectRecord | None:
        """Return an object by name."""

    @abc.abstractmethod
    async def objects(
        self,
        kind: str | None = None,
        environment: str | None = None,
        *,
        limit: int | None = None,
        created_before: float | None = None,
        ephemeral: bool = False,
    ) -> list[ObjectRecord]:
        """Return the named objects (or the ephemeral ones) of a kind and an environment, newest first."""

    @abc.abstractmethod
    async def set_object_name(self, object_id: str, name: str) -> bool:
        """Rename an object; False, and nothing changed, where the name is taken."""

    @abc.abstractmethod
    async def set_object_detail(self, object_id: str, detail: Mapping[str, Any]) -> None:
        """Replace what an object's kind keeps with it."""

    @abc.abstractmethod
    async def remove_object(self, object_id: str) -> None:
        """Forget an object and its contents; an unknown one is no error."""

    @abc.abstractmethod
    async def kept_answer(self, ticket: Ticket) -> Kept | None:
        """Return the answer that a request got, if it has been carried out."""

    @abc.abstractmethod
    async def forget_answers(self, client: str) -> None:
        """Remove the answers that are kept for a client: it asks no more."""

    @abc.abstractmethod
    async def drop_orphans(self) -> None:
        """Remove what was written to objects by requests that found them just before they were removed."""

    @abc.abstractmethod
    async def expire_objects(self, now: float, answers_before: float) -> None:
        """Remove expired Dict entries, and answers from before a time that nobody came back for."""

    # Environments

    @abc.abstractmethod
    async def environments(self) -> list[EnvironmentRecord]:
        """Return the environments that were created or that anything is in, by name."""

    @abc.abstractmethod
    async def add_environment(self, record: EnvironmentRecord) -> bool:
        """Keep an environment, replacing what is known of it; False where it was there."""

    @abc.abstractmethod
    async def rename_environment(self, old: str, new: str) -> None:
        """Give an environment, its objects, its Apps and the tokens scoped to it another name."""

    @abc.abstractmethod
    async def remove_environment(self, name: str) -> None:
        """Forget an environment and the objects in it."""

    # Dicts

    @abc.abstractmethod
    async def dict_put(
        self,
        object_id: str,
        entries: Sequence[Entry],
        expires_at: float,
        now: float,
        ticket: Ticket,
        *,
        only_missing: bool = False,
    ) -> Kept:
        """Put entries at once. The answer counts those written; with ``only_missing`` present keys stay."""

    @abc.abstractmethod
    async def dict_get(self, object_id: str, key: bytes, now: float) -> Entry | None:
        """Return an entry that has not expired."""

    @abc.abstractmethod
    async def dict_pop(self, object_id: str, key: bytes, now: float, ticket: Ticket) -> Kept:
        """Remove an entry; the answer says whether it was there, and holds its value."""

    @abc.abstractmethod
    async def dict_len(self, object_id: str) -> int:
        """Count entries, expired ones that are not yet removed included."""

    @abc.abstractmethod
    async def dict_entries(self, object_id: str, after: int, limit: int, now: float) -> list[Entry]:
        """Return entries that have not expired from a position on, in an order that writes do not upset."""

    @abc.abstractmethod
    async def dict_clear(self, object_id: str, ticket: Ticket) -> Kept:
        """Remove every entry."""

    # Queues

    @abc.abstractmethod
    async def queue_items(self, object_id: str) -> list[Item]:
        """Return what is in a Queue, without payloads, by number."""

    @abc.abstractmethod
    async def queue_payloads(self, object_id: str, numbers: Iterable[int]) -> dict[int, bytes]:
        """Return payloads of items, by number."""

    @abc.abstractmethod
    async def queue_put(self, object_id: str, items: Sequence[tuple[Item, bytes]], ticket: Ticket) -> Kept:
        """Add items."""

    @abc.abstractmethod
    async def queue_take(
        self, object_id: str, numbers: Collection[int], answer: Kept, ticket: Ticket
    ) -> Kept:
        """Remove items for good; ``answer`` is what their client is told."""

    @abc.abstractmethod
    async def queue_drop(self, object_id: str, numbers: Collection[int]) -> None:
        """Remove items that were cleared or have expired."""

    @abc.abstractmethod
    async def last_item(self) -> int:
        """Return the highest number that any item has."""
