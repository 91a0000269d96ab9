"""Starting a dispatcher process: configuration in, a listening server out."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import fcntl
import logging
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from aiohttp import web

from modal_nomad.dispatcher import runtime
from modal_nomad.dispatcher.api_certificate import ApiCertificate
from modal_nomad.dispatcher.auth import Authenticator, WorkerTokens
from modal_nomad.dispatcher.blobs import BlobStore, BlobStoreError, DirectoryBlobs
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.own_certificates import open_certificates
from modal_nomad.dispatcher.secrets import SecretStoreError
from modal_nomad.dispatcher.server import Server
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.settings_example import EXAMPLE
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.dispatcher.standby import wait_for_turn
from modal_nomad.dispatcher.store.base import Store, StoreError
from modal_nomad.dispatcher.store.choice import choose_store
from modal_nomad.dispatcher.web_listener import serve_web
from modal_nomad.engines.base import Engine, EngineError
from modal_nomad.wire.address import parse_address

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.certificates import Certificates

logger = logging.getLogger("modal_nomad.dispatcher")


def _level() -> str:
    level = os.environ.get("MODAL_LOGLEVEL", "INFO").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise SettingsError(f"MODAL_LOGLEVEL is {level!r}; give DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return level


def main(argv: Sequence[str] | None = None) -> int:
    """Run a dispatcher until it is told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="modal-nomad dispatcher")
    parser.add_argument(
        "--config", type=Path, action="append", help="configuration file (TOML); of several the later count"
    )
    parser.add_argument("--home", type=Path, help="run the embedded dispatcher of this directory")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--print-config", action="store_true", help="print a commented configuration and end")
    options = parser.parse_args(argv)
    if options.print_config:
        sys.stdout.write(EXAMPLE)
        return 0
    try:
        logging.basicConfig(level=_level(), format="%(asctime)s %(levelname)s %(message)s")
        if options.home is not None:
            settings = Settings.for_home(options.home.absolute())
        elif options.config is not None:
            settings = Settings.load(*options.config)
        else:
            parser.error("give --config FILE or --home DIR")
        run(settings, options.ready_fd)
    except (SettingsError, StoreError, BlobStoreError, SecretStoreError, EngineError, OSError) as error:
        sys.stderr.write(f"modal-nomad dispatcher: {error}\n")
        return 1
    return 0


def run(settings: Settings, ready_fd: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(settings, ready_fd))
    else:
        uvloop.run(_serve(settings, ready_fd))


def _lock_file(home: Path) -> BinaryIO:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return open(home / "dispatcher.lock", "a+b")


async def _serve(settings: Settings, ready_fd: int | None) -> None:
    home = Path(settings.home)
    with _lock_file(home) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"another dispatcher runs on {home}; stop it, or give this one a home of its own"
            ) from None
        loop, stop, superseded = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        ready = _Ready(ready_fd)

        def lost() -> None:
            loop.call_soon_threadsafe(superseded.set)
            loop.call_soon_threadsafe(stop.set)

        async with contextlib.AsyncExitStack() as stack:
            store = choose_store(settings.store, home, durability=settings.durability, superseded=lost)
            stack.push_async_callback(store.close)

            async def listen(application: web.Application, scope: contextlib.AsyncExitStack) -> None:
                await _listen(application, settings, scope)
                ready()

            if not await wait_for_turn(store, listen, stop):
                return
            dispatcher, server = await _build(settings, home, stack, store)
            certificates = await open_certificates(dispatcher.web, settings, stack)
            await serve_web(dispatcher.web, settings, stack, certificates)
            await _start_tunnels(dispatcher, certificates, stack)
            await listen(server.application(), stack)
            logger.info("listening on %s", settings.listen)
            await stop.wait()
            logger.info("stopping")
        if superseded.is_set():
            raise StoreError("another dispatcher took over the store: start this one again as its standby")


async def _start_tunnels(
    dispatcher: Dispatcher, certificates: Certificates | None, stack: contextlib.AsyncExitStack
) -> None:
    try:
        await dispatcher.tunnels.start(certificates, stack)
    except OSError as error:
        raise SettingsError(
            f"[tunnels]: tls_port cannot be listened at: {error.strerror or error}: give another"
        ) from None


class _Ready:
    """Tells whoever started this process that it listens, once."""

    def __init__(self, number: int | None) -> None:
        self._number = number

    def __call__(self) -> None:
        if self._number is not None:
            os.write(self._number, b"1")
            os.close(self._number)
            self._number = None


