"""A gateway as its own process, or several that share a port: ``modal-nomad gateway``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from modal_nomad.dispatcher.gateway.certificates import Certificates, CertificateSource, TlsSettings
from modal_nomad.dispatcher.gateway.consul import ConsulDiscovery
from modal_nomad.dispatcher.gateway.directory import Directory
from modal_nomad.dispatcher.gateway.gateway import Gateway
from modal_nomad.dispatcher.gateway.link import Link
from modal_nomad.dispatcher.gateway.pending import Peers
from modal_nomad.dispatcher.gateway.process_settings import EXAMPLE, GatewayProcessSettings
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.dispatcher.gateway.tunnels import GatewayTunnels
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.hashicorp.consul import ConsulClient, ConsulError
from modal_nomad.wire import frames
from modal_nomad.wire.address import parse_address

logger = logging.getLogger("modal_nomad.dispatcher")

_BACKLOG = 1024
_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.05
_RESTART_SECONDS = 1.0
_CANCEL_SECONDS = 5.0
_FIRST_SECONDS = 3.0
"""The dispatcher may take so long to say what there is before this takes connections."""
_TIDY_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a gateway until it is told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="modal-nomad gateway")
    parser.add_argument(
        "--config", type=Path, action="append", help="configuration file (TOML); of several the later count"
    )
    parser.add_argument("--print-config", action="store_true", help="print a commented configuration and end")
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.print_config:
        sys.stdout.write(EXAMPLE)
        return 0
    try:
        level = os.environ.get("MODAL_LOGLEVEL", "INFO").upper()
        if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            raise SettingsError(f"MODAL_LOGLEVEL is {level!r}; give DEBUG, INFO, WARNING, ERROR or CRITICAL")
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
        if options.config is None:
            parser.error("give --config FILE")
        settings = GatewayProcessSettings.load(*options.config)
        settings.token()
        if options.socket is not None:
            _end_with_parent(options.parent)
            run(settings, socket.socket(fileno=options.socket))
        elif settings.processes > 1:
            _Group(settings, options.config).run()
        else:
            run(settings, listening(settings))
    except (SettingsError, ConsulError, OSError) as error:
        sys.stderr.write(f"modal-nomad gateway: {error}\n")
        return 1
    return 0


def _end_with_parent(parent: int) -> None:
    """Have this process told to end when the one that started it does, however that ends."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        # It ended before this process could ask to be told.
        raise SystemExit(0)


