"""The client's half of RFC 6455 without sockets: bytes in, messages out.

Both the SDK's connection (asyncio) and the container's (a blocking socket) drive it.
"""

import base64
import hashlib
import os
import struct
from typing import Iterator, List, Mapping, Optional, Tuple

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MAX_MESSAGE_BYTES = 64 << 20


class WebSocketError(ConnectionError):
    """The peer broke the protocol or refused the handshake.

    Attributes:
        status: the HTTP status of a refused handshake, else 0.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def mask(data: bytes, key: bytes) -> bytes:
    """XOR data with a 4-byte key. One big-integer operation, many times faster than a byte loop."""
    size = len(data)
    if not size:
        return data
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")


def encode(data: bytes, opcode: int = BINARY) -> bytes:
    """Return one masked final frame."""
    key = os.urandom(4)
    size = len(data)
    first = 0x80 | opcode
    if size < 126:
        head = struct.pack(">BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack(">BBH", first, 0xFE, size)
    else:
        head = struct.pack(">BBQ", first, 0xFF, size)
    return head + key + mask(data, key)


def handshake(host: str, path: str, headers: Mapping[str, str]) -> Tuple[bytes, str]:
    """Return the upgrade request and the ``Sec-WebSocket-Accept`` that must answer it."""
    key = base64.b64encode(os.urandom(16))
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key.decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode(), accept


class Decoder:
    """Cuts a server's byte stream into the handshake's answer and then messages."""

    def __init__(self, accept: str) -> None:
        self._accept: Optional[str] = accept
        self._buffer = bytearray()
        self._fragments: List[bytes] = []
        self._opcode = 0

    @property
    def open(self) -> bool:
        """True when the handshake is done."""
        return self._accept is None

    def feed(self, data: bytes) -> Iterator[Tuple[int, bytes]]:
        """Take bytes, yield ``(opcode, payload)`` of each whole message.

        Raises:
            WebSocketError: a refused handshake or a broken stream.
        """
        buffer = self._buffer
        buffer += data
        if self._accept is not None and not self._read_handshake():
            return
        position = 0
        try:
            while True:
                available = len(buffer) - position
                if available < 2:
                    return
                first, second = buffer[position], buffer[position + 1]
                start = position + 2
                size = second & 0x7F
                if size == 126:
                    if available < 4:
                        return
                    size = int.from_bytes(buffer[start : start + 2], "big")
                    start += 2
                elif size == 127:
                    if available < 10:
                        return
                    size = int.from_bytes(buffer[start : start + 8], "big")
                    start += 8
                if second & 0x80 or first & 0x70:
                    raise WebSocketError("the server sent a masked or extended frame")
                if size > MAX_MESSAGE_BYTES:
                    raise WebSocketError("the server sent a message of over 64 MiB")
                if len(buffer) < start + size:
                    return
                payload = bytes(memoryview(buffer)[start : start + size])
                position = start + size
                opcode = first & 0x0F
                if opcode >= 8 or (first & 0x80 and not self._fragments):
                    yield opcode, payload
                else:
                    self._fragments.append(payload)
                    self._opcode = opcode or self._opcode
                    if first & 0x80:
                        whole = b"".join(self._fragments)
                        self._fragments.clear()
                        yield self._opcode, whole
        finally:
            del buffer[:position]

    def _read_handshake(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > 65536:
                raise WebSocketError("the answer to the upgrade request is no HTTP answer")
            return False
        lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        words = lines[0].split(" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            raise WebSocketError("what listens there does not speak HTTP")
        if words[1] != "101":
            raise WebSocketError(f"the server answered {' '.join(words[1:])}", int(words[1]))
        answer = dict(line.lower().split(":", 1) for line in lines[1:] if ":" in line)
        got = next(
            (x.split(":", 1)[1].strip() for x in lines[1:] if x.lower().startswith("sec-websocket-accept:")),
            "",
        )
        if "upgrade" not in answer or got != self._accept:
            raise WebSocketError("the server did not accept the upgrade to WebSocket")
        del self._buffer[: end + 4]
        self._accept = None
        return True
