"""``block_network=True``: a network namespace of the container's own, with nothing in it but loopback.

The dispatcher is reached through a Unix socket, which no network namespace hides: its own, on this machine;
that of a relay, on a cluster, which stays outside and speaks to the dispatcher and nobody else. What comes
to its own web endpoints comes by a relay as well.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import contextmanager
from typing import Iterator, Mapping, MutableMapping

from ..exception import ExecutionError
from ._mounts import CLONE_NEWUSER, map_user, setns, unshare

VARIABLE = "MODAL_BLOCK_NETWORK"
_DONE = "done"
_SERVES = "web"
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_REQUEST = struct.Struct("16sh22x")


class NetworkNotBlocked(OSError):
    """The kernel does not let this process leave the network."""


def leave(environ: MutableMapping[str, str]) -> None:
    """Leave the network, where this container is to; once, and with one thread.

    Args:
        environ: the container's variables; a dispatcher's address on the network gives way to a relay's.

    Raises:
        NetworkNotBlocked: nothing has changed, and no user code may run.
    """
    if environ.get(VARIABLE) in (None, "", _DONE):
        return
    folder = environ.get("NOMAD_SECRETS_DIR", "")
    if environ[VARIABLE] == _SERVES:
        from ._relay import publish
        from ._web_port import RELAYED, on_network

        environ.pop("MODAL_SNAPSHOT", None)
        sock, (host, port) = on_network(environ)
        environ[RELAYED] = f"{host} {port} {publish(sock, folder)}"
    address = environ["MODAL_SERVER_URL"]
    if not address.startswith("unix://"):
        from ._relay import start

        # A snapshot's forks would have the relay of the container that left it.
        environ.pop("MODAL_SNAPSHOT", None)
        environ["MODAL_SERVER_URL"] = start(address, folder)
    enter_empty()
    environ[VARIABLE] = _DONE


def has_left(environ: Mapping[str, str]) -> bool:
    """Say whether this container has left the network."""
    return environ.get(VARIABLE) == _DONE


@contextmanager
def outside(environ: Mapping[str, str]) -> Iterator[None]:
    """Have this thread, and what it starts meanwhile, on the network that was left, as root can.

    Raises:
        ExecutionError: this container's root cannot.
    """
    if not has_left(environ):
        yield
        return
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            # Whoever started this process is where it came from.
            before = os.open(f"/proc/{os.getppid()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(before, _CLONE_NEWNET)
            finally:
                os.close(before)
        except OSError as error:
            raise ExecutionError(
                f"with block_network=True a bucket is mounted from the network that was left, and the kernel"
                f" does not let this container ({error.strerror}): run it as root, or take away one of them"
            ) from None
        try:
            yield
        finally:
            setns(own, _CLONE_NEWNET)
    finally:
        os.close(own)


def enter_empty() -> None:
    """Move this process into a network namespace of its own. Raises NetworkNotBlocked."""
    before = os.readlink("/proc/self/ns/net")
    uid, gid = os.getuid(), os.getgid()
    try:
        try:
            unshare(_CLONE_NEWNET)
        except PermissionError:
            unshare(CLONE_NEWUSER | _CLONE_NEWNET)
            map_user(uid, gid)
        _raise_loopback()
    except OSError as error:
        raise NetworkNotBlocked(_words(error)) from error
    if os.readlink("/proc/self/ns/net") == before:
        raise NetworkNotBlocked(_words(OSError("it kept this process where it was")))


def _words(error: OSError) -> str:
    return (
        f"block_network=True needs a network namespace, and the kernel of {os.uname().nodename} gives this"
        f" container none ({error.strerror or error}): allow user namespaces there (sysctl"
        " user.max_user_namespaces, kernel.unprivileged_userns_clone), or run containers as root"
    )


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, _REQUEST.pack(b"lo", 0))
        fcntl.ioctl(probe, _SIOCSIFFLAGS, _REQUEST.pack(b"lo", _REQUEST.unpack(answer)[1] | _IFF_UP))
