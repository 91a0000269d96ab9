"""URLs of web endpoints as programs of this machine can use them.

Browsers and curl know by themselves that each name under ``localhost`` is this machine. Other programs ask
the system, and many systems do not know.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_DOMAIN = ".localhost"
_NAME = "modal-nomad" + _DOMAIN
_SECONDS = 1.0


async def usable(urls: Mapping[str, Any]) -> dict[str, str]:
    """Return URLs, those that end in ``.localhost`` in the form that resolves here.

    Runs on the library's loop. Looks names up once a process, and only where there is such a URL.

    Args:
        urls: by any key.
    """
    texts = {key: str(url) for key, url in urls.items()}
    paths = {key: by_path(url) for key, url in texts.items()}
    if paths == texts:
        return texts
    import asyncio

    return texts if await asyncio.to_thread(_resolves) else paths


def by_path(url: str) -> str:
    """Return ``http://localhost:PORT/<label>`` for ``http://<label>.localhost:PORT``; others as they are.

    Example:
        >>> by_path("http://shop-api.localhost:8000"), by_path("https://shop-api.example.com")
        ('http://localhost:8000/shop-api', 'https://shop-api.example.com')
    """
    parts = urlsplit(url)
    host, colon, port = parts.netloc.partition(":")
    label = host[: -len(_DOMAIN)] if host.endswith(_DOMAIN) else ""
    if not label or "." in label:
        return url
    return f"{parts.scheme}://localhost{colon}{port}/{label}{parts.path}"


@functools.cache
def _resolves() -> bool:
    """Say whether the system resolves names under ``localhost``, and to itself."""
    import socket
    import threading

    found: list[str] = []

    def look() -> None:
        try:
            found.extend(str(x[4][0]) for x in socket.getaddrinfo(_NAME, None, type=socket.SOCK_STREAM))
        except OSError:
            return

    # In a thread of its own: a system that does not know asks a name server, which may be out of reach.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    # A name server that knows every name is of no use.
    return bool(found) and all(x == "::1" or x.startswith("127.") for x in found)
