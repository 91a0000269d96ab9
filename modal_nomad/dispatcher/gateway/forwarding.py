"""What a request looks like to the container that gets it, and where a late one is sent. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import quote

from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.wire.http1.exchange import Exchange
from modal_nomad.wire.http1.head import CHUNKED, HttpError, Request, end_to_end
from modal_nomad.wire.web import CALL, KEY, METHOD, PATIENCE, PREFIX

CALL_PARAMETER = b"__modal_function_call_id"
_CLAIMED = re.compile(rb"[?&]__modal_function_call_id=(fc-[0-9A-Za-z]{1,64})(?:&|\Z)")
_FORWARDED = (
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-forwarded-prefix",
    b"forwarded",
)
_OURS = frozenset((b"host", KEY, METHOD, CALL, PREFIX, PATIENCE, *_FORWARDED))
_WITH_TOKEN = _OURS | {b"modal-key", b"modal-secret"}
# And what says where a message ends, of which servers behind `web_server` may read the other spelling, too.
_RESERVED = _WITH_TOKEN | {b"connection", b"content-length", b"expect", b"transfer-encoding", b"upgrade"}


def check_fields(request: Request) -> None:
    """Refuse fields that an app may take for others because it knows no dash from an underscore.

    Raises:
        HttpError: there is one.
    """
    for key, _, _ in request.fields:
        if b"_" in key and key.replace(b"_", b"-") in _RESERVED:
            raise HttpError(400, "a header field has the name of a reserved one")


def head_for(
    exchange: Exchange,
    route: Route,
    prefix: str,
    call_id: str,
    key: bytes,
    trusted: Collection[str],
    patience: bytes = b"",
) -> bytes:
    """Return a request's head as the container gets it."""
    request = exchange.request
    passed = request.passed
    if passed is None or passed[0] is not route or passed[1] != prefix:
        passed = (route, prefix, _alike(exchange, route, prefix, trusted))
        if exchange.client is not None:
            # Whoever left is not there to be named.
            request.passed = passed
    head: bytes = passed[2] + call_id.encode()
    if key:
        head += b"\r\n" + KEY + b": " + key
    if patience:
        head += b"\r\n" + PATIENCE + b": " + patience
    return head + b"\r\n\r\n"


def _alike(exchange: Exchange, route: Route, prefix: str, trusted: Collection[str]) -> bytes:
    """Return what all calls that ask the same have in common: the client's fields, then ours."""
    request, client = exchange.request, exchange.client
    target = request.target
    if prefix:
        target = target[len(prefix) :]
        if target[:1] != b"/":
            target = b"/" + target
    host = request.host.encode()
    peer = client.peer.encode() if client is not None else b""
    proto = b"https" if client is not None and client.secure else b"http"
    asked, chain = host, peer
    if trusted and client is not None and client.peer in trusted:
        asked = request.value(b"x-forwarded-host") or host
        proto = request.value(b"x-forwarded-proto") or proto
        before = request.value(b"x-forwarded-for")
        chain = before + b", " + peer if before else peer
    lines = [b"%b %b HTTP/1.1" % (request.method, target), b"Host: " + host]
    dropped = _WITH_TOKEN if route.requires_proxy_auth else _OURS
    lines += end_to_end(request.fields, request.nominated, dropped)
    if request.length == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    if request.upgrade:
        lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
    # From here on it is ours alone: containers find it by the first of these.
    lines += [
        b"X-Forwarded-For: " + chain,
        b"X-Forwarded-Host: " + asked,
        b"X-Forwarded-Proto: " + proto,
    ]
    if route.method:
        lines.append(METHOD + b": " + route.method.encode())
    if prefix:
        lines += [b"X-Forwarded-Prefix: " + prefix.encode(), PREFIX + b": " + prefix.encode()]
    lines.append(CALL + b": ")
    return b"\r\n".join(lines)


def claimed_call(target: bytes) -> str:
    """Return the call whose pending result a request asks for, or an empty string."""
    found = _CLAIMED.search(target)
    return found.group(1).decode() if found is not None else ""


def redirect_fields(request: Request, call_id: str) -> bytes:
    """Return the field that sends a client to its pending result."""
    target = _CLAIMED.sub(b"", request.target) if CALL_PARAMETER in request.target else request.target
    # A path of two slashes would be read as another host.
    target = b"/" + target.lstrip(b"/")
    joined = b"&" if b"?" in target else b"?"
    return b"Location: %b%b%b=%b\r\n" % (target, joined, CALL_PARAMETER, quote(call_id).encode())
