"""The worker's one connection: hello, frames out, reconnect, and nothing lost on the way."""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Sequence, Tuple

from ..wire import frames
from ..wire.transport import BlobClient, SyncWebSocket
from ._usage import CpuClock

HEARTBEAT = 5.0
DEFAULT_GRACE = 30.0
FIRST_HEARTBEAT = 1.0
RECONNECT_FOR = 60.0
_FIRST_DELAY = 0.05
_LAST_DELAY = 2.0
_ANSWER_WITHIN = 10.0
_LOG_BACKLOG = 1 << 20


class Refused(Exception):
    """The dispatcher does not want this container; the text says why."""


class Gone(Exception):
    """The dispatcher could not be reached for too long."""


class Settings:
    """What the engine tells a container through environment variables.

    Args:
        environ: the process's environment.

    Raises:
        KeyError: a variable that every container has is missing.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.address = environ["MODAL_SERVER_URL"]
        self.container = environ["MODAL_TASK_ID"]
        self.code_dir = environ.get("MODAL_CODE_DIR")
        self.runtime_dir = environ.get("MODAL_RUNTIME_DIR")
        self.snapshot = environ.get("MODAL_SNAPSHOT", "")
        # Said where a snapshot lives in an allocation, and this long without being asked.
        self.snapshot_seconds = float(environ.get("MODAL_SNAPSHOT_SECONDS") or 0)
        self.grace = float(environ.get("MODAL_KILL_TIMEOUT") or DEFAULT_GRACE)
        self._token = environ.get("MODAL_WORKER_TOKEN", "")
        leased = json.loads(environ.get("MODAL_SECRET_LEASES") or "{}")
        self.secret_leases: List[str] = leased.get("leases") or []
        self.secrets_file = str(leased.get("file") or "")
        self._token_file = environ.get("MODAL_WORKER_TOKEN_FILE")
        # One for all: it learns whether a bucket can be reached from here.
        self._blobs: Optional[BlobClient] = None

    def token(self) -> str:
        """Return the token; a file is read again each time because the engine renews it in place."""
        if self._token_file:
            with open(self._token_file, encoding="utf-8") as file:
                return file.read().strip()
        return self._token

    def blobs(self) -> BlobClient:
        """Return a client of the dispatcher's blobs."""
        if self._blobs is None:
            self._blobs = BlobClient(self.address, self.token)
        return self._blobs


