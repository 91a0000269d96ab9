"""The Function that a build step of an Image is: it runs the user's, and sends what that has changed.

It is called like any other Function, so whatever holds for those holds for it. What it returns is the name
of a blob: the JSON object with the ``chunks`` of a tar archive and the names that are ``removed``.
"""

import hashlib
import inspect
import json
import os
import signal
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Deque, Iterator, List, Mapping, Set, cast

from ..exception import FunctionTimeoutError
from ..wire.serialization import loads
from ..wire.spec import FunctionSpec
from ..wire.transport import BlobClient
from ._layer_tree import Difference, Tree, left_out
from ._loader import load_function
from ._session import Settings

CHUNK_BYTES = 8 << 20
_AT_ONCE = 4
_PAUSES = (0.5, 2.0, 5.0, 15.0)


def run(told: Mapping[str, Any]) -> str:
    """Run a function and return the name of what it has changed.

    Args:
        told: its specification (``function``), the blob of its ``arguments``, its ``timeout`` in seconds, and
            ``shown``: the paths of Volumes, NetworkFileSystems and buckets.

    Raises:
        FunctionTimeoutError: it ran for too long.
        OSError: what it has changed cannot be sent.
        BaseException: whatever it raises itself.
    """
    settings = Settings(os.environ)
    blobs = settings.blobs()
    # All that the container has made of itself is in this look.
    before = Tree("/", left_out(told["shown"]))
    with _limited(told["timeout"]):
        _call(FunctionSpec.from_dict(told["function"]), told["arguments"], settings.code_dir, blobs)
    sys.stdout.flush()
    difference = Difference(before, Tree("/", left_out(told["shown"])))
    with _Sender(blobs) as sender:
        if difference.changed:
            difference.write(cast(Any, sender))
    if sender.position:
        sys.stderr.write(f"{sender.position / 1e6:,.1f} MB of changes are kept\n")
    body = {"chunks": sender.chunks, "removed": difference.names()}
    return _put(blobs, json.dumps(body).encode())


def _call(spec: FunctionSpec, arguments: str, code_dir: Any, blobs: BlobClient) -> None:
    function = load_function(spec, code_dir, blobs.get)
    args, kwargs = loads(blobs.get(arguments))
    result = function(*args, **kwargs)
    if inspect.iscoroutine(result):
        import asyncio

        asyncio.run(result)


@contextmanager
def _limited(timeout: float) -> Iterator[None]:
    """Hold the user's function to its time; what is sent afterwards has its own."""

    def over(number: int, frame: Any) -> None:
        raise FunctionTimeoutError(f"the function ran longer than its timeout of {timeout:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Sender:
    """A file whose bytes go to the blob store as they are written; nothing of it lies on a disk here.

    Args:
        blobs: the store.

    Attributes:
        chunks: the names of its parts, in order.
        position: how many bytes it has.
    """

    def __init__(self, blobs: BlobClient) -> None:
        self.chunks: List[str] = []
        self.position = 0
        self._blobs = blobs
        self._waiting = bytearray()
        self._known: Set[str] = set()
        self._sent: "Deque[Future[str]]" = deque()
        self._threads = ThreadPoolExecutor(_AT_ONCE)

    def write(self, data: bytes) -> int:
        """Take bytes. Raises OSError when earlier ones could not be sent."""
        self.position += len(data)
        self._waiting += data
        while len(self._waiting) >= CHUNK_BYTES:
            chunk = bytes(self._waiting[:CHUNK_BYTES])
            del self._waiting[:CHUNK_BYTES]
            self._send(chunk)
        return len(data)

    def tell(self) -> int:
        """Return how many bytes there are."""
        return self.position

    def _send(self, chunk: bytes) -> None:
        sha = hashlib.sha256(chunk).hexdigest()
        self.chunks.append(sha)
        if sha in self._known:
            # The holes of a sparse file are all the same.
            return
        self._known.add(sha)
        while len(self._sent) >= _AT_ONCE:
            self._sent.popleft().result()
        self._sent.append(self._threads.submit(_put, self._blobs, chunk))

    def __enter__(self) -> "_Sender":
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                if self._waiting:
                    self._send(bytes(self._waiting))
                for sent in self._sent:
                    sent.result()
        finally:
            self._threads.shutdown()


def _put(blobs: BlobClient, data: bytes) -> str:
    for pause in _PAUSES:
        try:
            return blobs.put(data)
        except ConnectionError:
            time.sleep(pause)
    return blobs.put(data)
