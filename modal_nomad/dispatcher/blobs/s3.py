"""Blobs in a bucket of any S3-compatible service, through aiobotocore."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
)
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from aiohttp import web

from modal_nomad.dispatcher.blobs._s3_client import FAILURES, is_absent, open_client, refusal
from modal_nomad.dispatcher.blobs.base import (
    BlobStore,
    BlobStoreError,
    checked_content,
    checked_hash,
    checked_name,
    checked_size,
    is_name,
    not_here,
)
from modal_nomad.dispatcher.blobs.s3_settings import S3Settings

logger = logging.getLogger("modal_nomad.dispatcher")

T = TypeVar("T")

REDIRECT = "Modal-Blob-Redirect"
"""The header of a client that fetches from the bucket itself where it is told to."""

_TYPE = "application/octet-stream"
_PART = 8 << 20
_PIECE = 1 << 18
_IN_MEMORY = 1 << 20
_PARTS_AT_ONCE = 8
_REQUESTS_AT_ONCE = 32
_COPY_LIMIT = 5 << 30
_LINK_SECONDS = 900
_READ_ATTEMPTS = 5
_FRESH = 4
"""A blob that is asked for is dated anew once a quarter of the garbage age has gone by, not each time."""


class S3Blobs(BlobStore):
    """A bucket of blobs.

    The bucket's own dates are the blobs' ages: one that is asked for again is copied onto itself. Who
    collects knows of what is asked for meanwhile in this process alone, so one dispatcher of those that
    share a bucket collects.

    Args:
        settings: the bucket, and how it is reached.
        scratch: a directory where uploads wait until their hash is known.
        garbage_age: seconds; see the dispatcher's settings.
        clock: the time in seconds.
    """

    def __init__(
        self,
        settings: S3Settings,
        scratch: Path,
        *,
        garbage_age: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._bucket = settings.bucket
        self._scratch = scratch
        self._fresh = garbage_age / _FRESH
        self._clock = clock
        self._stack = contextlib.AsyncExitStack()
        self._s3: Any = None
        # When a blob's date in the bucket was made new, for those that this process put or looked at.
        self._renewed: dict[str, float] = {}
        self._claims: Counter[str] = Counter()
        self._deleting: frozenset[str] = frozenset()
        self._deleted = asyncio.Condition()
        self._parts = asyncio.Semaphore(_PARTS_AT_ONCE)
        self._requests = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def start(self) -> None:
        self._s3 = await self._stack.enter_async_context(open_client(self._settings))
        try:
            await self._call("list_objects_v2", Prefix=self._settings.prefix, MaxKeys=1)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._stack.aclose()

    def key(self, sha: str) -> str:
        """Return the key of a blob. Raises BlobError for what is no SHA-256 in hex."""
        return f"{self._settings.prefix}{checked_name(sha)[:2]}/{sha}"

    # --- whether it is there ----------------------------------------------------------------------

    async def missing(self, hashes: Iterable[str]) -> list[str]:
        names = [checked_name(sha) for sha in dict.fromkeys(hashes)]
        old = [sha for sha in names if not self._is_fresh(sha)]
        gone = {sha for sha, there in zip(old, await _each(self._renew, old), strict=True) if not there}
        return [sha for sha in names if sha in gone]

    def _is_fresh(self, sha: str) -> bool:
        return self._clock() - self._renewed.get(sha, float("-inf")) < self._fresh

    async def _renew(self, sha: str) -> bool:
        key = self.key(sha)
        async with self._claim(sha), self._requests:
            try:
                found = await self._call("head_object", Key=key)
                age = self._clock() - found["LastModified"].timestamp()
                if age >= self._fresh:
                    if found["ContentLength"] > _COPY_LIMIT:
                        # No service copies more at once; sent again it is as good as renewed.
                        return False
                    await self._call(
                        "copy_object",
                        Key=key,
                        CopySource={"Bucket": self._bucket, "Key": key},
                        MetadataDirective="REPLACE",
                        ContentType=_TYPE,
                    )
                    age = 0.0
            except _Absent:
                self._renewed.pop(sha, None)
                return False
            self._renewed[sha] = self._clock() - max(age, 0.0)
            return True

    @contextlib.asynccontextmanager
    async def _claim(self, sha: str) -> AsyncIterator[None]:
        """Keep a blob from being collected now. One that is being collected is waited for."""
        async with self._deleted:
            await self._deleted.wait_for(lambda: sha not in self._deleting)
            self._claims[sha] += 1
        try:
            yield
        finally:
            self._claims[sha] -= 1
            if not self._claims[sha]:
                del self._claims[sha]

    # --- in ---------------------------------------------------------------------------------------

    async def put(self, data: bytes, sha: str | None = None) -> str:
        found = await asyncio.to_thread(checked_content, data, sha)
        if await self.missing([found]):
            if len(data) <= _PART:
                await self._put_whole(found, data)
            else:
                with tempfile.TemporaryFile(dir=self._folder()) as file:
                    await asyncio.to_thread(file.write, data)
                    await self._put_parts(found, file, len(data))
        return found

    async def put_stream(
        self, chunks: AsyncIterable[bytes], sha: str | None = None, *, max_size: int | None = None
    ) -> str:
        if sha is not None:
            checked_name(sha)
        # Kept here until its hash is known: a slow client holds a file, and no memory.
        with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(self._folder())) as spool:
            file: Any = spool
            digest, size, pending = hashlib.sha256(), 0, bytearray()

            def take(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            async for chunk in chunks:
                size += len(chunk)
                checked_size(size, max_size)
                pending += chunk
                if len(pending) >= _IN_MEMORY:
                    await asyncio.to_thread(take, bytes(pending))
                    pending.clear()
            await asyncio.to_thread(take, bytes(pending))
            found = checked_hash(digest.hexdigest(), sha)
            if size <= _PART:
                async with self._parts:
                    await self._put_whole(found, await asyncio.to_thread(_read, file, 0, size))
            else:
                await self._put_parts(found, file, size)
        return found

    async def _put_whole(self, sha: str, data: bytes) -> None:
        async with self._claim(sha):
            await self._call("put_object", Key=self.key(sha), Body=data, ContentType=_TYPE)
            self._renewed[sha] = self._clock()

    async def _put_parts(self, sha: str, file: BinaryIO, size: int) -> None:
        key = self.key(sha)
        async with self._claim(sha):
            made = await self._call("create_multipart_upload", Key=key, ContentType=_TYPE)
            upload = {"Key": key, "UploadId": made["UploadId"]}
            # At most 10,000 parts, all but the last of one size.
            step = max(_PART, -(-size // 10_000))
            reading = asyncio.Lock()

            async def put(start: int) -> dict[str, Any]:
                number = start // step + 1
                async with self._parts:
                    async with reading:
                        data = await asyncio.to_thread(_read, file, start, step)
                    done = await self._call("upload_part", **upload, PartNumber=number, Body=data)
                return {"PartNumber": number, "ETag": done["ETag"]}

            try:
                parts = await _each(put, range(0, size, step))
                await self._call("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
            except BaseException:
                with contextlib.suppress(BlobStoreError, _Absent):
                    await asyncio.shield(self._call("abort_multipart_upload", **upload))
                raise
            self._renewed[sha] = self._clock()

    def _folder(self) -> Path:
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._scratch

    # --- out --------------------------------------------------------------------------------------

    async def get(self, sha: str) -> bytes:
        _, pieces = await self._open(sha, 0, None)
        data = bytearray()
        async for piece in pieces:
            data += piece
        return bytes(data)

    async def serve(self, sha: str, request: web.Request, content_type: str) -> web.StreamResponse:
        key = self.key(sha)
        if self._settings.redirect and request.method == "GET" and REDIRECT in request.headers:
            link = await self._link(key)
            return web.Response(status=307, headers={"Location": link}, text=link)
        headers = {"Content-Type": content_type, "Accept-Ranges": "bytes", "ETag": f'"{sha}"'}
        if request.method == "HEAD":
            headers["Content-Length"] = str(await self._size(sha))
            return web.Response(headers=headers)
        start, stop, partial = 0, None, "Range" in request.headers
        if partial:
            whole = await self._size(sha)
            start, stop = _span(request, whole)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{whole}"
        size, pieces = await self._open(sha, start, stop)
        response = web.StreamResponse(status=206 if partial else 200, headers=headers)
        response.content_length = size
        await response.prepare(request)
        try:
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    await response.write(piece)
        except BlobStoreError as error:
            # The size was said: whoever reads sees that the rest does not come, and asks again.
            logger.error("blob %s was sent in part only: %s", sha, error)
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    async def _link(self, key: str) -> str:
        params = {"Bucket": self._bucket, "Key": key}
        return str(
            await self._s3.generate_presigned_url("get_object", Params=params, ExpiresIn=_LINK_SECONDS)
        )

    async def _size(self, sha: str) -> int:
        try:
            return int((await self._call("head_object", Key=self.key(sha)))["ContentLength"])
        except _Absent:
            raise not_here(sha) from None

    async def _open(self, sha: str, start: int, stop: int | None) -> tuple[int, AsyncGenerator[bytes, None]]:
        try:
            first = await self._fetch(sha, start, stop)
        except _Absent:
            raise not_here(sha) from None
        size = int(first["ContentLength"])
        return size, self._pieces(sha, first, start, size, whole=stop is None and start == 0)

    async def _fetch(self, sha: str, start: int, stop: int | None) -> Any:
        span = (
            {}
            if not start and stop is None
            else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        )
        return await self._call("get_object", Key=self.key(sha), **span)

    async def _pieces(
        self, sha: str, answer: Any, start: int, size: int, *, whole: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes; the last of a whole blob only when its hash is right."""
        digest, done, failures, held = hashlib.sha256(), 0, 0, b""
        failure: BaseException | None = None
        while True:
            try:
                async with answer["Body"] as body:
                    while done < size and (piece := await body.read(_PIECE)):
                        done += len(piece)
                        digest.update(piece)
                        if held:
                            yield held
                        held = piece
            except FAILURES as error:
                failure = error
            if done == size:
                break
            failures += 1
            if failures == _READ_ATTEMPTS:
                raise BlobStoreError(self._words(failure or EOFError("the answer ended early")))
            # The service went away amid the blob: what is left is fetched when it is back.
            try:
                answer = await self._fetch(sha, start + done, start + size)
            except _Absent:
                raise BlobStoreError(f"blob {sha} was removed from the bucket while it was read") from None
        if whole and digest.hexdigest() != sha:
            raise BlobStoreError(
                f"the object {self.key(sha)} in bucket {self._bucket} is damaged: remove it, and deploy or"
                " commit again what it belongs to"
            )
        if held:
            yield held

    # --- away -------------------------------------------------------------------------------------

    async def delete(self, hashes: Iterable[str]) -> None:
        async def remove(sha: str) -> None:
            async with self._requests:
                with contextlib.suppress(_Absent):
                    await self._call("delete_object", Key=self.key(sha))
            self._renewed.pop(sha, None)

        await _each(remove, hashes)

    async def collect(self, keep: Collection[str], *, older_than: float) -> list[str]:
        before = self._clock() - older_than
        kept = frozenset(keep)
        removed: list[str] = []
        async for page in self._pages("list_objects_v2"):
            dated = [(str(x["Key"]).rpartition("/")[2], x) for x in page.get("Contents", ())]
            old = frozenset(
                sha
                for sha, entry in dated
                if sha not in kept
                # A bucket may hold other things, which are let be.
                and is_name(sha)
                and self.key(sha) == entry["Key"]
                and max(entry["LastModified"].timestamp(), self._renewed.get(sha, 0.0)) < before
                and sha not in self._claims
            )
            # Between the choice and this no other task ran.
            self._deleting = old
            try:
                await self.delete(old)
            finally:
                async with self._deleted:
                    self._deleting = frozenset()
                    self._deleted.notify_all()
            removed += old
        self._renewed = {sha: at for sha, at in self._renewed.items() if at >= before}
        await self._forget_uploads(before)
        return sorted(removed)

    async def _forget_uploads(self, before: float) -> None:
        async for page in self._pages("list_multipart_uploads"):
            for upload in page.get("Uploads", ()):
                if upload["Initiated"].timestamp() < before:
                    with contextlib.suppress(_Absent):
                        await self._call(
                            "abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"]
                        )

    async def _pages(self, operation: str) -> AsyncIterator[Any]:
        pages = self._s3.get_paginator(operation).paginate(Bucket=self._bucket, Prefix=self._settings.prefix)
        try:
            async for page in pages:
                yield page
        except FAILURES as error:
            raise BlobStoreError(self._words(error)) from error

    # --- requests ---------------------------------------------------------------------------------

    async def _call(self, operation: str, **given: Any) -> Any:
        try:
            return await getattr(self._s3, operation)(Bucket=self._bucket, **given)
        except FAILURES as error:
            if is_absent(error):
                raise _Absent from None
            raise BlobStoreError(self._words(error)) from error

    def _words(self, error: BaseException) -> str:
        return refusal(error, self._settings)


class _Absent(Exception):
    """No such object."""


async def _each(work: Callable[[Any], Awaitable[T]], items: Iterable[Any]) -> list[T]:
    """Do the same with each item, several at once; none goes on when one has failed."""
    left = enumerate(items)
    done: dict[int, T] = {}

    async def go_on() -> None:
        for number, item in left:
            done[number] = await work(item)

    tasks = [asyncio.ensure_future(go_on()) for _ in range(_REQUESTS_AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return [done[number] for number in range(len(done))]


def _span(request: web.Request, whole: int) -> tuple[int, int]:
    """Return which bytes a request asks for."""
    with contextlib.suppress(ValueError):
        span = request.http_range
        start, stop = span.start or 0, min(span.stop or whole, whole)
        if start < 0:
            start = max(whole + start, 0)
        if start < stop:
            return start, stop
    raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{whole}"})


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)
