"""The files of a NetworkFileSystem over HTTP: blocking, in any thread, standard library only.

Each request is ``POST /v1/nfs/{object_id}/{verb}``; its body begins with a line of ASCII JSON, which holds
names that are no UTF-8. What is written follows that line; what is read is the whole answer.
"""

import json
import os
import re
import time
from typing import Any, BinaryIO, Callable, Iterator, List, NamedTuple, Union

from .asking import Refused, again, checked, pauses
from .transport import Answer, BlobClient

FILE, DIRECTORY, SYMLINK, FIFO, SOCKET = 1, 2, 3, 4, 5
MOUNTED_AT = "/modal-nfs"
"""Where an allocation has the Nomad volume with all of them; its containers see their own alone."""
_GLOB = re.compile(r"[*?\[]")
_PART = 1 << 20


class Listed(NamedTuple):
    """An entry of a listing; ``mtime`` in seconds, ``size`` in bytes."""

    path: str
    kind: int
    size: int
    mtime: int


def is_glob(path: str) -> bool:
    """Say whether a path is a pattern of paths."""
    return _GLOB.search(path) is not None


class NfsClient:
    """The NetworkFileSystems of a dispatcher.

    Args:
        address: the server URL.
        token: the bearer token, or what gives it anew for each call.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self, address: str, token: Union[str, Callable[[], str]] = "", timeout: float = 600.0
    ) -> None:
        self._http = BlobClient(address, token, timeout)

    def list(self, object_id: str, path: str) -> List[Listed]:
        """Return what is in a directory, or matches a glob. Raises Refused, OSError."""
        answer = again(lambda: self._ask(object_id, "list", {"path": path}))
        return [Listed(*entry) for entry in json.loads(answer)["entries"]]

    def remove(self, object_id: str, path: str, recursive: bool) -> None:
        """Remove a file, or a directory with all that is in it. Raises Refused, OSError."""
        lost = False
        for pause in pauses():
            try:
                self._ask(object_id, "remove", {"path": path, "recursive": recursive})
            except OSError:
                if pause is None:
                    raise
                lost = True
                time.sleep(pause)
            except Refused as error:
                # The answer to an earlier attempt was lost, and not what it did.
                if not (lost and error.kind == "FileNotFoundError"):
                    raise
                return
            else:
                return

    def read(self, object_id: str, path: str) -> Answer:
        """Return an open answer that gives the bytes of a file. Raises Refused, OSError."""
        answer: Answer = again(lambda: self._open(object_id, path))
        return answer

    def write(
        self, object_id: str, path: str, file: BinaryIO, progress: Callable[[int], None] = lambda size: None
    ) -> int:
        """Write what an open file still has, all at once, and return how many bytes that was.

        A file that cannot be read a second time is sent once only.

        Args:
            object_id: ``sv-...``.
            path: where it goes.
            file: open for reading bytes.
            progress: gets the number of bytes after each part.

        Raises:
            Refused: a directory is there, or the NetworkFileSystem is gone.
            OSError: the dispatcher could not be reached.
        """
        start = file.tell() if _seekable(file) else None

        def send() -> bytes:
            if start is not None:
                file.seek(start)
            return self._ask(object_id, "write", {"path": path}, _Body(file, progress))

        answer = send() if start is None else again(send)
        return int(json.loads(answer)["size"])

    def _open(self, object_id: str, path: str) -> Answer:
        answer = self._http.open("POST", _where(object_id, "read"), _head({"path": path}))
        if answer.status >= 300:
            with answer:
                checked(answer.status, answer.read())
        return answer

    def _ask(self, object_id: str, verb: str, request: Any, content: Any = None) -> bytes:
        head = _head(request)
        if content is None:
            return checked(*self._http.exchange("POST", _where(object_id, verb), head))
        return checked(*self._http.exchange("POST", _where(object_id, verb), _after(head, content)))


class _Body:
    """The rest of an open file, in parts, each one told of."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]) -> None:
        self._file = file
        self._progress = progress

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                part = self._file.read(_PART)
            except OSError as error:
                # Not the connection's fault: to try again would help nobody.
                raise Refused("OSError", f"the file cannot be read: {error}") from error
            if not part:
                return
            if not isinstance(part, bytes):
                raise Refused("InvalidError", "the file gives no bytes: open it with mode 'rb'")
            yield part
            self._progress(len(part))


def _after(head: bytes, content: Any) -> Iterator[bytes]:
    yield head
    yield from content


def _seekable(file: Any) -> bool:
    try:
        return bool(file.seekable())
    except AttributeError:
        return False


def _where(object_id: str, verb: str) -> str:
    return f"/v1/nfs/{object_id}/{verb}"


def _head(request: Any) -> bytes:
    return json.dumps(request).encode() + b"\n"


def file_name(file: Any) -> str:
    """Return the name that an open file has on its disk; empty when it has none."""
    name = getattr(file, "name", "")
    return os.path.basename(os.fsdecode(name)) if isinstance(name, (str, bytes)) else ""
