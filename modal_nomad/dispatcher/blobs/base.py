"""The contract of a blob store: payloads above 2 MiB, code bundles, runtimes, chunks of Volumes.

A blob's name is the SHA-256 of its bytes, so writing one twice is harmless and a reader never sees a
half: a blob appears under its name complete and kept for good, or not at all.
"""

from __future__ import annotations

import abc
import asyncio
import hashlib
import re
from collections.abc import AsyncIterable, Collection, Iterable, Sequence

from aiohttp import web

_PUTS_AT_ONCE = 16
_SHA = re.compile(r"[0-9a-f]{64}")


class BlobError(Exception):
    """A blob was refused; the text says why."""


class BlobMissing(BlobError, KeyError):
    """No such blob is here."""

    def __str__(self) -> str:
        return str(self.args[0])


class BlobStoreError(Exception):
    """The place where blobs are kept cannot be used; the text is one line that names the remedy."""


class BlobStoreFull(BlobStoreError):
    """There is no space for another blob."""


class BlobStore(abc.ABC):
    """Keeps blobs. No method blocks the event loop; each may raise BlobStoreError."""

    async def start(self) -> None:  # noqa: B027 - a directory has nothing to open
        """Open what is needed, and look whether it can be used. Raises BlobStoreError."""

    async def close(self) -> None:  # noqa: B027
        """Let go of what was opened."""

    @abc.abstractmethod
    async def missing(self, hashes: Iterable[str]) -> list[str]:
        """Return which of these blobs are not here, in order, and keep the others from collection.

        A client that is told it need not upload a blob relies on it: its age starts anew.
        """

    @abc.abstractmethod
    async def put(self, data: bytes, sha: str | None = None) -> str:
        """Keep bytes and return their SHA-256; BlobError when it is not the one announced."""

    async def put_some(self, contents: Sequence[bytes]) -> list[str]:
        """Keep small blobs and return their SHA-256."""
        turns = asyncio.Semaphore(_PUTS_AT_ONCE)

        async def put(data: bytes) -> str:
            async with turns:
                return await self.put(data)

        return list(await asyncio.gather(*map(put, contents)))

    @abc.abstractmethod
    async def put_stream(
        self, chunks: AsyncIterable[bytes], sha: str | None = None, *, max_size: int | None = None
    ) -> str:
        """Keep what a stream yields, like ``put``. Nothing remains of one that breaks off."""

    @abc.abstractmethod
    async def get(self, sha: str) -> bytes:
        """Return a blob's bytes. Raises BlobMissing."""

    async def get_some(self, hashes: Sequence[str]) -> list[bytes | None]:
        """Return small blobs, as many as ``blob_lists`` says, from the first on.

        None stands for one to be asked for alone: it is large, or not here, or is had from elsewhere.
        """
        return [None] * len(hashes)

    @abc.abstractmethod
    async def serve(self, sha: str, request: web.Request, content_type: str) -> web.StreamResponse:
        """Answer a request for a blob, or for a range of it. Raises BlobMissing before anything is sent."""

    @abc.abstractmethod
    async def delete(self, hashes: Iterable[str]) -> None:
        """Remove blobs; those not here are no error."""

    @abc.abstractmethod
    async def collect(self, keep: Collection[str], *, older_than: float) -> list[str]:
        """Remove the blobs that are not in ``keep`` and were last put or asked for too long ago.

        What was left of uploads that broke off goes too, when it is as old.

        Args:
            keep: names still in use.
            older_than: seconds; it covers blobs uploaded for something not yet published.

        Returns:
            The removed names, sorted.
        """


def is_name(text: str) -> bool:
    """Tell whether a text may be the name of a blob."""
    return _SHA.fullmatch(text) is not None


def checked_name(sha: str) -> str:
    """Return a blob's name. Raises BlobError for what is no SHA-256 in hex."""
    if not is_name(sha):
        raise BlobError(f"{sha[:80]!r} is no blob name: 64 lower-case hex digits are expected")
    return sha


def checked_content(data: bytes, announced: str | None) -> str:
    """Return the name of bytes. Raises BlobError when another one was announced."""
    return checked_hash(hashlib.sha256(data).hexdigest(), announced)


def checked_hash(found: str, announced: str | None) -> str:
    """Return the name that was found. Raises BlobError when another one was announced."""
    if announced is not None and checked_name(announced) != found:
        raise BlobError(
            f"the content of blob {announced} hashes to {found}: it was damaged on its way, send it again"
        )
    return found


def checked_size(size: int, max_size: int | None) -> None:
    """Raise BlobError for more bytes than are allowed."""
    if max_size is not None and size > max_size:
        raise BlobError(f"the blob is larger than the {max_size} bytes allowed here")


def not_here(sha: str) -> BlobMissing:
    """Return the error for a blob that is not here."""
    return BlobMissing(f"blob {sha} is not here: upload it first")
