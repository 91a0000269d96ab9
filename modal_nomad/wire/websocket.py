"""RFC 6455 without sockets: bytes in, messages out.

The SDK's connection (asyncio), the container's (a blocking socket) and the dispatcher drive it.
"""

import base64
import hashlib
import os
import struct
from typing import List, Mapping, Optional, Tuple, Union

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MAX_MESSAGE_BYTES = 64 << 20
NO_KEY = b"\0\0\0\0"
"""Masks nothing. A key by chance keeps a program from writing what a proxy on the way takes for HTTP;
behind a Unix socket or TLS there is none that reads along.
"""
_SHORT = 4096
_FINAL_BINARY = 0x80 | BINARY


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


def encode(data: bytes, opcode: int = BINARY, masked: bool = True, key: Optional[bytes] = None) -> bytes:
    """Return one final frame: masked as a client must, or plain as a server must.

    Args:
        data: the message.
        opcode: what it is.
        masked: a client sends it.
        key: the masking key, by chance where none is given; ``NO_KEY`` leaves the bytes as they are.
    """
    size = len(data)
    first = 0x80 | opcode
    bit = 0x80 if masked else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = struct.pack(">BBH", first, bit | 126, size)
    else:
        head = struct.pack(">BBQ", first, bit | 127, size)
    if not masked:
        return head + data
    if key == NO_KEY:
        return head + NO_KEY + data
    if key is None:
        key = os.urandom(4)
    return head + key + mask(data, key)


def accept_key(key: str) -> str:
    """Return the ``Sec-WebSocket-Accept`` that answers a ``Sec-WebSocket-Key``."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID).digest()).decode()


def handshake(host: str, path: str, headers: Mapping[str, str]) -> Tuple[bytes, str]:
    """Return the upgrade request and the ``Sec-WebSocket-Accept`` that must answer it."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode(), accept_key(key)


class Messages:
    """Cuts a peer's byte stream into messages.

    Args:
        masked: the peer is a client, whose frames are masked; a server's are not.
        limit: bytes of the largest message.
    """

    def __init__(self, masked: bool, limit: int = MAX_MESSAGE_BYTES) -> None:
        self._mask_bit = 0x80 if masked else 0
        self._limit = limit
        self._short = min(limit, _SHORT) + 1
        self._buffer = bytearray()
        self._fragments: List[bytes] = []
        self._fragment_bytes = 0
        self._opcode = 0

    def feed(self, data: bytes) -> List[Tuple[int, bytes]]:
        """Take bytes, return ``(opcode, payload)`` of each whole message.

        Raises:
            WebSocketError: a broken stream.
        """
        buffer = self._buffer
        if not buffer and not self._fragments and len(data) > 1 and data[0] == _FINAL_BINARY:
            # A short message mostly comes alone and whole.
            start, size = 2, data[1] ^ self._mask_bit
            if size >= 126:
                start, size = 4, int.from_bytes(data[2:4], "big") if size == 126 else self._short
            if size < self._short:
                if not self._mask_bit:
                    if len(data) == start + size:
                        return [(BINARY, data[start:])]
                elif len(data) == start + 4 + size:
                    key, payload = data[start : start + 4], data[start + 4 :]
                    return [(BINARY, payload if key == NO_KEY else mask(payload, key))]
        source: Union[bytes, bytearray] = data
        if buffer:
            buffer += data
            source = buffer
        messages: List[Tuple[int, bytes]] = []
        position, end = 0, len(source)
        while end - position >= 2:
            first, second = source[position], source[position + 1]
            start = position + 2
            size = second & 0x7F
            if size >= 126:
                wide = 2 if size == 126 else 8
                if end - start < wide:
                    break
                size = int.from_bytes(source[start : start + wide], "big")
                start += wide
            if second & 0x80 != self._mask_bit or first & 0x70:
                raise WebSocketError("a frame is masked the wrong way, or extended")
            if size + self._fragment_bytes > self._limit:
                raise WebSocketError(f"a message is longer than {self._limit >> 20} MiB")
            if self._mask_bit:
                start += 4
            if end - start < size:
                break
            payload = bytes(memoryview(source)[start : start + size])
            if self._mask_bit:
                key = bytes(source[start - 4 : start])
                if key != NO_KEY:
                    payload = mask(payload, key)
            position = start + size
            opcode = first & 0x0F
            if opcode >= 8 or (first & 0x80 and not self._fragments):
                messages.append((opcode, payload))
                if opcode == CLOSE:
                    # Nothing counts after it.
                    position = end
            else:
                self._join(first, payload, messages)
        if source is buffer:
            del buffer[:position]
        elif position < end:
            buffer += memoryview(data)[position:]
        return messages

    def _join(self, first: int, payload: bytes, messages: List[Tuple[int, bytes]]) -> None:
        self._fragments.append(payload)
        self._fragment_bytes += len(payload)
        self._opcode = first & 0x0F or self._opcode
        if first & 0x80:
            messages.append((self._opcode, b"".join(self._fragments)))
            self._fragments.clear()
            self._fragment_bytes = 0


class Decoder:
    """A client's side of the stream: the answer to its handshake, then messages."""

    def __init__(self, accept: str) -> None:
        self._accept: Optional[str] = accept
        self._head = bytearray()
        self._messages = Messages(masked=False)

    @property
    def open(self) -> bool:
        """True when the handshake is done."""
        return self._accept is None

    def feed(self, data: bytes) -> List[Tuple[int, bytes]]:
        """Take bytes, return ``(opcode, payload)`` of each whole message.

        Raises:
            WebSocketError: a refused handshake or a broken stream.
        """
        if self._accept is None:
            return self._messages.feed(data)
        self._head += data
        if not self._read_handshake():
            return []
        return self._messages.feed(bytes(self._head))

    def _read_handshake(self) -> bool:
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > 65536:
                raise WebSocketError("the answer to the upgrade request is no HTTP answer")
            return False
        lines = bytes(self._head[:end]).decode("latin-1").split("\r\n")
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
        del self._head[: end + 4]
        self._accept = None
        return True
