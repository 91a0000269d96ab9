"""Contents that a publication refers to, sent to the server: small ones many at once, large ones alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ._log import logger
from .exception import ExecutionError
from .wire import blob_lists

if TYPE_CHECKING:
    from .client import Client

_AT_ONCE = 4
"""Requests under way; what they send is in memory, except for large files."""
_NAMES = 1000
_BYTES = 2 << 20


async def upload_missing(client: Client, contents: Mapping[str, bytes | os.PathLike[str]]) -> int:
    """Upload the contents that the server does not have; return how many.

    Raises:
        ExecutionError: a file is not any more what it was when its hash was taken.
    """
    if not contents:
        return 0
    reply = await client._request("blob.missing", {"hashes": sorted(contents)})
    missing = {sha: contents[sha] for sha in reply["missing"]}
    groups, large = await asyncio.to_thread(_groups, missing)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def send(group: list[str]) -> None:
        async with turns:
            data = await asyncio.to_thread(lambda: [_read(missing[sha]) for sha in group])
            for sha, stored in zip(group, await client._put_blobs(data), strict=True):
                if stored != sha:
                    raise _changed(missing[sha])

    async def send_alone(sha: str) -> None:
        async with turns:
            content = missing[sha]
            if isinstance(content, bytes):
                await client._put_blob(content)
            elif not await client._put_blob_file(content, sha):
                raise _changed(content)

    await asyncio.gather(*map(send, groups), *map(send_alone, large))
    logger().debug("uploaded %d of %d contents; the server had the others", len(missing), len(contents))
    return len(missing)


def _groups(contents: Mapping[str, bytes | os.PathLike[str]]) -> tuple[list[list[str]], list[str]]:
    groups: list[list[str]] = []
    large: list[str] = []
    size = _BYTES
    for sha, content in contents.items():
        own = len(content) if isinstance(content, bytes) else os.stat(content).st_size
        if own > blob_lists.LARGEST:
            large.append(sha)
            continue
        if size + own > _BYTES or len(groups[-1]) >= _NAMES:
            groups.append([])
            size = 0
        groups[-1].append(sha)
        size += own
    return groups, large


def _read(content: bytes | os.PathLike[str]) -> bytes:
    if isinstance(content, bytes):
        return content
    with open(content, "rb") as file:
        return file.read()


def _changed(content: object) -> ExecutionError:
    path = os.fspath(content) if isinstance(content, os.PathLike) else "a content"
    return ExecutionError(
        f"{path} changed while it was uploaded: try again when nothing writes to it, or leave it out with"
        " ignore="
    )
