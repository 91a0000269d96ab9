"""What S3 clients say on the wire: a proxy before a server that keeps requests and may answer itself.

A client takes it for a proxy, by ``http_proxy`` and ``https_proxy``, and so speaks to hosts by the names that
they have in the world: who it is that answers for all of them, with a certificate of its own, is this.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Answer = tuple[int, Mapping[str, str], bytes]
_OF_CONNECTIONS = (
    "connection",
    "proxy-connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "content-length",
)


@dataclass(frozen=True)
class Seen:
    """One request: headers by their names in small letters."""

    secure: bool
    verb: str
    host: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Wire:
    """The proxy.

    Attributes:
        port: where it listens, on 127.0.0.1.
        seen: all requests so far.
        answer: what it says to a request itself; None passes that on.
        after: what it makes of the server's answer.
        host: what it tells the server as ``Host``; empty for what the client said.
    """

    port: int
    seen: list[Seen] = field(default_factory=list)
    answer: Callable[[Seen], Answer | None] = lambda seen: None
    after: Callable[[Seen, Answer], Answer] = lambda seen, answer: answer
    host: str = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def verbs(self) -> list[tuple[str, str]]:
        """Return what was asked for, without the queries."""
        return [(one.verb, one.path) for one in self.seen]


@contextmanager
def s3_wire(to: int, certificate: tuple[str, str] | None = None) -> Iterator[Wire]:
    """Yield a proxy in front of a port of 127.0.0.1; with a certificate and its key it answers https too."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    handler = type("Handler", (_Handler,), {"to": to, "context": context})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        handler.wire = wire = Wire(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield wire
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    to: int
    context: ssl.SSLContext | None
    wire: Wire
    secure = False

    def do_CONNECT(self) -> None:
        if self.context is None:
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection = self.context.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
            self.secure = True
            self.close_connection = False

    def finish(self) -> None:
        super().finish()
        if self.secure:
            # The server closes the socket that this one took over.
            self.connection.close()

    def _pass_on(self) -> None:
        body = self._body()
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(
            self.secure, self.command, headers["host"], unquote(parts.path), parts.query, headers, body
        )
        self.wire.seen.append(seen)
        status, given, data = self.wire.answer(seen) or self.wire.after(seen, self._ask(seen, parts))
        with contextlib.suppress(OSError):
            self.send_response(status)
            length = given.get("content-length", "0") if self.command == "HEAD" else str(len(data))
            for name, value in given.items():
                if name not in _OF_CONNECTIONS:
                    self.send_header(name, value)
            self.send_header("content-length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _ask(self, seen: Seen, parts: Any) -> Answer:
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        headers = {k: v for k, v in seen.headers.items() if k not in (*_OF_CONNECTIONS, "expect")}
        headers["host"] = self.wire.host or seen.host
        headers["content-length"] = str(len(seen.body))
        connection = http.client.HTTPConnection("127.0.0.1", self.to, timeout=120)
        try:
            connection.request(seen.verb, target, seen.body, headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        except (OSError, http.client.HTTPException):
            return 502, {}, b""
        finally:
            connection.close()

    def log_message(self, *args: Any) -> None:
        pass
