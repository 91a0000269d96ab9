"""Files and figures of local containers: bundles unpacked once, logs kept within bounds, use from /proc."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import os
import pathlib
import shutil
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from modal_nomad.engines.base import ContainerStats, EngineError

Unpack = Callable[[bytes, pathlib.Path], object]
_PUNCH_HOLE = 0x01 | 0x02
_BLOCK = 4096
_CHUNK = 1 << 16
_FOLLOW_INTERVAL = 0.05
_TRIM_INTERVAL = 1.0


def unpack_zip(data: bytes, directory: pathlib.Path) -> None:
    """Unpack a zip so that ``directory`` is either whole or not there, however many try at once."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=".", dir=directory.parent))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as bundle:
            for name in bundle.namelist():
                if name.startswith("/") or ".." in pathlib.PurePosixPath(name).parts:
                    raise EngineError(f"bundle member {name!r} points outside; publish the app again")
            bundle.extractall(fresh)
        fresh.chmod(0o755)
        try:
            fresh.rename(directory)
        except OSError:
            # Somebody else was first: a directory cannot be renamed onto one that holds files.
            if not directory.is_dir():
                raise
    except zipfile.BadZipFile as exc:
        raise EngineError(f"the bundle is no readable zip ({exc}); publish the app again") from exc
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def open_log(path: pathlib.Path) -> int:
    """Return a descriptor for appending to a log that only this user may read."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def read_at(path: pathlib.Path, offset: int, size: int) -> bytes:
    """Return up to ``size`` bytes from ``offset``; nothing when the file is gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        return b""


def size_of(path: pathlib.Path) -> int:
    """Return a file's size; 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def log_start(path: pathlib.Path, limit: int) -> int:
    """Return the offset from which a log is kept: 0, or ``limit`` before its end."""
    return max(0, size_of(path) - limit)


def trim_log(path: pathlib.Path, limit: int) -> None:
    """Give the disk space of all but the last ``limit`` bytes back; offsets of readers stay true."""
    try:
        status = path.stat()
        if status.st_blocks * 512 <= limit + (limit >> 1):
            return
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        length = (status.st_size - limit) // _BLOCK * _BLOCK
        if length > 0 and not _punch(fd, length):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def trim_logs(paths: Iterable[pathlib.Path], limit: int) -> None:
    """Trim many logs."""
    for path in paths:
        trim_log(path, limit)


async def keep_trimmed(logs: Callable[[], Sequence[pathlib.Path]], limit: int) -> None:
    """Trim the logs that are written to, for ever."""
    while True:
        await asyncio.sleep(_TRIM_INTERVAL)
        paths = logs()
        if paths:
            await asyncio.to_thread(trim_logs, paths, limit)


def _punch(fd: int, length: int) -> bool:
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(length)) == 0)


def forget_old(directory: pathlib.Path, keep: int) -> None:
    """Delete all but the ``keep`` newest files of a directory."""
    files = sorted((f for f in directory.iterdir() if f.is_file()), key=lambda f: f.stat().st_mtime)
    for file in files[: max(0, len(files) - keep)]:
        file.unlink(missing_ok=True)


def family(pid: int) -> Iterable[int]:
    """Yield a process and all its descendants, those of the fork that it stands for as well."""
    seen = {pid}
    pending = [pid, *(x for x in _stands_for(pid) if x not in seen)]
    seen.update(pending)
    while pending:
        current = pending.pop()
        yield current
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{current}/task"):
                text = pathlib.Path(f"/proc/{current}/task/{task}/children").read_text()
                new = [x for x in map(int, text.split()) if x not in seen]
                seen.update(new)
                pending.extend(new)


def _stands_for(pid: int) -> Iterable[int]:
    """Yield the processes that one watches: a fork of a memory snapshot is a child of the snapshot."""
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError, ValueError):
                for line in pathlib.Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines():
                    watched = int(line[4:]) if line.startswith("Pid:") else 0
                    if watched > 0:
                        yield watched


def usage_of(pid: int) -> tuple[float, int]:
    """Return the processor seconds and resident bytes of a process and all its descendants."""
    if not os.path.isdir("/proc/self"):
        raise EngineError("statistics of containers need /proc; this system has none")
    seconds, memory = 0.0, 0
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for member in family(pid):
        with contextlib.suppress(OSError, IndexError):
            # The name in parentheses may hold spaces; the figures come after the last of them.
            fields = pathlib.Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / tick
            memory += int(fields[21]) * page
    return seconds, memory


def stats_between(before: tuple[float, float], now: tuple[float, float], memory: int) -> ContainerStats:
    """Return the use between two samples of (clock, processor seconds)."""
    elapsed = now[0] - before[0]
    return ContainerStats(cpu=max(0.0, now[1] - before[1]) / elapsed if elapsed > 0 else 0.0, memory=memory)


async def follow_log(path: pathlib.Path, limit: int, ended: asyncio.Event | None) -> AsyncIterator[bytes]:
    """Yield a log's bytes; where its container's end is given, what it still prints until then too."""
    offset = log_start(path, limit)
    while True:
        # Asked before reading: what was written until then is still read below.
        over = ended is None or ended.is_set()
        while data := await asyncio.to_thread(read_at, path, offset, _CHUNK):
            offset += len(data)
            yield data
        if over:
            return
        if size_of(path) < offset:
            offset = 0
        assert ended is not None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), _FOLLOW_INTERVAL)


def write_all(file: Any, data: bytes) -> None:
    """Fill a temporary file and go to its start."""
    file.write(data)
    file.seek(0)


def read_all(file: Any) -> bytes:
    """Return all that a temporary file holds."""
    file.seek(0)
    data: bytes = file.read()
    return data
