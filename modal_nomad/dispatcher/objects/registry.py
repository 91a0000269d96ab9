"""The registry of named objects: kind, name and environment to id.

It knows what all kinds share. What a kind has besides is its own room's; it may ask to be told of
deletions with ``on_delete``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from modal_nomad.dispatcher._graces import Graces
from modal_nomad.dispatcher.store.base import Store, StoreError
from modal_nomad.dispatcher.store.objects import ObjectRecord
from modal_nomad.exception import AlreadyExistsError, InvalidError, NotFoundError
from modal_nomad.wire.ids import new_id

logger = logging.getLogger("modal_nomad.dispatcher")

DEFAULT_ENVIRONMENT = "main"
_RECONNECT_SECONDS = 3.0
"""After a restart clients have this long more to come back: they wait up to 2 s between attempts."""
_EXPIRY_SECONDS = 3600.0
_ANSWER_SECONDS = 86400.0
"""Answers are kept for clients that do not say that they have them, and may be away."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_APP_ID = re.compile(r"ap-[0-9A-Za-z]{22}")


@dataclass(frozen=True)
class Kind:
    """A kind of named object: the prefix of its ids and its name in messages."""

    prefix: str
    label: str


KINDS: Mapping[str, Kind] = {
    "dict": Kind("di", "Dict"),
    "queue": Kind("qu", "Queue"),
    "secret": Kind("st", "Secret"),
    "volume": Kind("vo", "Volume"),
    "nfs": Kind("sv", "NetworkFileSystem"),
}


def kind_of(kind: Any) -> Kind:
    """Return a kind by its word. Raises InvalidError."""
    found = KINDS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise InvalidError(f"there is no kind of object {kind!r}: it is one of {', '.join(KINDS)}")
    return found


