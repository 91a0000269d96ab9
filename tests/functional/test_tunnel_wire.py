"""A tunnel's two ends with nothing else around them: a dispatcher that comes back, and halves that break."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from conftest import until

from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.gateway.tunnels import GatewayTunnels, GatewayTunnelSettings
from modal_nomad.dispatcher.http_tunnels import add_routes
from modal_nomad.dispatcher.tunnels import AssignedTunnels, Tunnels, TunnelSettings
from modal_nomad.dispatcher.tunnels.tickets import Place, Tickets
from modal_nomad.dispatcher.tunnels.tls import own_certificates
from modal_nomad.exception import InvalidError
from modal_nomad.wire._tunnel_client import Refused, TunnelClient
from modal_nomad.wire.tunnels import Framed, Plain
from tests._loops import serving
from tests._ports import free_ports, free_range

LIMIT = 60.0
SETTINGS = TunnelSettings("localhost", "127.0.0.1")


class Side:
    """As much of a dispatcher as tunnels need, at a socket in a folder."""

    def __init__(self, folder: Path, settings: TunnelSettings = SETTINGS) -> None:
        self.url = f"unix://{folder}/d.sock"
        self.settings = settings
        self.folder = folder
        self.tunnels: Any = None
        self.spec = SimpleNamespace(restrict_modal_access=False)
        self.containers = {"ta-1": SimpleNamespace(function=SimpleNamespace(spec=self.spec))}
        self._runner: Any = None
        self._stack: Any = None

    async def start(self) -> None:
        if self.settings.gateways:
            self.tunnels = AssignedTunnels(self.settings, b"key")
        else:
            self.tunnels = Tunnels(self.settings, b"key", self.folder)
        self._stack = contextlib.AsyncExitStack()
        await self.tunnels.start(None, self._stack)
        application = web.Application()
        dispatcher: Any = SimpleNamespace(
            tunnels=self.tunnels, containers=SimpleNamespace(infos=self.containers)
        )

        async def identify(request: web.Request) -> Identity:
            return Identity("x", container=request.headers["Authorization"][7:])

        add_routes(application, dispatcher, identify)
        self._runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=1)
        await self._runner.setup()
        await web.UnixSite(self._runner, f"{self.folder}/d.sock").start()

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._stack.aclose()


@pytest.fixture
async def side(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Side]:
    # Short: the paths of sockets are.
    made = Side(tmp_path_factory.mktemp("t"))
    await made.start()
    yield made
    await made.stop()


@contextlib.asynccontextmanager
async def client(
    side: Side, port: int, container: str = "ta-1", **options: Any
) -> AsyncIterator[TunnelClient]:
    async def address() -> tuple[str, str]:
        return side.url, container

    made = TunnelClient(address, port, **options)
    try:
        await made.open()
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write(b"<end>")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with serving(answer) as port:
        yield port


async def said(port: int, context: ssl.SSLContext | None = None) -> bytes:
    """What a tunnel says to who says something and ends."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost" if context else None
    )
    try:
        writer.write(b"hello")
        if context is not None:
            return await reader.readexactly(5)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_dispatcher_that_comes_back(side: Side) -> None:
    async with echo() as port, client(side, port, unencrypted=True) as tunnel:
        before = dict(tunnel.told)
        trusting = ssl.create_default_context(cafile=str(side.folder / "tunnels.pem"))
        assert await said(before["unencrypted_port"]) == b"hello<end>"
        reader, writer = await asyncio.open_connection("127.0.0.1", before["unencrypted_port"])
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await side.stop()
        # Who was connected is told that this was no end.
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await side.start()
        await asyncio.to_thread(until, lambda: len(side.tunnels))
        assert tunnel.told["id"] == before["id"]
        ports = ("port", "unencrypted_port")
        assert [tunnel.told[x] for x in ports] == [before[x] for x in ports]
        assert await said(before["unencrypted_port"]) == b"hello<end>"
        assert await said(before["port"], trusting) == b"hello"
    await empty(side)


async def empty(side: Side) -> None:
    """Wait until the dispatcher has no tunnel any more."""
    await asyncio.to_thread(until, lambda: not len(side.tunnels))


