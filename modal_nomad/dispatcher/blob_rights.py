"""Which blobs a token of some environments may read: those that such a token sent, or was shown.

A blob's name is the hash of its bytes, and a hash may be known to who never had the bytes. So a token with a
scope reads what came here with it, and what this dispatcher named to it: a result of its call, a value of its
Dict, a file of its Volume. It names nothing else either, else it would be shown that in turn. Tokens without
a scope, and containers that they deployed, read all: nothing is looked up or written for them.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from modal_nomad.dispatcher.blobs import BlobStore
from modal_nomad.dispatcher.blobs.base import BlobMissing, is_name
from modal_nomad.dispatcher.store.base import Store
from modal_nomad.exception import InvalidError
from modal_nomad.wire.frames import FLAG_BLOB

Scope = Sequence[str]

_ARTIFACTS = "/artifacts"
"""Holds the bundles that Nomad fetches without a token; no environment has such a name."""
_IMAGE = "modal_image"
_LIST = "manifest"
_MOST_KNOWN = 500_000
# Not the digest of an image in a registry, which is no blob's name.
_NAME = re.compile(rb"(?<![0-9a-f])(?<!sha256:)[0-9a-f]{64}(?![0-9a-f])")


def flagged(payloads: Iterable[bytes], flags: Iterable[int]) -> list[str]:
    """Return the blobs that payloads are the names of."""
    return [
        str(payload, "ascii", "replace")
        for payload, flag in zip(payloads, flags, strict=False)
        if flag & FLAG_BLOB
    ]


class BlobRights:
    """Who may read which blobs.

    Args:
        store: an open store, where it outlives this process.
        blobs: the blob store.
        background: runs a coroutine that nobody waits for.
        own: blobs of this dispatcher itself, which anybody may read.
        clock: the time in seconds.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        background: Callable[[Coroutine[Any, Any, Any]], None],
        own: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._background = background
        self._own = frozenset(own)
        self._clock = clock
        self._known: dict[str, set[str]] = {}
        self._count = 0
        self._used = False

    async def open(self) -> None:
        """Look whether any scope was ever given a right."""
        self._used = await self._store.has_blob_holders(_ARTIFACTS)

    @property
    def used(self) -> bool:
        """Whether there may be containers of tokens that have a scope."""
        return self._used

    # --- what is asked ----------------------------------------------------------------------------

    def knows(self, scope: Scope, names: Iterable[str]) -> bool:
        """Tell whether a scope is known to hold all of these blobs, without a look into the store."""
        if not scope:
            return True
        known = self._known.get(_holder(scope), set())
        return all(name in known or name in self._own for name in names)

    async def lacking(self, scope: Scope, names: Iterable[str]) -> list[str]:
        """Return which of these blobs a scope may not read, or that it does not have by now."""
        if not scope:
            return []
        return await self._lacking(_holder(scope), frozenset(scope), names)

    async def missing(self, scope: Scope, names: Sequence[str]) -> list[str]:
        """Return which of these blobs a scope has to send, and keep the others from collection."""
        if not scope:
            return await self._blobs.missing(names)
        lacking = set(await self.lacking(scope, names))
        lacking.update(await self._blobs.missing([x for x in names if x not in lacking]))
        return [x for x in dict.fromkeys(names) if x in lacking]

    async def check(self, scope: Scope, names: Sequence[str]) -> None:
        """Refuse names of blobs that a scope does not hold. Raises InvalidError."""
        if scope and await self.lacking(scope, names):
            raise InvalidError(
                "a large value was never sent with this token, or is gone by now: send it again"
            )

    async def check_values(self, scope: Scope, *values: Any) -> None:
        """Refuse JSON values, specifications of Functions say, that name blobs which a scope does not hold.

        Raises:
            InvalidError: they are here, and are others'.
        """
        if not scope:
            return
        names = await self._names(values)
        foreign = await self.lacking(scope, names)
        absent = set(await self._blobs.missing(foreign))
        if any(name not in absent for name in foreign):
            # Whatever else looks like a hash is none of ours.
            raise InvalidError(
                "files were named that never came with this token, by their hashes: deploy again, and they"
                " are sent"
            )

    async def is_artifact(self, sha: str) -> bool:
        """Tell whether a blob is a bundle that Nomad may fetch without a token."""
        return not await self._lacking(_ARTIFACTS, frozenset((_ARTIFACTS,)), [sha])

    async def _lacking(self, holder: str, within: frozenset[str], names: Iterable[str]) -> list[str]:
        known = self._known.get(holder, set())
        asked = [x for x in dict.fromkeys(names) if x not in known and x not in self._own]
        if not asked:
            return []
        held = await self._store.blob_holders([x for x in asked if is_name(x)])
        # What a narrower scope holds, this one may see as well.
        found = {x for x, holders in held.items() if any(within.issuperset(h.split(",")) for h in holders)}
        self._note(holder, found)
        return [x for x in asked if x not in found]

    # --- what is given ----------------------------------------------------------------------------

    async def grant(self, scope: Scope, names: Iterable[str]) -> None:
        """Let a scope read blobs that it sent; returns when that is on the disk."""
        if scope:
            await self._put(_holder(scope), list(dict.fromkeys(names)))

    async def show(self, scope: Scope, names: Iterable[str]) -> None:
        """Let a scope read blobs that are about to be named to it."""
        if scope:
            await self.grant(scope, await self.lacking(scope, names))

    def show_soon(self, scope: Scope, names: Sequence[str]) -> None:
        """Do the same for who cannot wait: this process knows it at once, the next one in a moment."""
        if not self.knows(scope, names):
            self._note(_holder(scope), names)
            self._background(self.grant(scope, names))

    async def show_values(self, scope: Scope, *values: Any) -> None:
        """Let a scope read the blobs that JSON values name, and the files that are listed in those."""
        if scope:
            await self.show(scope, await self._names(values))

    async def add_artifacts(self, names: Iterable[str]) -> None:
        """Let Nomad fetch bundles."""
        found = await self._lacking(_ARTIFACTS, frozenset((_ARTIFACTS,)), names)
        if found:
            await self._put(_ARTIFACTS, found)

    async def forget(self, names: Collection[str], older_than: float) -> None:
        """Forget all about blobs that were removed as old.

        Args:
            names: of the blobs.
            older_than: seconds; who sent one again meanwhile holds it.
        """
        for known in self._known.values():
            known.difference_update(names)
        if names:
            await self._store.remove_blob_holders(list(names), self._clock() - older_than)

    async def _put(self, holder: str, names: list[str]) -> None:
        if names:
            self._used = self._used or holder != _ARTIFACTS
            await self._store.put_blob_holder(holder, names)
            self._note(holder, names)

    def _note(self, holder: str, names: Collection[str]) -> None:
        self._count += len(names)
        if self._count > _MOST_KNOWN:
            # The store knows them.
            self._known.clear()
            self._count = len(names)
        self._known.setdefault(holder, set()).update(names)

    async def _names(self, values: Iterable[Any]) -> list[str]:
        """Return what reads like blobs' names in values, and in the lists of files that they name."""
        names: dict[str, None] = {}
        lists: dict[str, None] = {}
        _read(values, names, lists)
        for sha in lists:
            try:
                content = await self._blobs.get(sha)
            except BlobMissing:
                continue
            names.update(dict.fromkeys(x.decode() for x in _NAME.findall(content)))
        return list(names)


def _holder(scope: Scope) -> str:
    return ",".join(sorted(scope))


def _read(value: Any, names: dict[str, None], lists: dict[str, None]) -> None:
    """Gather what reads like blobs' names in a JSON value, and which of them are lists of files."""
    if isinstance(value, str):
        names.update(dict.fromkeys(x.decode() for x in _NAME.findall(value.encode("utf-8", "replace"))))
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == _LIST and isinstance(inner, str) and is_name(inner):
                lists[inner] = None
            elif key == _IMAGE and isinstance(inner, str):
                # A job has its image as text.
                with contextlib.suppress(msgspec.DecodeError):
                    _read(msgspec.json.decode(inner), names, lists)
            _read(inner, names, lists)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _read(inner, names, lists)
