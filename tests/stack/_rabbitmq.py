"""As much of RabbitMQ's management API as OpenBao's ``rabbitmq`` engine asks: users come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from tests.stack._openbao import Bao


@contextmanager
def rabbitmq_engine(bao: Bao, ttl: int) -> Iterator[set[str]]:
    """Give ``bao`` the dynamic role ``rabbitmq/creds/readonly``; yields the users that there are now."""
    users: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if self.path.startswith("/api/users/"):
                users.add(unquote(self.path.rsplit("/", 1)[-1]))
            self._answer()

        def do_DELETE(self) -> None:
            users.discard(unquote(self.path.rsplit("/", 1)[-1]))
            self._answer()

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        bao.call("POST", "sys/mounts/rabbitmq", {"type": "rabbitmq"})
        bao.call(
            "POST",
            "rabbitmq/config/connection",
            {
                "connection_uri": f"http://127.0.0.1:{server.server_port}",
                "username": "admin",
                "password": "admin",
                "verify_connection": False,
            },
        )
        bao.call("POST", "rabbitmq/config/lease", {"ttl": ttl, "max_ttl": 3600})
        bao.call("POST", "rabbitmq/roles/readonly", {"vhosts": '{"/": {"read": ".*"}}'})
        yield users
        bao.call("DELETE", "sys/mounts/rabbitmq")
    finally:
        server.shutdown()
        server.server_close()
        thread.join(100)
