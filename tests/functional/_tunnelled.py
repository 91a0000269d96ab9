"""A user's module whose Functions have tunnels. What they tell is in files of a folder that is given."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import socket
import socketserver
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import modal_nomad as modal

app = modal.App("tunnelled")


class Echo(socketserver.BaseRequestHandler):
    """Answers with what it gets, and at its end with how much that was."""

    def handle(self) -> None:
        count = 0
        while data := self.request.recv(65536):
            count += len(data)
            self.request.sendall(data)
        self.request.sendall(f"<{count}>".encode())


class Shout(socketserver.BaseRequestHandler):
    """A WebSocket that answers in capitals."""

    def handle(self) -> None:
        from modal_nomad.wire import websocket

        head = b""
        while b"\r\n\r\n" not in head:
            head += self.request.recv(65536)
        fields = dict(x.split(": ", 1) for x in head.decode().split("\r\n") if ": " in x)
        answer = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {websocket.accept_key(fields['Sec-WebSocket-Key'])}",
        ]
        self.request.sendall(("\r\n".join(answer) + "\r\n\r\n").encode())
        messages = websocket.Messages(masked=True)
        while data := self.request.recv(65536):
            for opcode, payload in messages.feed(data):
                if opcode == websocket.TEXT:
                    self.request.sendall(websocket.encode(payload.upper(), opcode, masked=False))
                elif opcode == websocket.CLOSE:
                    self.request.sendall(websocket.encode(payload, opcode, masked=False))
                    return


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def listening(kind: Any) -> int:
    """Start a server and return its port."""
    server = Server(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def tell(folder: str, name: str, value: Any) -> None:
    new = Path(folder, f"{name}.new")
    new.write_text(json.dumps(value))
    new.rename(Path(folder, name))


def wait_for(folder: str, name: str) -> None:
    while not Path(folder, name).exists():
        time.sleep(0.02)


def told(tunnel: modal.Tunnel) -> dict[str, Any]:
    try:
        tcp: Any = tunnel.tcp_socket
    except modal.Error as error:
        tcp = str(error)
    return {"url": tunnel.url, "tls": tunnel.tls_socket, "tcp": tcp, "pid": os.getpid()}


@app.function()
def tcp(folder: str, kind: str) -> str:
    """Serve raw TCP until a file is there."""
    with modal.forward(listening(globals()[kind]), unencrypted=True) as tunnel:
        tell(folder, "tunnel", told(tunnel))
        wait_for(folder, "end")
    tell(folder, "closed", True)
    wait_for(folder, "go")
    return tunnel.url


class Page(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{self.path} {self.headers['Host']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


@app.function()
async def pages(folder: str) -> None:
    """Serve HTTP by TLS alone."""
    async with modal.forward(listening(Page)) as tunnel:
        tell(folder, "tunnel", told(tunnel))
        await asyncio.to_thread(wait_for, folder, "end")


@app.function()
def redis(folder: str, port: int) -> None:
    """Run a Redis."""
    with subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    ) as server:
        try:
            with modal.forward(port, unencrypted=True) as tunnel:
                tell(folder, "tunnel", told(tunnel))
                wait_for(folder, "end")
        finally:
            server.terminate()


@app.function()
def nothing(folder: str, h2: bool) -> None:
    """Have a tunnel to a port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with modal.forward(sock.getsockname()[1], unencrypted=True, h2_enabled=h2) as tunnel:
            tell(folder, "tunnel", told(tunnel))
            wait_for(folder, "end")


@app.function()
def many() -> str:
    """Open more tunnels than there may be."""
    import contextlib

    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(modal.forward(1))
    return "open"


@app.function(restrict_modal_access=True)
def restricted() -> str:
    with modal.forward(1):
        return "open"
