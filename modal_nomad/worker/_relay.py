"""Stands between a container that has left the network and its dispatcher: one address, and no other.

Of one with web endpoints it also takes what comes to the container's port, and passes it on to the container.

A process beside the container, which ends with it. It opens TLS itself, so that the container speaks to its
socket as to a dispatcher of its own machine.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from typing import Any, Awaitable, Callable, NoReturn, Tuple

from ..wire.address import Address, parse_address

_PIECE = 1 << 16
_LONGEST = 100
"""Bytes of a Unix socket's path, a little less than any system takes."""
_PR_SET_DUMPABLE = 4
_BACKLOG = 1024
_Streams = Tuple[asyncio.StreamReader, asyncio.StreamWriter]


def start(address: str, folder: str = "") -> str:
    """Start the relay; return the address that the container has the dispatcher at from now on.

    Args:
        address: the dispatcher's.
        folder: a directory that is the container's alone; another is made where its path is too long.

    Raises:
        OSError: no process, or no socket.
    """
    target = parse_address(address)
    path, own = _place(folder, "relay.sock")
    listener = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError):
        os.unlink(path)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    _leave(listener, _Relay(lambda: _dispatcher(target)), path, own)
    return f"unix://{path}?authority={target.authority}"


def publish(listener: socket.socket, folder: str = "") -> str:
    """Pass on what comes to a socket of the network; return the path at which the container is to listen.

    Args:
        listener: bound; closed here.
        folder: as for ``start``.

    Raises:
        OSError: no process, or no directory.
    """
    path, own = _place(folder, "web.sock")
    with suppress(FileNotFoundError):
        os.unlink(path)
    _leave(listener, _Relay(lambda: asyncio.open_unix_connection(path)), path, own)
    return path


def _place(folder: str, name: str) -> Tuple[str, str]:
    """Return the path of a socket, and the directory that was made for it, if any."""
    own = ""
    if not folder or len(os.fsencode(folder)) > _LONGEST - len(f"/{name}"):
        # Not by TMPDIR, whose path may be as long.
        own = folder = tempfile.mkdtemp(prefix="modal-", dir="/tmp" if os.path.isdir("/tmp") else None)
    return os.path.join(folder, name), own


def _leave(listener: socket.socket, relay: "_Relay", path: str, own: str) -> None:
    listener.listen(_BACKLOG)
    # The relay ends when nobody holds the writing end any more: with the container, whatever it has become.
    tie, held = os.pipe()
    os.set_inheritable(held, True)
    middle = os.fork()
    if middle == 0:
        os.close(held)
        _begin(listener, tie, relay, path, own)
    os.waitpid(middle, 0)
    os.close(tie)
    listener.close()


def _begin(listener: socket.socket, tie: int, relay: "_Relay", path: str, own: str) -> NoReturn:
    try:
        # A grandchild, so that user code which waits for its children meets no stranger.
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # They are the container's, which still has to say something when they come.
                signal.signal(number, signal.SIG_IGN)
            # Nobody but root looks into it, the same user's code in the container neither.
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
            try:
                asyncio.run(relay.serve(listener, tie))
            finally:
                with suppress(OSError):
                    os.unlink(path)
                if own:
                    shutil.rmtree(own, ignore_errors=True)
    except BaseException as error:
        sys.stderr.write(f"modal-nomad worker: the relay to the dispatcher ended: {error!r}\n")
    finally:
        os._exit(0)


class _Relay:
    def __init__(self, connect: Callable[[], Awaitable[_Streams]]) -> None:
        self._connect = connect

    async def serve(self, listener: socket.socket, tie: int) -> None:
        """Take connections until the other end of ``tie`` is closed."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_reader(tie, over.set)
        unix = listener.family == socket.AF_UNIX
        serve = asyncio.start_unix_server if unix else asyncio.start_server
        server = await serve(self._taken, sock=listener, backlog=_BACKLOG)
        await over.wait()
        server.close()

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await self._connect()
        except (OSError, ValueError) as error:
            sys.stderr.write(f"modal-nomad worker: the relay reaches nobody: {error}\n")
            sys.stderr.flush()
            writer.close()
            return
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _dispatcher(target: Address) -> _Streams:
    context: Any = None
    if target.tls:
        from ..wire.tls import client_context

        context = client_context()
    found = await asyncio.open_connection(target.host, target.port, ssl=context)
    found[1].get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            data = await reader.read(_PIECE)
            if not data:
                break
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        # Either end closes both: neither side of this protocol goes on with half a connection.
        writer.close()
