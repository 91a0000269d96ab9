"""The files that images copy: the blob of a step's manifest names them, and no specification does.

An image that is gone is built anew from them, so that they are kept for as long as anything names the
manifest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

import msgspec

from modal_nomad.dispatcher.blobs import BlobMissing, BlobStore
from modal_nomad.dispatcher.blobs.base import is_name

_FRESH = 4
"""What was looked for is not looked for again before this part of the garbage age has gone by."""


class CopiedFiles:
    """Knows the files of manifests.

    Args:
        blobs: the blob store.
        age: seconds that a blob is kept which nothing names.
        clock: the time in seconds.
    """

    def __init__(self, blobs: BlobStore, age: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._blobs = blobs
        self._fresh = age / _FRESH
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._named: dict[str, frozenset[str]] = {}

    async def are_here(self, manifests: Iterable[str]) -> bool:
        """Tell whether manifests and all their files are here, and keep those from collection for now.

        Thousands of files take a while to look for; while they are young they are not.
        """
        wanted = list(dict.fromkeys(manifests))
        now = self._clock()
        self._seen = {sha: at for sha, at in self._seen.items() if now - at < self._fresh}
        if await self._blobs.missing(wanted):
            return False
        for sha in wanted:
            if sha in self._seen:
                continue
            names = await self._names_in(sha)
            if names is None or await self._blobs.missing(names):
                return False
            self._seen[sha] = now
        return True

    async def names(self, manifests: Collection[str]) -> set[str]:
        """Return the files of manifests, as far as these are here."""
        # A manifest never changes, and is read again each time that garbage is collected.
        known = {sha: self._named.get(sha) or await self._names_in(sha) for sha in manifests}
        self._named = {sha: names for sha, names in known.items() if names is not None}
        return set().union(*self._named.values())

    async def _names_in(self, manifest: str) -> frozenset[str] | None:
        """Return the blobs that a manifest names; None for what is none, or not here."""
        try:
            entries = msgspec.json.decode(await self._blobs.get(manifest), type=list[tuple[str, str, int]])
        except (BlobMissing, msgspec.DecodeError):
            return None
        return frozenset(sha for _, sha, _ in entries if is_name(sha))
