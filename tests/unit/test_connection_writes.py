"""Callers' threads and the loop write one socket: every message arrives whole, whoever is cut short."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from modal_nomad.wire import frames, websocket
from modal_nomad.wire._call import Call
from modal_nomad.wire._client_socket import Socket
from modal_nomad.wire.connection import Connection


@pytest.fixture
async def both_ends() -> AsyncIterator[tuple[Connection, Socket, socket.socket]]:
    """A connection whose socket takes little at a time, and the other end of it."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    ours.setblocking(False)

    async def nowhere() -> Any:
        raise OSError("nobody listens")

    connection = Connection(nowhere, {"t": "hello"})
    decoder = websocket.Decoder("")
    _, peer = await asyncio.get_running_loop().create_connection(
        lambda: Socket(connection, decoder, b""), sock=ours
    )
    yield connection, peer, theirs
    peer.transport.abort()
    theirs.close()


def read(end: socket.socket, count: int) -> list[bytes]:
    messages = websocket.Messages(masked=True)
    got: list[bytes] = []
    while len(got) < count:
        data = end.recv(1 << 16)
        assert data
        got += [payload for _, payload in messages.feed(data)]
    return got


async def test_the_loop_does_not_write_into_a_message_that_a_caller_began(
    both_ends: tuple[Connection, Socket, socket.socket],
) -> None:
    connection, peer, theirs = both_ends
    large = os.urandom(1_500_000)
    caller = threading.Thread(target=connection._write_raw, args=(peer, websocket.encode(large)))
    caller.start()
    # It holds the loop up, so that what it could not write still waits there.
    caller.join()
    assert peer.queued
    connection._write_raw(peer, websocket.encode(b"from the loop"))
    assert await asyncio.to_thread(read, theirs, 2) == [large, b"from the loop"]


async def test_messages_of_many_threads_and_the_loop_arrive_whole(
    both_ends: tuple[Connection, Socket, socket.socket],
) -> None:
    connection, peer, theirs = both_ends
    dice = random.Random(7)
    sizes = [[int(10 ** dice.uniform(0, 5.3)) for _ in range(40)] for _ in range(5)]

    def message(writer: int, turn: int) -> bytes:
        return bytes((writer, turn)) * sizes[writer][turn]

    def write(writer: int) -> None:
        for turn in range(40):
            connection._write_raw(peer, websocket.encode(message(writer, turn)))

    async def write_on_the_loop() -> None:
        for turn in range(40):
            connection._write_raw(peer, websocket.encode(message(4, turn)))
            await asyncio.sleep(0)

    reading = asyncio.to_thread(read, theirs, 200)
    got, *_ = await asyncio.gather(
        reading, write_on_the_loop(), *(asyncio.to_thread(write, writer) for writer in range(4))
    )
    for writer in range(5):
        assert [m for m in got if m[0] == writer] == [message(writer, turn) for turn in range(40)]


async def test_a_message_torn_by_an_interrupt_is_followed_by_nothing(
    both_ends: tuple[Connection, Socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, peer, theirs = both_ends
    whole = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        whole(descriptor, data[: len(data) // 2])
        raise KeyboardInterrupt

    def write() -> None:
        with pytest.raises(KeyboardInterrupt):
            connection._write_raw(peer, websocket.encode(b"never whole"))

    monkeypatch.setattr(os, "write", interrupted)
    caller = threading.Thread(target=write)
    caller.start()
    caller.join()
    monkeypatch.setattr(os, "write", whole)
    connection._write_raw(peer, websocket.encode(b"another"))
    got = b""
    while data := await asyncio.to_thread(theirs.recv, 1 << 16):
        got += data
    assert len(got) < len(websocket.encode(b"never whole"))


async def test_what_a_caller_read_of_a_connection_that_is_lost_leaves_the_loop_alone(
    both_ends: tuple[Connection, Socket, socket.socket],
) -> None:
    connection, _, _ = both_ends
    # It refuses to be used from another thread.
    connection.loop.set_debug(True)
    outputs: list[Any] = []
    call = Call("fc-1", "fu-1", outputs.extend, outputs.append)
    call.pending[0] = (b"", 0)
    connection._calls["fc-1"] = call
    output = frames.encode({"t": "out", "c": "fc-1", "x": [0]}, [b"value"])
    await asyncio.to_thread(connection._received, output)
    assert outputs == [(0, 0, b"value", 0)] and connection._flush_at is None
    # The loop's own thread sees to the call's end.
    call.pending[1] = (b"", 0)
    connection._received(frames.encode({"t": "out", "c": "fc-1", "x": [1]}, [b"last"]))
    assert connection._flush_at is not None
