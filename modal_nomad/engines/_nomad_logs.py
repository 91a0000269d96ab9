"""The log files of an allocation: numbered from 0, the newest with the highest number."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from modal_nomad.hashicorp.nomad import NomadClient, NomadNotFound


async def rest_of_log(
    client: NomadClient, allocation: str, prefix: str, position: Mapping[str, int]
) -> AsyncIterator[bytes]:
    """Yield what a log's files hold beyond what was read of them.

    Args:
        client: of Nomad.
        allocation: whose log.
        prefix: the files' names without their number.
        position: bytes read, by file.
    """
    read = max((_file_number(file) for file in position), default=0)
    at = {_file_number(file): offset for file, offset in position.items()}
    try:
        sizes = await client.list_files(allocation, "alloc/logs")
    except NomadNotFound:
        return
    numbers = sorted(_file_number(name) for name in sizes if name.startswith(prefix))
    for number in numbers:
        offset = at.get(number, 0)
        if number >= read and sizes[f"{prefix}{number}"] > offset:
            with contextlib.suppress(NomadNotFound):
                yield await client.read_file(allocation, f"alloc/logs/{prefix}{number}", offset)


async def next_frame(frames: AsyncIterator[tuple[str, bytes]]) -> tuple[str, bytes] | None:
    """Return the next piece of a log and its file's name, or None at the end."""
    async for frame in frames:
        return frame
    return None


def _file_number(file: str) -> int:
    tail = file.rpartition(".")[2]
    return int(tail) if tail.isdigit() else 0