async def test_ports_are_from_the_range(tmp_path_factory: pytest.TempPathFactory) -> None:
    low = free_ports(1)[0]
    side = Side(tmp_path_factory.mktemp("t"), TunnelSettings("h", "127.0.0.1", f"{low}-{low}"))
    await side.start()
    try:
        async with client(side, 1) as tunnel:
            assert (tunnel.told["host"], tunnel.told["port"]) == ("h", low)
            with pytest.raises(Refused, match="no port is free"):
                async with client(side, 1):
                    pass
        await empty(side)
        # Nobody gets a port by asking for it, nor with the ticket of another container.
        none, told = await side.tunnels.open("ta-1", print, unencrypted=False, h2=False, ticket="80.0.ab")
        assert told["port"] == low
        side.tunnels.close(none)
        tickets, place = Tickets(b"key"), Place("tn-1", 80, 0)
        ticket = tickets.write("ta-2", place)
        assert tickets.read("ta-2", ticket) == place
        assert tickets.read("ta-1", ticket) == Place()
        assert Tickets(b"other").read("ta-2", ticket) == Place()
        for text in ("", ".", "..", "80", "80.0", "80.0.", "²·0.a", "80.x.y", ticket[:-1]):
            assert tickets.read("ta-1", text) == Place()
    finally:
        await side.stop()


async def test_who_may_have_one(side: Side) -> None:
    with pytest.raises(Refused, match="403"):
        async with client(side, 1, container=""):
            pass
    side.spec.restrict_modal_access = True
    with pytest.raises(Refused, match="may use nothing of modal"):
        async with client(side, 1):
            pass
    off = Tunnels(TunnelSettings(), b"key", side.folder)
    with pytest.raises(InvalidError, match="name a host under"):
        await off.open("ta-1", print, unencrypted=False, h2=False)


async def test_another_container_cannot_take_a_connection(side: Side) -> None:
    side.containers["ta-2"] = side.containers["ta-1"]
    numbers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    tunnel, told = await side.tunnels.open("ta-1", numbers.put_nowait, unencrypted=True, h2=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", told["unencrypted_port"])
    number = (await asyncio.wait_for(numbers.get(), LIMIT))["come"]

    async def asked(container: str, what: object) -> bytes:
        there, back = await asyncio.open_unix_connection(side.url.removeprefix("unix://"))
        back.write(
            f"GET /v1/tunnels/{told['id']}/{what} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {container}\r\n"
            "Upgrade: modal-nomad-tunnel\r\nConnection: Upgrade\r\n\r\n".encode()
        )
        line = await there.readline()
        back.close()
        return line.split()[1]

    assert await asked("ta-2", number) == b"404"
    assert await asked("ta-1", number + 1) == b"404"
    assert await asked("ta-1", "1x") == b"404"
    assert await asked("ta-1", number) == b"101"
    assert await asked("ta-1", number) == b"404"
    # What took it has gone: that was no end.
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    side.tunnels.close(tunnel)


def trusting(side: Side) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(side.folder / "tunnels.pem"))


