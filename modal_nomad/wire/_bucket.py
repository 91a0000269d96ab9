"""A blob fetched from the bucket itself, by the link that the dispatcher gave."""

import hashlib
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from .address import parse_address

_CONNECT_SECONDS = 5.0


def follow(link: str, sha: str, timeout: float) -> bytes:
    """Return a blob's bytes.

    Raises:
        OSError: the bucket cannot be reached from here, refuses, or gives something else.
    """
    from .transport import open_socket

    parts = urlsplit(link)
    address = parse_address(f"{parts.scheme}://{parts.netloc}")
    connection = HTTPConnection(parts.netloc)
    try:
        # A node that may not reach the bucket often gets no answer at all: asked for a short time only.
        connection.sock = open_socket(address, _CONNECT_SECONDS)
        connection.sock.settimeout(timeout)
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        data = answer.read()
    except (HTTPException, ValueError) as error:
        raise ConnectionError(f"the bucket broke off a blob transfer: {error!r}") from error
    finally:
        connection.close()
    if answer.status != 200 or hashlib.sha256(data).hexdigest() != sha:
        raise ConnectionError(f"the bucket answered {answer.status} for blob {sha}, or gave something else")
    return data