def listening(settings: GatewayProcessSettings, port: int = 0) -> socket.socket:
    """Return a socket of the port that endpoints are served at, which others may have as well."""
    where = parse_address(settings.listen)
    sock = socket.socket(socket.AF_INET6 if ":" in where.host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if settings.processes > 1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((where.host, port or where.port))
    except OSError as error:
        sock.close()
        raise SettingsError(f"{settings.listen} cannot be listened at: {error.strerror}") from None
    return sock


def run(settings: GatewayProcessSettings, sock: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(settings, sock))
    else:
        uvloop.run(_serve(settings, sock))


class _Group:
    """Several processes on one port. The kernel spreads connections over them; who ends is started again."""

    def __init__(self, settings: GatewayProcessSettings, configs: Sequence[Path]) -> None:
        self._configs = configs
        first = listening(settings)
        port = first.getsockname()[1]
        # Ours to keep: what comes for one that has just ended waits for its successor.
        self._sockets = [first, *(listening(settings, port) for _ in range(settings.processes - 1))]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopping = False

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._processes = [self._start(x) for x in self._sockets]
        try:
            while not self._stopping:
                time.sleep(_LOOK_SECONDS)
                self._look()
        finally:
            for process in self._processes:
                process.terminate()
            for process in self._processes:
                process.wait()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _look(self) -> None:
        for index, process in enumerate(self._processes):
            code = process.poll()
            if code is None or self._stopping:
                continue
            logger.error("a gateway process ended with code %d and is started again", code)
            if code == 1:
                # It said why; at once it would say so again.
                time.sleep(_RESTART_SECONDS)
            self._processes[index] = self._start(self._sockets[index])

    def _start(self, sock: socket.socket) -> subprocess.Popen[bytes]:
        number = sock.fileno()
        command = [sys.executable, "-m", "modal_nomad.dispatcher.gateway"]
        files = [word for path in self._configs for word in ("--config", str(path))]
        ours = [*files, "--socket", str(number), "--parent", str(os.getpid())]
        return subprocess.Popen([*command, *ours], pass_fds=(number,))


async def _serve(settings: GatewayProcessSettings, sock: socket.socket) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        process = GatewayProcess(settings)
        await process.open(sock, stack)
        logger.info("web endpoints are served at %s", process.url)
        await stop.wait()
        logger.info("stopping")
        await process.drain()


class GatewayProcess:
    """A gateway with all that it is told by.

    Attributes:
        gateway: it.
        url: where it listens.

    Args:
        settings: the configuration.
    """

    def __init__(self, settings: GatewayProcessSettings) -> None:
        self.url = ""
        self.gateway = Gateway(settings.gateway_settings(), self, self._check_token)
        self.gateway.ready = False
        self.directory = Directory(self.gateway)
        self._settings = settings
        self._first = asyncio.Event()
        self._link: Link | None = None
        self._tunnels: GatewayTunnels | None = None
        self._server: asyncio.Server | None = None

    # --- between the gateway and the dispatcher -----------------------------------------------------

    def web_load(self, *load: object) -> None:
        """Pass the gateway's load on."""
        if self._link is not None:
            self._link.web_load(*load)  # type: ignore[arg-type]

    async def _check_token(self, key: str, secret: str, route: Route) -> bool:
        if self._link is None:
            raise ConnectionError
        return await self._link.check_token(key, secret, route)

    def _connected(self) -> None:
        self.gateway.ready = True
        self._first.set()
        self.gateway.report_all()

    # --- life ---------------------------------------------------------------------------------------

    async def open(self, sock: socket.socket, stack: contextlib.AsyncExitStack) -> None:
        """Begin to listen, and to follow what there is. Raises SettingsError."""
        settings, loop = self._settings, asyncio.get_running_loop()
        secret = settings.token().encode()
        stack.push_async_callback(self.gateway.close)
        tls = None
        given = TlsSettings.read(settings.tls, settings.pki)
        if given.given:
            source = CertificateSource(given, self.gateway.routes.domains)
            stack.push_async_callback(source.close)
            await source.open()
            await _running(stack, source.run())
            if settings.listen.startswith("https:"):
                tls = source.certificates.context()
            if settings.tunnel_settings().listen:
                await self._carry_tunnels(source.certificates, stack)
        peers, peer = await self._listen_to_peers(secret, stack)
        self._link = Link(
            tuple(settings.dispatchers),
            settings.token,
            self.gateway.tag,
            peer,
            self.directory,
            self.gateway.others,
            self.gateway.fail,
            self._connected,
        )
        peers.known = self._link.known
        self._link.tunnels = self._tunnels
        stack.callback(self._link.close)
        await _running(stack, self._link.run())
        await _running(stack, self._tidy())
        consul = settings.consul_settings()
        client = ConsulClient(consul) if consul is not None else None
        if client is not None:
            stack.push_async_callback(client.close)
            await _running(stack, ConsulDiscovery(client, secret, self.directory.consul).run())
        # What comes now waits: it would be refused, and other processes have the port, too.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._first.wait(), _FIRST_SECONDS)
        self._server = await loop.create_server(self.gateway.protocol, sock=sock, ssl=tls, backlog=_BACKLOG)
        stack.callback(self._server.close)
        host, port = sock.getsockname()[:2]
        self.url = f"{'https' if tls is not None else 'http'}://{host}:{port}"
        if client is not None and settings.consul.get("register"):
            await self._register(client, str(settings.consul["register"]), host, port, stack)

    async def _carry_tunnels(self, certificates: Certificates, stack: contextlib.AsyncExitStack) -> None:
        def say(header: frames.Header) -> bool:
            return self._link is not None and self._link.say(header)

        settings = self._settings
        shared = settings.processes > 1
        self._tunnels = GatewayTunnels(settings.tunnel_settings(), certificates, say, shared=shared)
        await self._tunnels.open(stack)
        await _running(stack, self._tunnels.run())

    async def _listen_to_peers(
        self, secret: bytes, stack: contextlib.AsyncExitStack
    ) -> tuple[Peers, tuple[str, int]]:
        where = parse_address(self._settings.peer_listen)
        self.gateway.peers = peers = Peers(self.gateway, secret)
        server = await asyncio.get_running_loop().create_server(peers.protocol, where.host, where.port)
        stack.callback(server.close)
        host, port = server.sockets[0].getsockname()[:2]
        return peers, (self._settings.peer_host or host, port)

    async def _register(
        self, client: ConsulClient, name: str, host: str, port: int, stack: contextlib.AsyncExitStack
    ) -> None:
        own = f"{name}-{self.gateway.tag}"
        check = {"tcp": f"{host}:{port}", "interval": "5s", "DeregisterCriticalServiceAfter": "1m"}
        await client.register(name, own, host, port, check=check)
        stack.push_async_callback(client.deregister, own)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            self.directory.forget_out()

    async def drain(self) -> None:
        """Take nothing new, and let what there is end."""
        assert self._server is not None
        self._server.close()
        if self._tunnels is not None:
            self._tunnels.leave()
        deadline = time.monotonic() + self._settings.drain_seconds
        while self.gateway.leave_idle() or (self._tunnels is not None and self._tunnels.busy):
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() > deadline:
                return


async def _running(stack: contextlib.AsyncExitStack, work: object) -> None:
    """Have something run as long as the stack lives."""
    task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]

    async def end() -> None:
        while not task.done():
            # Again: a request that fails at this moment may have taken the cancellation for its timeout.
            task.cancel()
            await asyncio.wait((task,), timeout=_CANCEL_SECONDS)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)
