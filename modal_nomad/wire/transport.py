"""Blocking sockets for the container: a WebSocket and a blob client, standard library only."""

import errno
import hashlib
import os
import socket
import threading
from collections import deque
from contextlib import suppress
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from . import websocket
from .address import Address, parse_address

_PIECE = 1 << 14
FULL = 507
"""The status with which a dispatcher says that it has no space for more."""


def open_socket(address: Address, timeout: Optional[float]) -> socket.socket:
    """Connect to a dispatcher. Raises OSError."""
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((address.host, address.port), timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if address.tls:
        from .tls import client_context

        return client_context().wrap_socket(sock, server_hostname=address.host)
    return sock


class SyncWebSocket:
    """A WebSocket for threads: any may send, one receives."""

    def __init__(self, sock: socket.socket, decoder: websocket.Decoder) -> None:
        self._sock = sock
        self._decoder = decoder
        self._messages: Deque[bytes] = deque()
        self._send_lock = threading.Lock()
        self._closed = False
        self._poll: Any = None
        # One TLS session must not read and write at once; a plain socket may.
        self._tls = hasattr(sock, "pending")
        self._alarm = -1
        self._key: Optional[bytes] = None
        self.alarms = b""

    @classmethod
    def connect(
        cls, address: str, path: str = "/v1/connect", headers: Mapping[str, str] = {}, timeout: float = 10.0
    ) -> "SyncWebSocket":
        """Connect and shake hands.

        Args:
            address: the server URL.
            path: of the endpoint.
            headers: further HTTP headers.
            timeout: seconds for all of it.

        Raises:
            OSError: nobody listens, or the server refused (then a WebSocketError with ``status``).
        """
        where = parse_address(address)
        sock = open_socket(where, timeout)
        try:
            request, accept = websocket.handshake(where.authority, path, headers)
            ws = cls(sock, websocket.Decoder(accept))
            ws._key = where.mask_key
            sock.sendall(request)
            while not ws._decoder.open:
                ws._read()
            # Sends block for as long as back-pressure lasts; reads wait in select with their own time.
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return ws

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def send(self, data: bytes) -> None:
        """Send one binary message. Raises ConnectionError when the connection is gone."""
        frame = websocket.encode(data, key=self._key)
        with self._send_lock:
            try:
                self._sock.sendall(frame)
            except OSError as error:
                raise ConnectionError(f"the connection to the dispatcher is lost: {error}") from error

    def recv(self, timeout: Optional[float] = None, alarm: int = -1) -> Optional[bytes]:
        """Return the next message, or None when ``timeout`` seconds pass without one.

        Args:
            timeout: seconds, or None for ever.
            alarm: the reading end of a pipe; when there is something in it, that is read and None returned.

        Raises:
            ConnectionError: the connection is gone.
        """
        messages = self._messages
        while not messages:
            if self._closed:
                raise ConnectionError("the dispatcher closed the connection")
            if timeout is not None and not self._readable(timeout, alarm):
                return None
            self._read()
        return messages.popleft()

    def let_go(self) -> None:
        """Close this process's descriptor of the socket alone: another process goes on using it."""
        self._closed = True
        os.close(self._sock.detach())

    def close(self) -> None:
        """Close the socket; a thread in ``recv`` gets a ConnectionError."""
        self._closed = True
        try:
            with self._send_lock:
                self._sock.settimeout(1)
                self._sock.sendall(websocket.encode(b"\x03\xe8", websocket.CLOSE))
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def _readable(self, timeout: float, alarm: int) -> bool:
        pending = getattr(self._sock, "pending", None)
        if pending is not None and pending():
            return True
        if self._poll is None or alarm != self._alarm:
            import select

            # Anew when there is an alarm to watch: the handshake is read without one.
            self._poll, self._alarm = select.poll(), alarm
            try:
                self._poll.register(self._sock, select.POLLIN)
                if alarm >= 0:
                    self._poll.register(alarm, select.POLLIN)
            except (OSError, ValueError) as error:
                raise ConnectionError("the connection is closed") from error
        ready = self._poll.poll(timeout * 1000)
        if not ready:
            return False
        if ready[0][0] == alarm or len(ready) > 1:
            self.alarms += os.read(alarm, 4096)
            return False
        return True

    def _read(self) -> None:
        try:
            data = self._sock.recv(_PIECE) if not self._tls else self._recv_tls()
        except OSError as error:
            self._closed = True
            raise ConnectionError(f"the connection to the dispatcher is lost: {error}") from error
        if data is None:
            return
        if not data:
            self._closed = True
            if not self._decoder.open:
                raise websocket.WebSocketError("the server closed the connection during the handshake")
        for opcode, payload in self._decoder.feed(data):
            if opcode == websocket.BINARY:
                self._messages.append(payload)
            elif opcode == websocket.PING:
                with self._send_lock:
                    self._sock.sendall(websocket.encode(payload, websocket.PONG))
            elif opcode == websocket.CLOSE:
                self._closed = True

    def _recv_tls(self) -> Optional[bytes]:
        """Return what there is, None when it was no data: TLS has messages of its own."""
        import ssl

        if not self._decoder.open:
            return self._sock.recv(_PIECE)
        with self._send_lock:
            # Never waits: a sender would wait for the lock as long.
            self._sock.settimeout(0)
            try:
                return self._sock.recv(_PIECE)
            except ssl.SSLWantReadError:
                return None
            finally:
                self._sock.settimeout(None)


class Answer:
    """An HTTP answer whose body is still to be read; a context manager that ends the connection."""

    def __init__(self, connection: Any, response: Any) -> None:
        self._connection = connection
        self._response = response
        self.status = int(response.status)

    def read(self, size: Optional[int] = None) -> bytes:
        """Return up to ``size`` bytes of the body, nothing at its end. Raises OSError when it breaks off."""
        from http.client import HTTPException

        try:
            data: bytes = self._response.read(size) if size is not None else self._response.read()
        except HTTPException as error:
            raise ConnectionError(f"the dispatcher broke off a transfer: {error!r}") from error
        if not data and size and self._response.length:
            raise ConnectionError("the dispatcher broke off a transfer: the end is missing")
        return data

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class BlobClient:
    """Puts and gets content-addressed blobs over HTTP; one connection a call, safe in any thread.

    Args:
        address: the server URL.
        token: the bearer token, or what gives it anew for each call.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self, address: str, token: Union[str, Callable[[], str]] = "", timeout: float = 60.0
    ) -> None:
        self._address = parse_address(address)
        self._token = token
        self._timeout = timeout
        self._follows = True

    def put(self, data: bytes) -> str:
        """Store bytes, return their SHA-256 (64 hex digits). Raises OSError."""
        sha = hashlib.sha256(data).hexdigest()
        self._request("PUT", sha, data)
        return sha

    def put_all(self, contents: Sequence[bytes]) -> List[str]:
        """Store small blobs in one request, return their names. Raises OSError."""
        import json

        from . import blob_lists

        status, data = self.exchange("POST", "/v1/blobs/put", blob_lists.pack(contents))
        stored: List[str] = json.loads(_good(status, data, "POST", "put"))["stored"]
        return stored

    def put_file(self, path: Union[str, "os.PathLike[str]"], sha: str) -> bool:
        """Store a file of a known SHA-256; False where it has changed meanwhile. Raises OSError."""
        with open(path, "rb") as file:
            size = {"Content-Length": str(os.fstat(file.fileno()).st_size)}
            status, data = self.exchange("PUT", f"/v1/blobs/{sha}", file, size)
        if status == 400:
            return False
        _good(status, data, "PUT", sha)
        return True

    def get(self, sha: str) -> bytes:
        """Return a blob's bytes. Raises KeyError when there is none, OSError."""
        if self._follows:
            status, data = self.exchange("GET", f"/v1/blobs/{sha}", headers={"Modal-Blob-Redirect": "1"})
            if status != 307:
                return _good(status, data, "GET", sha)
            from ._bucket import follow

            try:
                return follow(data.decode(), sha, self._timeout)
            except OSError:
                # The dispatcher reaches it, or says why not.
                self._follows = False
        return self._request("GET", sha)

    def get_all(self, hashes: Sequence[str]) -> Dict[str, bytes]:
        """Return blobs by their names; small ones come many in one answer. Raises KeyError, OSError."""
        import json

        from . import blob_lists

        found: Dict[str, bytes] = {}
        left = list(dict.fromkeys(hashes))
        while len(left) > 1:
            asked = left[: blob_lists.MOST_NAMES]
            status, body = self.exchange("POST", "/v1/blobs/some", json.dumps(asked).encode())
            try:
                contents = blob_lists.unpack(_good(status, body, "POST", "some"))
            except ValueError as error:
                raise ConnectionError(f"the dispatcher broke off a blob transfer: {error}") from None
            if not 0 < len(contents) <= len(asked):
                raise ConnectionError(f"{len(contents)} blobs came for {len(asked)}")
            for place, data in enumerate(contents):
                sha = asked[place]
                found[sha] = self.get(sha) if data is None else data
            del left[: len(contents)]
        for sha in left:
            found[sha] = self.get(sha)
        return found

    def exists(self, sha: str) -> bool:
        """Tell whether the server has a blob."""
        try:
            self._request("HEAD", sha)
        except KeyError:
            return False
        return True

    def exchange(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
    ) -> Tuple[int, bytes]:
        """Make one HTTP request to the dispatcher and return its status and body. Raises OSError."""
        with self.open(method, path, body, headers) as answer:
            return answer.status, answer.read()

    def open(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Answer:
        """Make one HTTP request to the dispatcher and return its answer unread. Raises OSError."""
        # It brings all of email and ssl: most containers never move a blob.
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection(self._address.authority)
        connection.sock = open_socket(self._address, self._timeout)
        token = self._token() if callable(self._token) else self._token
        authorized = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            # Who refuses a long body early answers, and takes no more of it.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, {**authorized, **headers})
            return Answer(connection, connection.getresponse())
        except HTTPException as error:
            connection.close()
            raise ConnectionError(f"the dispatcher broke off a blob transfer: {error!r}") from error
        except BaseException:
            connection.close()
            raise

    def _request(self, method: str, sha: str, body: Optional[bytes] = None) -> bytes:
        return _good(*self.exchange(method, f"/v1/blobs/{sha}", body), method, sha)


def _good(status: int, data: bytes, method: str, sha: str) -> bytes:
    if status == 404:
        raise KeyError(sha)
    told = data[:500].decode("utf-8", "replace")
    if status == FULL:
        raise OSError(errno.ENOSPC, told)
    if status >= 300:
        raise ConnectionError(f"the dispatcher answered {status} to {method} of blob {sha}: {told}")
    return data
