"""The chunks that readers wait for: fetched by several threads, each once, those asked for before others."""

import errno
import os
import threading
import time
from collections import OrderedDict, deque
from typing import Any, Callable, Deque, Dict, Iterable, List, Optional, Union

from ...wire.volumes.chunks import PARALLEL

MAX_OPEN = 192
"""Descriptors of chunks and written files that are kept open."""
_PAUSE = 0.5
_AHEAD = 16

Failed = Callable[[int], None]


class OpenFile:
    """A descriptor that is closed when nobody has it any more.

    Args:
        fd: the descriptor.
        weight: how many of ``MAX_OPEN`` it counts for. An open chunk takes room even when its cache has
            removed it.
    """

    __slots__ = ("fd", "weight")

    def __init__(self, fd: int, weight: int = 1) -> None:
        self.fd = fd
        self.weight = weight

    def __del__(self) -> None:
        os.close(self.fd)

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read at an offset; fewer bytes at the end."""
        return os.preadv(self.fd, [view], offset)


class InMemory:
    """A chunk that no disk has room for."""

    __slots__ = ("data",)
    weight = 16

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read at an offset; fewer bytes at the end."""
        part = self.data[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)


Chunk = Union[OpenFile, InMemory]


class OpenFiles:
    """The descriptors used last, by what their user calls them."""

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self._limit = limit
        self._weight = 0
        self._files: "OrderedDict[Any, Any]" = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        """Return what was put, or None."""
        with self._lock:
            found = self._files.get(key)
            if found is not None:
                self._files.move_to_end(key)
            return found

    def put(self, key: Any, file: Any) -> None:
        """Keep something for a while."""
        with self._lock:
            gone = [self._files.pop(key, None)]
            self._files[key] = file
            self._weight += file.weight - (gone[0].weight if gone[0] is not None else 0)
            while self._weight > self._limit and len(self._files) > 1:
                gone.append(self._files.popitem(last=False)[1])
                self._weight -= gone[-1].weight
        # Closed by its last user, which may be another thread.
        del gone

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            gone, self._files, self._weight = self._files, OrderedDict(), 0
        del gone

    def drop(self, key: Any) -> None:
        """Keep it no longer."""
        with self._lock:
            gone = self._files.pop(key, None)
            if gone is not None:
                self._weight -= gone.weight
        del gone