class ObjectRegistry:
    """Named objects over a store.

    Args:
        store: an open store.
        client_grace: seconds that an ephemeral object outlives its lost client.
        background: runs a coroutine that nobody waits for.
        clock: the time in seconds.
    """

    def __init__(
        self,
        store: Store,
        client_grace: float,
        background: Callable[[Coroutine[Any, Any, Any]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._client_grace = client_grace
        self._background = background
        self._clock = clock
        self._known: dict[str, ObjectRecord] = {}
        # How often something changed: what was read before is not to be known after.
        self._changes = 0
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._graces = Graces()
        self._on_create: dict[str, list[Callable[[ObjectRecord], Awaitable[None]]]] = {}
        self._on_delete: dict[str, list[Callable[[ObjectRecord], Awaitable[None]]]] = {}

    def on_create(self, kind: str, action: Callable[[ObjectRecord], Awaitable[None]]) -> None:
        """Have an action run for each new object of a kind; where it fails there is no such object."""
        self._on_create.setdefault(kind, []).append(action)

    def on_delete(self, kind: str, action: Callable[[ObjectRecord], Awaitable[None]]) -> None:
        """Have an action run before each object of a kind is forgotten, with all its rows."""
        self._on_delete.setdefault(kind, []).append(action)

    async def resume(self) -> None:
        """Give the clients of ephemeral objects their time to come back."""
        for owner in {x.owner for x in await self._store.objects(ephemeral=True)}:
            seconds = self._client_grace + _RECONNECT_SECONDS
            self._graces.begin(owner, seconds, self.owner_gone, owner)

    def close(self) -> None:
        """Let nobody's time run out any more."""
        self._graces.close()

    def owner_came(self, owner: str) -> None:
        """Note that a client is here: its ephemeral objects stay."""
        self._graces.end(owner)

    def owner_gone(self, owner: str) -> None:
        """Delete the ephemeral objects of a client that does not come back."""
        self._background(self._forget_owner(owner))

    async def expire(self) -> None:
        """Remove what has expired and what nothing refers to, now and again, for ever."""
        while True:
            now = self._clock()
            try:
                await self._store.expire_objects(now, now - _ANSWER_SECONDS)
                await self._store.drop_orphans()
            except StoreError as error:
                logger.warning("expired entries cannot be removed: %s", error)
            await asyncio.sleep(_EXPIRY_SECONDS)

    async def _forget_owner(self, owner: str) -> None:
        for record in await self._store.objects(ephemeral=True):
            if record.owner == owner:
                await self._remove(record)

    # --- by name ----------------------------------------------------------------------------------

    async def create(
        self,
        kind: str,
        name: str,
        environment: str | None,
        *,
        allow_existing: bool = False,
        created_by: str = "",
        detail: Mapping[str, Any] | None = None,
        object_id: str = "",
    ) -> tuple[ObjectRecord, bool]:
        """Create an object; gives it, and whether it was not there.

        Args:
            kind: its kind.
            name: its name.
            environment: the environment; None is the default one.
            allow_existing: whether one of that name will do as well.
            created_by: for listings.
            detail: what the kind keeps with it; one that exists keeps its own.
            object_id: its id, where it has to be known beforehand.

        Raises:
            AlreadyExistsError: there is one of that name.
            InvalidError: for a bad name.
        """
        label = kind_of(kind).label
        check_name(label, name)
        place = check_environment(environment)
        made = ObjectRecord(
            object_id or new_id(kind_of(kind).prefix),
            kind,
            name,
            place,
            self._clock(),
            created_by,
            "",
            detail or {},
        )
        await self._check_clash(kind, name, place)
        seen = self._changes
        record = await self._store.add_object(made)
        created = record.object_id == made.object_id
        if not created and not allow_existing:
            raise AlreadyExistsError(
                f"{label} {name!r} exists in environment {place!r} already:"
                " choose another name, or delete that one first"
            )
        if created:
            await self._begin(record)
        self._know(record, seen)
        return record, created

    async def named(self, kind: str, name: str, environment: str | None) -> ObjectRecord:
        """Return an object by name. Raises NotFoundError."""
        label = kind_of(kind).label
        check_name(label, name)
        place = check_environment(environment)
        seen = self._changes
        record = await self._store.object_named(kind, name, place)
        if record is None:
            await self._check_clash(kind, name, place)
            raise NotFoundError(
                f"{label} {name!r} not found in environment {place!r}: create it with"
                f" `modal-nomad {kind} create {name}`, or look into another environment"
            )
        self._know(record, seen)
        return record

    async def ephemeral(
        self, kind: str, environment: str | None, owner: str, created_by: str = ""
    ) -> ObjectRecord:
        """Create an object without a name, which lives as long as its client."""
        place = check_environment(environment)
        record = await self._store.add_object(
            ObjectRecord(new_id(kind_of(kind).prefix), kind, None, place, self._clock(), created_by, owner)
        )
        await self._begin(record)
        self._known[record.object_id] = record
        return record

    async def find(self, object_id: str, kind: str | None = None) -> ObjectRecord:
        """Return an object by id. Raises NotFoundError."""
        record = self._known.get(object_id)
        while record is None and object_id not in self._leaving:
            seen = self._changes
            record = await self._store.object(object_id)
            if record is None or self._know(record, seen):
                break
            record = None
        if record is None or (kind is not None and record.kind != kind):
            label = KINDS[kind].label if kind is not None else "object"
            raise NotFoundError(f"{label} {object_id} is not here: it was deleted, or its program ended")
        return record

    async def list(
        self,
        kind: str,
        environment: str | None,
        *,
        limit: int | None = None,
        created_before: float | None = None,
    ) -> list[ObjectRecord]:
        """Return the named objects of a kind in an environment, newest first."""
        kind_of(kind)
        place = check_environment(environment)
        return await self._store.objects(kind, place, limit=limit, created_before=created_before)

    async def rename(self, object_id: str, name: str) -> ObjectRecord:
        """Give an object another name. Raises AlreadyExistsError, NotFoundError, InvalidError."""
        record = await self.find(object_id)
        label = kind_of(record.kind).label
        check_name(label, name)
        if not await self._store.set_object_name(object_id, name):
            raise AlreadyExistsError(
                f"{label} {name!r} exists in environment {record.environment!r} already: choose another name"
            )
        self._forget(object_id)
        return await self.find(object_id)

    async def set_detail(self, object_id: str, detail: Mapping[str, Any]) -> None:
        """Replace what an object's kind keeps with it."""
        await self._store.set_object_detail(object_id, detail)
        self._forget(object_id)

    async def delete(self, object_id: str) -> None:
        """Delete an object with its contents; one that is gone is no error."""
        record = self._known.get(object_id) or await self._store.object(object_id)
        if record is not None:
            await self._remove(record)

    def forget_all(self) -> None:
        """Look records up anew: their environment has changed."""
        self._known.clear()
        self._changes += 1

    async def _begin(self, record: ObjectRecord) -> None:
        try:
            for action in self._on_create.get(record.kind, ()):
                await action(record)
        except BaseException:
            await self._store.remove_object(record.object_id)
            raise

    async def _check_clash(self, kind: str, name: str, environment: str) -> None:
        # Of the two kinds of file storage, which programs take for one another, a name is one.
        if kind == "nfs" and await self._store.object_named("volume", name, environment) is not None:
            raise InvalidError(
                f"{name!r} already exists as a Volume in environment {environment!r}: use Volume.from_name,"
                " or another name"
            )

    def _know(self, record: ObjectRecord, seen: int) -> bool:
        """Remember a record, unless it may have changed, or begun to go, since it was read."""
        if self._changes != seen or record.object_id in self._leaving:
            return False
        self._known[record.object_id] = record
        return True

    def _forget(self, object_id: str) -> None:
        self._known.pop(object_id, None)
        self._changes += 1

    async def _remove(self, record: ObjectRecord) -> None:
        """Delete an object; nobody finds it from now on."""
        object_id = record.object_id
        removing = self._leaving.get(object_id)
        if removing is None:
            self._forget(object_id)
            removing = self._leaving[object_id] = asyncio.ensure_future(self._take_away(record))
            removing.add_done_callback(lambda _: self._leaving.pop(object_id))
        await asyncio.shield(removing)

    async def _take_away(self, record: ObjectRecord) -> None:
        for action in self._on_delete.get(record.kind, ()):
            await action(record)
        await self._store.remove_object(record.object_id)
        self._changes += 1


def check_name(label: str, name: Any) -> None:
    """Raise InvalidError for what no object may be called."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _APP_ID.fullmatch(name):
        raise InvalidError(
            f"Invalid {label} name {name!r}; use at most 64 letters, digits, '-', '_' and '.', "
            "and nothing of the form of an app id"
        )


def check_environment(environment: Any) -> str:
    """Return an environment's name, the default one for None. Raises InvalidError."""
    if environment is None or environment == "":
        return DEFAULT_ENVIRONMENT
    if not isinstance(environment, str) or not _NAME.fullmatch(environment) or not environment[0].isalnum():
        raise InvalidError(
            f"Invalid environment name {environment!r}; use at most 64 letters, digits, '-', '_' and '.',"
            " the first one a letter or a digit"
        )
    return environment
