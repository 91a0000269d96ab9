"""Stands between a container that has left the network and its dispatcher: one address, and no other.

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
from typing import Any, NoReturn, Tuple

from ..wire.address import Address, parse_address

_PIECE = 1 << 16
_LONGEST = 100
"""Bytes of a Unix socket's path, a little less than any system takes."""
_PR_SET_DUMPABLE = 4


def start(address: str, folder: str = "") -> str:
    """Start the relay; return the address that the container has the dispatcher at from now on.

    Args:
        address: the dispatcher's.
        folder: a directory that is the container's alone; another is made where its path is too long.

    Raises:
        OSError: no process, or no socket.
    """
    target = parse_address(address)
    own = ""
    if not folder or len(os.fsencode(folder)) > _LONGEST - len("/relay.sock"):
        # Not by TMPDIR, whose path may be as long.
        own = folder = tempfile.mkdtemp(prefix="modal-", dir="/tmp" if os.path.isdir("/tmp") else None)
    path = os.path.join(folder, "relay.sock")
    listener = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError):
        os.unlink(path)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(64)
    # The relay ends when nobody holds the writing end any more: with the container, whatever it has become.
    tie, held = os.pipe()
    os.set_inheritable(held, True)
    middle = os.fork()
    if middle == 0:
        os.close(held)
        _begin(listener, tie, target, path, own)
    os.waitpid(middle, 0)
    os.close(tie)
    listener.close()
    return f"unix://{path}?authority={target.authority}"


def _begin(listener: socket.socket, tie: int, target: Address, path: str, own: str) -> NoReturn:
    try:
        # A grandchild, so that user code which waits for its children meets no stranger.
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # They are the container's, which still has to say something when they come.
                signal.signal(number, signal.SIG_IGN)
            # Nobody but root looks into it, the same user's code in the container neither.
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
            try:
                asyncio.run(_Relay(target).serve(listener, tie))
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
    def __init__(self, target: Address) -> None:
        self._target = target

    async def serve(self, listener: socket.socket, tie: int) -> None:
        """Take connections until the other end of ``tie`` is closed."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_reader(tie, over.set)
        server = await asyncio.start_unix_server(self._taken, sock=listener)
        await over.wait()
        server.close()

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await self._connect()
        except (OSError, ValueError) as error:
            sys.stderr.write(f"modal-nomad worker: the dispatcher cannot be reached: {error}\n")
            sys.stderr.flush()
            writer.close()
            return
        await asyncio.gather(_pump(reader, back), _pump(there, writer))

    async def _connect(self) -> Tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context: Any = None
        if self._target.tls:
            from ..wire.tls import client_context

            context = client_context()
        found = await asyncio.open_connection(self._target.host, self._target.port, ssl=context)
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
