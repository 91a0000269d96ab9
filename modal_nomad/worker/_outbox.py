"""Outputs on their way to the dispatcher: gathered, encoded as one frame, sent in order after the logs."""

import struct
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

from .._execution_context import current_work
from ..wire import frames, serialization
from ._session import Session

MAX_OUTPUTS = 64
MAX_BYTES = 256 * 1024

Work = Tuple[Any, str, int, int, bytes, str]
"""A leased input: lease, call id, index, flags, payload, method of a class (empty for a function)."""
Output = Tuple[Any, int, int, bytes]
"""An output: lease, status, flags, payload."""

_LENGTH = struct.Struct(">I")
_ATTEMPTS = (0.2, 1.0, None)


class Outbox:
    """Outputs of one lane. Its lane appends; the lane and the reader thread flush.

    Attributes:
        items: what waits; ``items.append`` is the hot path.
        seconds: of user code behind the waiting outputs.
    """

    def __init__(self, session: Session, sync_logs: Callable[[], None]) -> None:
        self.items: Deque[Output] = deque()
        self.seconds = 0.0
        self._session = session
        self._sync_logs = sync_logs
        self._lock = threading.Lock()
        self._sending: List[Output] = []

    def flush(self, sync_logs: bool = True) -> None:
        """Send what waits, after what was printed until now."""
        with self._lock:
            self._flush(sync_logs)

    def try_flush(self) -> None:
        """As ``flush``, unless another thread is at it; leaves alone what Python's streams buffer."""
        if self._lock.acquire(blocking=False):
            try:
                self._flush(False)
            finally:
                self._lock.release()

    def leases(self) -> List[Any]:
        """Return the leases whose outputs are here."""
        return [item[0] for item in self._sending + list(self.items)]

    def _flush(self, sync_logs: bool) -> None:
        items = self.items
        if not items:
            return
        if sync_logs:
            self._sync_logs()
        # Only who holds the lock takes away, so the count cannot shrink under us.
        self._sending = batch = [items.popleft() for _ in range(len(items))]
        seconds, self.seconds = self.seconds, 0.0
        leases = [item[0] for item in batch]
        usage = self._session.cpu.spent(seconds)
        self._session.send_kept(_done_frame(leases, batch, seconds, usage), leases)
        self._sending = []


def _done_frame(
    leases: List[int], batch: List[Output], seconds: float, usage: Optional[List[float]]
) -> bytes:
    if len(batch) == 1:
        lease, status, flags, payload = batch[0]
        head = f'{{"t":"done","x":[{lease}],"d":{seconds:.6f},"z":[{len(payload)}]'
        if usage is not None:
            head += f',"u":{usage}'
        if status:
            head += f',"s":[{status}]'
        if flags:
            head += f',"f":[{flags}]'
        return frames.encode_head(head + "}", payload)
    # A list of integers prints as JSON: several times faster than the general encoder.
    payloads = [item[3] for item in batch]
    head = f'{{"t":"done","x":{leases},"d":{seconds:.6f},"z":{[len(p) for p in payloads]}'
    if usage is not None:
        head += f',"u":{usage}'
    if any(item[1] for item in batch):
        head += f',"s":{[item[1] for item in batch]}'
    if any(item[2] for item in batch):
        head += f',"f":{[item[2] for item in batch]}'
    header = (head + "}").encode()
    return b"".join((_LENGTH.pack(len(header)), header, *payloads))


class Values:
    """Inputs to arguments, results to outputs; what is large goes by way of blobs.

    Args:
        get: returns a blob's bytes.
        put: stores bytes, returns their name.
        get_all: returns blobs by their names.

    Attributes:
        before_failure: called when an input has failed, before anybody is told.
    """

    def __init__(
        self,
        get: Callable[[str], bytes],
        put: Callable[[bytes], str],
        get_all: Callable[[Sequence[str]], Dict[str, bytes]],
    ) -> None:
        self._get = get
        self._put = put
        self._get_all = get_all
        self.before_failure: Callable[[], None] = _nothing

    def fetch(self, payload: bytes) -> bytes:
        """Return the bytes of the blob that a payload names."""
        return self.fetch_name(payload.decode("ascii", "replace"))

    def fetch_name(self, name: str) -> bytes:
        """Return a blob's bytes."""
        data: bytes = _attempt(lambda: self._get(name), "a blob cannot be fetched")
        return data

    def fetch_all(self, names: Sequence[str]) -> Dict[str, bytes]:
        """Return blobs by their names."""
        found: Dict[str, bytes] = _attempt(lambda: self._get_all(names), "a blob cannot be fetched")
        return found

    def output(self, lease: Any, status: int, data: bytes) -> Output:
        """Return the output of encoded data, by reference where it is too large for a frame."""
        if len(data) <= frames.INLINE_LIMIT:
            return (lease, status, 0, data)
        try:
            name = _attempt(lambda: self._put(data), f"a result of {len(data):,} bytes cannot be stored")
        except Exception as error:
            return (lease, frames.FAILURE, 0, pack(error))
        return (lease, status, frames.FLAG_BLOB, name.encode())

    def failure(self, lease: Any, error: BaseException) -> Output:
        """Return the output of an exception; that of a spawned call is in the container's log, too."""
        self.before_failure()
        work: Any = current_work.get()
        if work is not None and work[0] == lease and work[3] & frames.FLAG_SPAWNED:
            # Perhaps nobody ever asks for the result, least of all for a scheduled one.
            _show(error)
        return self.output(lease, frames.FAILURE, pack(error))


def _nothing() -> None: ...


def _show(error: BaseException) -> None:
    import sys
    import traceback

    from ..wire import tracebacks

    # A redirected or broken stderr is the user's; it must not cost the output.
    with suppress(Exception):
        tb = error.__traceback__
        while tb is not None and tracebacks.is_runtime(tb.tb_frame.f_code.co_filename):
            tb = tb.tb_next
        sys.stderr.write("".join(traceback.format_exception(type(error), error, tb)))


def pack(error: BaseException) -> bytes:
    """Serialize an exception; one that resists is described."""
    if isinstance(error, MemoryError):
        from ._limits import explain

        explain(error)
    try:
        return serialization.pack_exception(error)
    except Exception as failure:
        from ..exception import ExecutionError

        return serialization.pack_exception(
            ExecutionError(f"an exception of type {type(error).__qualname__} cannot be sent: {failure!r}")
        )


def stopped(lease: Any, status: int, timeout: float) -> Output:
    """Return the output of an input that was cancelled or ran too long."""
    if status == frames.TERMINATED:
        return (lease, status, 0, b"the input was cancelled")
    return (lease, status, 0, f"the input ran longer than its timeout of {timeout:g} s".encode())


def _attempt(action: Callable[[], Any], trouble: str) -> Any:
    from ..exception import InternalFailure

    error: Optional[Exception] = None
    for delay in _ATTEMPTS:
        try:
            return action()
        except KeyError as missing:
            raise InternalFailure(f"{trouble}: the dispatcher has no blob {missing}") from missing
        except OSError as failure:
            error = failure
        if delay is not None:
            time.sleep(delay)
    raise InternalFailure(f"{trouble}: {error}") from error
