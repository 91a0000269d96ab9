"""How a request over HTTP is refused: the error's name and its one line, as JSON."""

from __future__ import annotations

from aiohttp import web

from modal_nomad.exception import AuthError, Error, NotFoundError


def refusal(error: Error) -> web.Response:
    """Return the answer that stands for an error."""
    status = 404 if isinstance(error, NotFoundError) else 403 if isinstance(error, AuthError) else 409
    return named_refusal(type(error).__name__, str(error), status)


def named_refusal(kind: str, text: str, status: int = 409) -> web.Response:
    """Return the answer for an exception that the client is to raise under this name."""
    return web.json_response({"error": [kind, text]}, status=status)