class Sealed:
    """A TLS client that may end in one direction alone, as Python's own cannot."""

    def __init__(self, port: int, context: ssl.SSLContext, name: str = "localhost") -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        try:
            self._until_done(self.tls.do_handshake)
        except BaseException:
            self._sock.close()
            raise

    def _until_done(self, work: Any) -> Any:
        while True:
            try:
                done = work()
            except ssl.SSLWantReadError:
                done = None
            if self._out.pending:
                self._sock.sendall(self._out.read())
            if done is not None or (work == self.tls.do_handshake and self.tls.version()):
                return done
            data = self._sock.recv(65536)
            if data:
                self._in.write(data)
            else:
                self._in.write_eof()

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self._sock.sendall(self._out.read())

    def end(self) -> None:
        """Say that no more is sent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self._sock.sendall(self._out.read())

    def rest(self) -> bytes:
        """What comes until the other side says that there is no more: its end must be said, too."""
        pieces = []
        while True:
            try:
                pieces.append(self._until_done(lambda: self.tls.read(65536)))
            except ssl.SSLZeroReturnError:
                return b"".join(pieces)

    def close(self) -> None:
        self._sock.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
async def test_half_of_a_tls_connection(side: Side, version: ssl.TLSVersion) -> None:
    async with echo() as port, client(side, port) as tunnel:
        context = trusting(side)
        context.maximum_version = version

        def ask() -> bytes:
            sealed = Sealed(tunnel.told["port"], context)
            try:
                # More than fits into buffers on the way: what is still to come is not given up.
                sealed.send(b"x" * 300_000)
                sealed.end()
                return sealed.rest()
            finally:
                sealed.close()

        assert await asyncio.to_thread(ask) == b"x" * 300_000 + b"<end>"


async def test_what_is_sent_before_an_end_without_farewell_arrives(side: Side) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.put_nowait(await reader.read())
        writer.close()

    async with serving(keep) as port, client(side, port) as tunnel:

        def send() -> None:
            sock = socket.create_connection(("127.0.0.1", tunnel.told["port"]), timeout=LIMIT)
            with trusting(side).wrap_socket(sock, server_hostname="localhost") as sealed:
                sealed.sendall(b"the last words")

        await asyncio.to_thread(send)
        assert await asyncio.wait_for(got.get(), LIMIT) == b"the last words"


async def test_handshakes_are_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    side = Side(tmp_path_factory.mktemp("t"), TunnelSettings("localhost", "127.0.0.1", max_handshakes=2))
    await side.start()
    try:
        async with echo() as port, client(side, port) as tunnel:
            where, context = tunnel.told["port"], trusting(side)
            # Who has shaken hands does not count any more.
            done = [
                await asyncio.open_connection("127.0.0.1", where, ssl=context, server_hostname="localhost")
                for _ in range(3)
            ]
            assert await said(where, context) == b"hello"
            stuck = [await asyncio.open_connection("127.0.0.1", where) for _ in range(2)]
            await asyncio.to_thread(until, lambda: len(side.tunnels.handshakes) == 2)
            with pytest.raises(OSError):
                await said(where, context)
            # One that leaves makes room, and so does one that talks nonsense.
            stuck[0][1].close()
            stuck[1][1].write(b"GET / HTTP/1.1\r\n\r\n")
            await stuck[1][0].read()
            await asyncio.to_thread(until, lambda: not len(side.tunnels.handshakes))
            assert await said(where, context) == b"hello"
            for _, writer in (*stuck, *done):
                writer.close()
    finally:
        await side.stop()


async def test_one_port_for_all_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    where = free_ports(1)[0]
    settings = TunnelSettings(listen="127.0.0.1", domain="tunnels.test", tls_port=where)
    side = Side(tmp_path_factory.mktemp("t"), settings)
    await side.start()
    try:
        async with echo() as port, client(side, port) as one, client(side, port, h2=True) as other:
            names = [x.told["host"] for x in (one, other)]
            assert all(x.endswith(".tunnels.test") for x in names) and len(set(names)) == 2
            assert [x.told["port"] for x in (one, other)] == [where, where]
            context = trusting(side)
            context.set_alpn_protocols(["h2", "http/1.1"])

            def ask(name: str) -> tuple[str | None, bytes]:
                sealed = Sealed(where, context, name)
                try:
                    sealed.send(name.encode())
                    sealed.end()
                    return sealed.tls.selected_alpn_protocol(), sealed.rest()
                finally:
                    sealed.close()

            assert await asyncio.to_thread(ask, names[0]) == ("http/1.1", names[0].encode() + b"<end>")
            shouted = names[1].upper()
            assert await asyncio.to_thread(ask, shouted) == ("h2", shouted.encode() + b"<end>")
            for name in ("nobody.tunnels.test", "tunnels.test"):
                with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized"):
                    await asyncio.to_thread(ask, name)
            # The name outlives the dispatcher process.
            await side.stop()
            await side.start()
            await asyncio.to_thread(until, lambda: len(side.tunnels) == 2)
            assert [x.told["host"] for x in (one, other)] == names
            assert (await asyncio.to_thread(ask, names[0]))[1] == names[0].encode() + b"<end>"
    finally:
        await side.stop()


class Near:
    """A gateway beside a dispatcher that comes and goes: as a ``GatewaySession``, without the socket."""

    tag = "aaaaaa"

    def __init__(self, folder: Path) -> None:
        settings = GatewayTunnelSettings("127.0.0.1")
        self.carried = GatewayTunnels(settings, own_certificates(folder), self._said, shared=False)
        self.dispatcher: Any = None
        self._task: Any = None

    @property
    def inside(self) -> str:
        return self.carried.inside

    def connect(self, tunnels: Any) -> None:
        self.dispatcher = tunnels
        self.carried.link_begins()
        tunnels.gateway_up(self)

    def send_frame(self, header: dict[str, Any]) -> None:
        self.carried.take(header)

    def _said(self, header: dict[str, Any]) -> bool:
        if self.dispatcher is None:
            return False
        if header["t"] == "come":
            self.dispatcher.came(self, header["i"], header["n"], header["k"])
        else:
            self.dispatcher.listens(self, header["i"], header["e"])
        return True


async def test_connections_through_a_gateway_outlive_the_dispatcher(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    low, high = free_range(2)
    folder = tmp_path_factory.mktemp("t")
    side = Side(folder, TunnelSettings("h", ports=f"{low}-{high}", gateways=True))
    near = Near(folder)
    async with contextlib.AsyncExitStack() as stack:
        await near.carried.open(stack)
        work = asyncio.get_running_loop().create_task(near.carried.run())
        stack.callback(work.cancel)
        await side.start()
        near.connect(side.tunnels)
        async with echo() as port, client(side, port, unencrypted=True) as tunnel:
            before, plain = dict(tunnel.told), tunnel.told["unencrypted_port"]
            assert {before["port"], plain} == {low, high}
            reader, writer = await asyncio.open_connection("127.0.0.1", plain)
            writer.write(b"first")
            assert await reader.readexactly(5) == b"first"
            near.dispatcher = None
            await side.stop()
            writer.write(b"second")
            assert await reader.readexactly(6) == b"second"
            # Who comes now waits for the next one.
            waiting = asyncio.get_running_loop().create_task(said(plain))
            await side.start()
            near.connect(side.tunnels)
            assert await waiting == b"hello<end>"
            assert tunnel.told == before
            writer.write_eof()
            assert await reader.read() == b"<end>"
            writer.close()
            # Nobody else takes what came there: the key is one connection's.
            key = near.carried.key(before["id"], 7)
            assert near.carried.arrived(before["id"], 8, key) is None
            assert near.carried.arrived("tn-1", 7, key) is None
            # What the next one has not named in time is gone.
            near.carried.link_begins()
            near.carried.settled()
            await asyncio.to_thread(until, lambda: not near.carried.busy)
        await side.stop()


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = self.aborted = self.ended = False
        self.reading = True

    def get_extra_info(self, name: str) -> None:
        """There is no socket."""

    def write(self, data: bytes) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def halves() -> tuple[Framed, Pipe, Plain, Pipe]:
    framed, plain, one, other = Framed(), Plain(), Pipe(), Pipe()
    framed.connection_made(one)
    plain.connection_made(other)
    return framed, one, plain, other


def test_what_comes_early_is_kept_and_no_more_is_read() -> None:
    framed, one, plain, other = halves()
    plain.data_received(b"early")
    framed.data_received(b"\0\0\0\2h")
    assert not one.reading and not other.reading
    framed.join(plain)
    assert one.reading and other.reading
    framed.data_received(b"i\0\0\0\0")
    assert (bytes(one.written), bytes(other.written)) == (b"\0\0\0\5early", b"hi")
    assert other.ended and not other.closed
    # Each is read no faster than the other takes it.
    framed.pause_writing()
    assert not other.reading
    framed.resume_writing()
    assert other.reading
    # The other direction goes on, and ends both.
    plain.data_received(b"!" * ((1 << 20) + 1))
    plain.eof_received()
    assert one.written[9:13] == b"\0\x10\0\0" and one.written[-4:] == b"\0\0\0\0"
    assert len(one.written) == 9 + 4 + (1 << 20) + 4 + 1 + 4
    assert one.closed and other.closed and not other.aborted


@pytest.mark.parametrize("data", [b"", b"\0\0\0\5hal", b"\xff\xff\xff\xff"])
def test_what_breaks_is_no_end(data: bytes) -> None:
    framed, one, plain, other = halves()
    framed.join(plain)
    framed.data_received(data)
    framed.connection_lost(None)
    assert other.aborted and not other.ended
    assert one.aborted == (data == b"\xff\xff\xff\xff")
    framed, one, plain, other = halves()
    framed.join(plain)
    plain.connection_lost(ConnectionResetError())
    assert one.aborted and not one.written