class Session:
    """The connection to the dispatcher. One thread receives (and reconnects), any thread sends."""

    def __init__(self, settings: Settings, version: str) -> None:
        self._settings = settings
        self._version = version
        self._ws: Optional[SyncWebSocket] = None
        self._lock = threading.Lock()
        self._unsent: List[Tuple[bytes, Sequence[Any]]] = []
        self._unsent_logs: Deque[bytes] = Deque()
        self._unsent_log_bytes = 0
        self._ready = False
        # Where requests are taken, of a container that has endpoints.
        self.web: Optional[Tuple[str, int]] = None
        # Which method of a class prints now, where that is known.
        self.method = ""
        self._alarm = os.pipe()
        for end in self._alarm:
            os.set_blocking(end, False)
        self.alarms = b""
        self.slots = 1
        self.cpu = CpuClock()

    def connect(self, leases: Callable[[], List[Any]] = list) -> Dict[str, Any]:
        """Connect (again), greet, send what could not be sent before; return the welcome's header.

        Args:
            leases: gives the leases that this worker still runs or holds outputs of.

        Raises:
            Refused: the dispatcher said no.
            Gone: nobody answered for ``RECONNECT_FOR`` seconds.
        """
        with self._lock:
            self._drop()
        give_up = time.monotonic() + RECONNECT_FOR
        delay = _FIRST_DELAY
        while True:
            try:
                return self._greet(leases)
            except (OSError, frames.FrameError) as error:
                status = getattr(error, "status", None)
                if status in (401, 403):
                    raise Refused(f"the dispatcher refused the container's token ({error})") from error
                if time.monotonic() + delay > give_up:
                    raise Gone(f"no dispatcher at {self._settings.address}: {error}") from error
            time.sleep(delay)
            delay = min(_LAST_DELAY, delay * 2)

    def _greet(self, leases: Callable[[], List[Any]]) -> Dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._settings.token()}"}
        ws = SyncWebSocket.connect(self._settings.address, "/v1/connect", headers, _ANSWER_WITHIN)
        try:
            hello: Dict[str, Any] = {
                "t": "hello",
                "v": frames.PROTOCOL_VERSION,
                "role": "worker",
                "version": self._version,
                "container": self._settings.container,
                "slots": self.slots,
                "pid": os.getpid(),
            }
            if self._settings.secret_leases:
                hello["secrets"] = self._settings.secret_leases
            held = leases()
            if held:
                hello["leases"] = held
            ws.send(frames.encode(hello))
            data = ws.recv(_ANSWER_WITHIN)
            if data is None:
                raise ConnectionError(f"no welcome within {_ANSWER_WITHIN:g} s")
            header, payloads = frames.decode(data)
            if header["t"] == "refused":
                reason = header.get("e") or ["Error", "no reason given"]
                raise Refused(": ".join(str(part) for part in reason))
            if header["t"] != "welcome":
                raise Refused(f"expected a welcome, got {header['t']!r}: is this a modal_nomad dispatcher?")
            with self._lock:
                if self._ready:
                    ws.send(frames.encode(self._ready_frame()))
                while self._unsent_logs:
                    ws.send(self._unsent_logs[0])
                    self._unsent_log_bytes -= len(self._unsent_logs.popleft())
                while self._unsent:
                    ws.send(self._unsent[0][0])
                    del self._unsent[0]
                self._ws = ws
        except BaseException:
            ws.close()
            raise
        # Opaque bytes, which JSON cannot hold.
        header["params"] = payloads[0] if payloads else None
        return header

    def unsent_leases(self) -> List[Any]:
        """Return the leases whose outputs wait for the next connection."""
        with self._lock:
            return [lease for _, leases in self._unsent for lease in leases]

    def receive(self, timeout: float) -> Optional[bytes]:
        """Return the next frame's bytes, None after ``timeout`` or ``wake``.

        Raises:
            ConnectionError: the connection is lost.
        """
        ws = self._ws
        if ws is None:
            raise ConnectionError("not connected")
        data = ws.recv(timeout, self._alarm[0])
        if ws.alarms:
            self.alarms += ws.alarms
            ws.alarms = b""
        return data

    def wake(self) -> None:
        """Have who is in ``receive``, or comes there next, return. Safe in a signal handler."""
        with suppress(BlockingIOError):
            os.write(self._alarm[1], b"\0")

    def wake_on_signals(self) -> None:
        """Have signals wake who is in ``receive``, even where no handler can run. In the main thread."""
        signal.set_wakeup_fd(self._alarm[1], warn_on_full_buffer=False)

    def signals(self) -> bytes:
        """Return the numbers of the signals that came since the last call, a byte each."""
        if not self.alarms:
            return b""
        alarms, self.alarms = self.alarms, b""
        return alarms.replace(b"\0", b"")

    def send(self, header: Dict[str, Any], payloads: Sequence[bytes] = ()) -> bool:
        """Send a frame that means nothing on another connection; False when there is none."""
        ws = self._ws
        if ws is None:
            return False
        try:
            ws.send(frames.encode(header, payloads))
        except OSError:
            return False
        return True

    def web_load(self, running: int, ended: int, seconds: float) -> None:
        """Say how many requests run here, how many ended, and how long these took."""
        self.send({"t": "web", "n": running, "e": ended, "d": seconds})

    def ready(self, slots: int) -> None:
        """Say, now and after each reconnect, that inputs may come."""
        self.slots = slots
        self.cpu.start()
        with self._lock:
            self._ready = True
            self.send(self._ready_frame())

    def _ready_frame(self) -> Dict[str, Any]:
        frame: Dict[str, Any] = {"t": "ready", "slots": self.slots}
        if self.web is not None:
            frame["web"] = list(self.web)
        return frame

    def send_kept(self, data: bytes, leases: Sequence[Any]) -> None:
        """Send encoded outputs; keep them for the next connection when this one is gone."""
        ws = self._ws
        while ws is not None:
            try:
                ws.send(data)
                return
            except OSError:
                pass
            # A reconnect may have happened meanwhile: that connection has the leases in its hello.
            ws = self._ws if self._ws is not ws else None
        with self._lock:
            if self._ws is None or not self._resend(data):
                self._unsent.append((data, leases))

    def _resend(self, data: bytes) -> bool:
        assert self._ws is not None
        try:
            self._ws.send(data)
        except OSError:
            return False
        return True

    def send_log(self, stream: int, text: bytes) -> None:
        """Send what user code printed; keep up to 1 MiB of it while there is no connection."""
        header = {"t": "log", "s": stream, "ts": time.time()}
        if self.method:
            header["m"] = self.method
        data = frames.encode(header, [text])
        ws = self._ws
        if ws is not None:
            try:
                ws.send(data)
                return
            except OSError:
                pass
        with self._lock:
            # The engine's own log holds all of it: what does not fit here is not lost for good.
            if self._unsent_log_bytes + len(data) <= _LOG_BACKLOG:
                self._unsent_logs.append(data)
                self._unsent_log_bytes += len(data)

    def let_go(self) -> None:
        """Forget the connection in a fork of its process, without a word to the other end."""
        ws, self._ws = self._ws, None
        if ws is not None:
            ws.let_go()

    def close(self) -> None:
        """Close the connection."""
        self.drop()

    def drop(self) -> None:
        """Give the connection up, so that ``receive`` raises until there is another."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        ws, self._ws = self._ws, None
        if ws is not None:
            ws.close()
