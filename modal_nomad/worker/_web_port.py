"""Where a container that answers requests listens, and where gateways find it."""

import os
import socket
from typing import Mapping, Tuple

RELAYED = "MODAL_WEB_RELAY"
"""Of a container that has left the network: a relay's host and port, and the socket that it passes on to."""


def listening(environ: Mapping[str, str]) -> Tuple[socket.socket, Tuple[str, int]]:
    """Return a socket to listen at, and the address that gateways reach it by."""
    relayed = environ.get(RELAYED)
    if not relayed:
        return on_network(environ)
    host, port, path = relayed.split(" ", 2)
    sock = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(mask)
    return sock, (host, int(port))


def on_network(environ: Mapping[str, str]) -> Tuple[socket.socket, Tuple[str, int]]:
    """Return a socket of this network to listen at, and the address that others reach it by."""

    def nomad(what: str) -> str:
        return environ.get(f"NOMAD_{what}_http", "")

    port = nomad("ALLOC_PORT") or nomad("PORT")
    sock = socket.socket()
    # Connections have it from here: asyncio sets it only where a socket says its protocol, and without it the
    # second part of an answer waits for the client's word on the first.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if not port:
        sock.bind(("127.0.0.1", 0))
        return sock, ("127.0.0.1", sock.getsockname()[1])
    sock.bind(("0.0.0.0", int(port)))
    return sock, (nomad("HOST_IP") or nomad("IP") or "127.0.0.1", int(nomad("HOST_PORT") or port))