async def _build(
    settings: Settings, home: Path, stack: contextlib.AsyncExitStack, store: Store
) -> tuple[Dispatcher, Server]:
    blobs = _blobs(settings, home)
    await blobs.start()
    stack.push_async_callback(blobs.close)
    sha, data = await asyncio.to_thread(runtime.runtime)
    await blobs.put(data, sha)
    web_sha = await _web_bundle(blobs)
    engine = _engine(settings, home, blobs)
    await engine.start()
    stack.push_async_callback(engine.close)
    workers = WorkerTokens(home)
    dispatcher = Dispatcher(settings, store, blobs, engine, workers, sha, web_sha)
    identify = getattr(engine, "identify", None)
    launched = getattr(engine, "launched", None)
    namespaces_of = getattr(engine, "namespaces_of", None)

    async def scope_of(token: str) -> tuple[str, ...]:
        visible = await namespaces_of(token) if namespaces_of is not None else None
        return dispatcher.namespaces.environments(visible)

    authenticator = Authenticator(
        settings.auth,
        store,
        workers,
        identify,
        launched,
        scope_of=scope_of,
        gateway_token=settings.gateway_token(),
    )
    await dispatcher.start()
    stack.push_async_callback(dispatcher.close)
    if settings.engine == "local":
        prewarm: Any = getattr(engine, "prewarm", None)
        dispatcher.background(prewarm(sha))
    return dispatcher, Server(dispatcher, authenticator, settings.render_dict(sha, web_sha))


async def _web_bundle(blobs: BlobStore) -> str:
    try:
        sha, data = await asyncio.to_thread(runtime.web)
    except runtime.BundleError as error:
        logger.warning("web Functions run only in Images that have uvicorn: %s", error)
        return ""
    await blobs.put(data, sha)
    return sha


def _blobs(settings: Settings, home: Path) -> BlobStore:
    if not settings.s3.get("bucket"):
        return DirectoryBlobs(home / "blobs")
    from modal_nomad.dispatcher.blobs.s3 import S3Blobs
    from modal_nomad.dispatcher.blobs.s3_settings import S3Settings

    return S3Blobs(S3Settings(**settings.s3), home / "blobs" / "incoming", garbage_age=settings.garbage_age)


def _engine(settings: Settings, home: Path, blobs: BlobStore) -> Engine:
    if settings.engine == "local":
        from modal_nomad.engines.local import LocalEngine
        from modal_nomad.worker import environment

        loop = asyncio.get_running_loop()

        def fetch(sha: str) -> bytes:
            # An environment is built on a thread.
            return asyncio.run_coroutine_threadsafe(blobs.get(sha), loop).result()

        return LocalEngine(
            home,
            blobs,
            unpack=runtime.unpack,
            environments=lambda image: environment.ensure(image, home / "environments", fetch=fetch),
        )
    from modal_nomad.engines.nomad import NomadEngine
    from modal_nomad.hashicorp.nomad import NomadSettings

    unknown = sorted(set(settings.nomad) - {f.name for f in dataclasses.fields(NomadSettings)})
    if unknown:
        raise SettingsError(f"[nomad] has no setting {unknown[0]!r}")
    given = {name: value for name, value in settings.nomad.items() if value}
    names = ("node_pool", "datacenters", "core_mhz")
    placed = {name: settings.render[name] for name in names if name in settings.render}
    return NomadEngine(dataclasses.replace(NomadSettings.from_env(), **given), **placed)


async def _listen(application: web.Application, settings: Settings, stack: contextlib.AsyncExitStack) -> None:
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=2.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        where = parse_address(settings.listen)
    except ValueError as error:
        raise SettingsError(f"listen: {error}") from None
    site: web.BaseSite
    if where.path:
        # The lock on the home is ours, so a socket that is left here has no owner.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(where.path)
        site = web.UnixSite(runner, where.path)
    else:
        site = web.TCPSite(runner, where.host, where.port, ssl_context=await _tls(settings, stack))
    await site.start()


async def _tls(settings: Settings, stack: contextlib.AsyncExitStack) -> ssl.SSLContext | None:
    if not settings.tls_cert:
        return None
    shown = ApiCertificate(settings.tls_cert, settings.tls_key)
    task = asyncio.get_running_loop().create_task(shown.run())
    stack.callback(task.cancel)
    return shown.context
