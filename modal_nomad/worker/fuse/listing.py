"""The names of a Volume: fetched by directory when they are asked for, all of the version that is shown."""

import errno
import itertools
import os
import threading
import time
from collections import deque
from typing import Callable, Deque, Dict, List, Optional, Tuple

from ...wire.asking import Refused
from ...wire.volumes.client import Listing as Names
from ...wire.volumes.client import VolumeClient
from ...wire.volumes.entries import DIRECTORY, Entry, from_bytes, to_bytes
from .nodes import Node, Rest, Unlisted

FIRST_ROWS = 5000
"""Names that a container starts with: all of most Volumes."""
_MOST_ROWS = 5000
_LEAST_ROWS = 256
_MOST_PATHS = 256
_ROWS_OF_A_PATH = 16
_PAUSE = 0.5
_SOON = 2.0

Ready = Callable[[], None]
Failed = Callable[[int], None]
Asked = Tuple[Optional[bytes], Ready, Failed]


class Listing:
    """Gives the names in directories, at once or later.

    Args:
        ask: asks the dispatcher for directories of the version that is shown, as
            ``VolumeClient.directories`` does, and puts what it says into the tree.
        wait: seconds for which it is asked again when it raises OSError.
        say: takes a line for the log.
        shown: the path at which user code sees the Volume.
    """

    def __init__(
        self,
        ask: Callable[[Node, Optional[bytes], int], None],
        wait: float,
        say: Callable[[str], None],
        shown: str,
    ) -> None:
        self._ask = ask
        self._wait = wait
        self._say = say
        self._shown = shown
        self._lock = threading.Lock()
        self._waiting: Dict[int, List[Asked]] = {}
        self._rows = _LEAST_ROWS
        self._last = 0.0
        self._said = 0.0

    def when_here(self, wanted: Unlisted, ready: Ready, failed: Failed) -> None:
        """Call ``ready`` when more names of a directory are here, or ``failed`` with an error's number.

        Either is called in another thread.
        """
        with self._lock:
            others = self._waiting.get(wanted.node.ino)
            asked = (wanted.name, ready, failed)
            if others is not None:
                others.append(asked)
                return
            self._waiting[wanted.node.ino] = [asked]
        thread = threading.Thread(
            target=self._fetch, args=(wanted.node, wanted.name), name="modal-names", daemon=True
        )
        thread.start()

    def _fetch(self, node: Node, name: Optional[bytes]) -> None:
        number = 0
        try:
            self._patiently(node, name)
        except OSError as error:
            number = error.errno or errno.EIO
        except Exception as error:
            import traceback

            traceback.print_exception(type(error), error, error.__traceback__)
            number = errno.EIO
        with self._lock:
            waiting = self._waiting.pop(node.ino)
        for _, ready, failed in waiting:
            if number:
                failed(number)
            else:
                # It asks again where its name did not come.
                ready()

    def _patiently(self, node: Node, name: Optional[bytes]) -> None:
        until = time.monotonic() + self._wait
        with self._lock:
            # Who looks at one directory after the other is given more of them each time.
            soon = time.monotonic() - self._last < _SOON
            rows = self._rows = min(_MOST_ROWS, 2 * self._rows) if soon else _LEAST_ROWS
            self._last = time.monotonic()
        while True:
            try:
                self._ask(node, name, rows)
                return
            except Refused as error:
                self._tell(f"{self._shown}: names of files cannot be had (EIO): {error}")
                raise OSError(errno.EIO, str(error)) from None
            except OSError as error:
                if time.monotonic() > until:
                    self._tell(
                        f"{self._shown}: names of files cannot be had (EIO): the dispatcher did not give them"
                        f" for {self._wait:g} s ({error}); see whether it runs"
                    )
                    raise OSError(errno.EIO, os.strerror(errno.EIO)) from None
                time.sleep(_PAUSE)

    def _tell(self, text: str) -> None:
        now = time.monotonic()
        if now - self._said > 10.0:
            self._said = now
            self._say(text)


class Version:
    """A version of a Volume that the dispatcher keeps for this container.

    Args:
        client: asks the dispatcher, once each time.
        volume_id: ``vo-…``.
        pin_id: under which it is kept.
        number: the version.
    """

    def __init__(self, client: VolumeClient, volume_id: str, pin_id: str, number: int) -> None:
        self._client = client
        self._volume_id = volume_id
        self.pin_id = pin_id
        self.number = number
        self._beside: Dict[int, Deque[Node]] = {}

    @classmethod
    def newest(cls, client: VolumeClient, volume_id: str) -> "Version":
        """Have the version kept that the Volume has now. Raises Refused, OSError."""
        pin_id = os.urandom(12).hex()
        return cls(client, volume_id, pin_id, client.pin(volume_id, pin_id))

    def directories(
        self, node: Node, path: str, name: Optional[bytes], rows: int
    ) -> Callable[[], Tuple[List[Names], Optional[Entry]]]:
        """Return what asks for the names in a directory, and in some beside it.

        Args:
            node: the directory; the tree's lock is held.
            path: of it.
            name: is wanted in any case.
            rows: how many names at most.
        """
        after = node.rest.after if node.rest is not None else None
        paths = [path]
        if after is None and rows > _LEAST_ROWS:
            paths += self._others(node, min(_MOST_PATHS - 1, rows // _ROWS_OF_A_PATH))
        text = None if name is None else from_bytes(name)
        return lambda: self._client.directories(self._volume_id, self.pin_id, paths, rows, after, text)

    def _others(self, node: Node, count: int) -> List[str]:
        """Return directories beside one, not listed either: who walks through a tree is there next."""
        parent = node.parent
        if parent is None or not parent.children:
            return []
        beside = self._beside.get(parent.ino)
        if beside is None:
            beside = deque(x for x in parent.children.values() if x.kind == DIRECTORY)
            self._beside[parent.ino] = beside
        while beside and (beside[0].rest is None or beside[0].parent is not parent):
            beside.popleft()
        above = path_of(parent)
        return [
            above + from_bytes(other.name)
            for other in itertools.islice(beside, count)
            if other is not node and other.rest is not None and other.parent is parent
        ]

    def renew(self) -> None:
        """Have it kept for longer. Raises Refused, OSError."""
        self._client.renew(self._volume_id, self.pin_id)

    def drop(self, timeout: float) -> None:
        """Say that nobody reads it any more. Raises Refused, OSError."""
        self._client.with_timeout(timeout).unpin(self._volume_id, self.pin_id)


def path_of(node: Node) -> str:
    """Return the path of a directory and the slash behind it; nothing for the top."""
    parts: List[bytes] = []
    while node.parent is not None:
        parts.append(node.name)
        node = node.parent
    return from_bytes(b"".join(part + b"/" for part in reversed(parts)))


def unlisted(node: Node) -> Node:
    """Let a directory be one whose names are not here."""
    node.rest = Rest()
    return node


def raw_name(entry: Entry) -> bytes:
    """Return an entry's name in its directory."""
    return to_bytes(entry.path.rpartition("/")[2])
