"""The port that web endpoints are served at."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.dispatcher.web import Web
from modal_nomad.wire.address import parse_address

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.certificates import Certificates

logger = logging.getLogger("modal_nomad.dispatcher")

_BACKLOG = 1024
_PORT_FILE = "web.port"


async def serve_web(
    web: Web,
    settings: Settings,
    stack: contextlib.AsyncExitStack,
    certificates: Certificates | None = None,
) -> None:
    """Listen where the settings say, and tell ``web`` how its URLs are written.

    Raises:
        SettingsError: the address cannot be listened at.
    """
    given = str(settings.web.get("listen", ""))
    context = None
    if given:
        where = parse_address(given)
        if where.tls and certificates is not None:
            context = certificates.context()
        sock = _bound(where.host, where.port, given)
    elif settings.embedded:
        sock = _own_port(Path(settings.home))
    else:
        web.url = str(settings.web.get("url", ""))
        return
    server = await asyncio.get_running_loop().create_server(
        web.gateway.protocol, sock=sock, ssl=context, backlog=_BACKLOG
    )
    stack.callback(server.close)
    port = sock.getsockname()[1]
    scheme = "http" if context is None else "https"
    domain = settings.gateway_settings().domain
    web.url = str(settings.web.get("url", "")) or f"{scheme}://{{label}}.{domain}:{port}"
    logger.info("web endpoints are served at %s", web.url.format(label="<label>"))


def _bound(host: str, port: int, given: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise SettingsError(f"[web]: {given} cannot be listened at: {error.strerror}") from None
    return sock


def _own_port(home: Path) -> socket.socket:
    """Return a socket of this home: its URLs stay the same over restarts, unless the port was taken."""
    file = home / _PORT_FILE
    with contextlib.suppress(OSError, ValueError, SettingsError):
        return _bound("127.0.0.1", int(file.read_text()), "the port of before")
    sock = _bound("127.0.0.1", 0, "127.0.0.1")
    file.write_text(f"{sock.getsockname()[1]}\n")
    return sock