class Chunks:
    """What gives chunks by their hash, at once or later.

    Args:
        open_chunk: gives a chunk by its hash in hex digits; it asks the dispatcher where it has to.
        wait: seconds for which it is asked again when it raises OSError.
        say: takes a line for the log.
        what: the path at which user code sees the Volume.
        clear: removes chunks that were kept on the disk of the container; False where there are none.
    """

    def __init__(
        self,
        open_chunk: Callable[[str], Chunk],
        wait: float,
        say: Callable[[str], None],
        what: str,
        clear: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clear = clear
        self._open_chunk = open_chunk
        self._wait = wait
        self._say = say
        self._what = what
        self._said = 0.0
        self.open = OpenFiles()
        self._lock = threading.Condition()
        self._waiting: Dict[bytes, List["_Join"]] = {}
        self._wanted: Deque[bytes] = deque()
        self._ahead: Deque[bytes] = deque()
        self._begun: Dict[bytes, bool] = {}
        self._threads = 0
        self._idle = 0

    def get(self, sha: bytes) -> Optional[Chunk]:
        """Return a chunk that can be read at once, or None."""
        found: Optional[Chunk] = self.open.get(sha)
        return found

    def make_room(self) -> bool:
        """Give up what can be fetched again, for what is written; False where nothing can be given up."""
        if not self._clear():
            return False
        self.open.clear()
        return True

    def when_here(
        self, hashes: Iterable[bytes], ready: Callable[[Dict[bytes, Chunk]], None], failed: Failed
    ) -> None:
        """Call ``ready`` with the chunks when all are here, or ``failed`` with an error's number.

        Either is called in another thread.
        """
        wanted = set(hashes)
        join = _Join(len(wanted), ready, failed)
        with self._lock:
            for sha in wanted:
                others = self._waiting.get(sha)
                if others is not None:
                    others.append(join)
                    if sha not in self._begun:
                        self._wanted.append(sha)
                else:
                    self._waiting[sha] = [join]
                    self._wanted.append(sha)
            self._wake(len(wanted))

    def fetch_ahead(self, hashes: Iterable[bytes]) -> None:
        """Fetch chunks that are likely to be wanted next."""
        with self._lock:
            for sha in hashes:
                if sha in self._waiting or self.open.get(sha) is not None:
                    continue
                self._waiting[sha] = []
                self._ahead.append(sha)
                while len(self._ahead) > _AHEAD:
                    old = self._ahead.popleft()
                    if not self._waiting.get(old, True):
                        del self._waiting[old]
            self._wake(len(self._ahead))

    def _wake(self, count: int) -> None:
        self._lock.notify(count)
        for _ in range(min(count - self._idle, PARALLEL - self._threads)):
            self._threads += 1
            threading.Thread(target=self._fetch, name="modal-chunks", daemon=True).start()

    def _next(self) -> bytes:
        with self._lock:
            while True:
                for queue in (self._wanted, self._ahead):
                    while queue:
                        sha = queue.popleft()
                        if sha in self._waiting and sha not in self._begun:
                            self._begun[sha] = True
                            return sha
                self._idle += 1
                self._lock.wait()
                self._idle -= 1

    def _fetch(self) -> None:
        while True:
            sha = self._next()
            chunk: Optional[Chunk] = None
            number = 0
            try:
                chunk = self.get(sha) or self._patiently(sha)
                self.open.put(sha, chunk)
            except OSError as error:
                number = error.errno or errno.EIO
            with self._lock:
                joins = self._waiting.pop(sha)
                del self._begun[sha]
            for join in joins:
                join.take(sha, chunk, number)
            del chunk, joins

    def _patiently(self, sha: bytes) -> Chunk:
        until = time.monotonic() + self._wait
        while True:
            try:
                return self._open_chunk(sha.hex())
            except KeyError:
                self._tell(
                    f"{self._what}: a chunk is gone: its file was replaced or removed by another container"
                    " long ago, and is read only now (EIO); volume.reload() shows what is there"
                )
                raise OSError(errno.EIO, "gone") from None
            except OSError as error:
                with self._lock:
                    nobody = not self._waiting.get(sha)
                if nobody or time.monotonic() > until:
                    if not nobody:
                        self._tell(
                            f"{self._what}: a file could not be read (EIO): the dispatcher did not give its"
                            f" content for {self._wait:g} s ({error}); see whether it runs"
                        )
                    raise OSError(errno.EIO, "not fetched") from None
                time.sleep(_PAUSE)

    def _tell(self, text: str) -> None:
        # Not once for each of the thousands of files that a loop may try to read.
        now = time.monotonic()
        if now - self._said > 10.0:
            self._said = now
            self._say(text)


class _Join:
    """Waits for several chunks."""

    def __init__(self, count: int, ready: Callable[[Dict[bytes, Chunk]], None], failed: Failed) -> None:
        self._count = count
        self._ready = ready
        self._failed = failed
        self._number = 0
        self._chunks: Dict[bytes, Chunk] = {}
        self._lock = threading.Lock()

    def take(self, sha: bytes, chunk: Optional[Chunk], number: int) -> None:
        with self._lock:
            if chunk is not None:
                self._chunks[sha] = chunk
            self._number = self._number or number
            self._count -= 1
            if self._count:
                return
        try:
            if self._number:
                self._failed(self._number)
            else:
                self._ready(self._chunks)
        except OSError as error:
            self._failed(error.errno or errno.EIO)
        except Exception as error:
            import traceback

            traceback.print_exception(type(error), error, error.__traceback__)
            self._failed(errno.EIO)
