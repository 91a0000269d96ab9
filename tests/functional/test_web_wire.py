"""The gateway between a client and a container that the test plays, byte by byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, ServedFunction
from modal_nomad.dispatcher.gateway.gateway import Gateway
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.dispatcher.gateway.settings import GatewaySettings
from modal_nomad.wire.web import FULL, refusal
from tests._loops import serving

LIMIT = 60.0
NOT_TAKEN = b"HTTP/1.1 421 Misdirected Request\r\nX-Modal-Nomad-Refused: %b\r\nContent-Length: 0\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 4\r\n\r\nbody"
GET = b"GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


_made: list[Gateway] = []
"""The gateway of this test."""


class Loads:
    """What a dispatcher would be told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, int]]] = []

    def web_load(self, function_id: str, waiting: int, running: Any, finished: int, seconds: float) -> None:
        self.seen.append((waiting, dict(running)))


@asynccontextmanager
async def gateway(
    container: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    _containers: int = 1,
    **settings: Any,
) -> AsyncIterator[Callable[[], Awaitable[Streams]]]:
    async def check(key: str, secret: str, route: Route) -> bool:
        return False

    async def played(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await container(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    made = Gateway(GatewaySettings(**settings), Loads(), check)
    _made[:] = [made]
    made.serve(ServedFunction("fu-1", (Route("web", "fu-1"),), 10))
    loop = asyncio.get_running_loop()
    outside = await loop.create_server(made.protocol, "127.0.0.1", 0)
    address = outside.sockets[0].getsockname()[:2]
    opened: list[asyncio.StreamWriter] = []

    async def connect() -> Streams:
        reader, writer = await asyncio.open_connection(*address)
        opened.append(writer)
        return reader, writer

    async with serving(played) as port:
        for number in range(_containers):
            made.instance_up("fu-1", ContainerAddress(f"ta-{number}", "127.0.0.1", port, "the-key"))
        try:
            async with asyncio.timeout(LIMIT):
                yield connect
        finally:
            for writer in opened:
                writer.transport.abort()
            outside.close()
            await made.close()


async def head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answering(*answers: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A container that gives these answers, one to a request, and closes behind the last."""

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await head(reader)
            writer.write(answer)

    return container


async def exchange(connect: Callable[[], Awaitable[Streams]], request: bytes = GET) -> bytes:
    reader, writer = await connect()
    writer.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
    return await reader.read()


async def test_what_the_container_is_told() -> None:
    seen: list[bytes] = []

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await head(reader))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with gateway(container) as connect:
        request = GET.replace(
            b"\r\n\r\n", b"\r\nX-Modal-Nomad-Key: forged\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n"
        )
        assert (await exchange(connect, request)).startswith(b"HTTP/1.1 204 ")
    lines = seen[0].split(b"\r\n")
    assert [x for x in lines if x.lower().startswith(b"x-modal-nomad-key")] == [b"x-modal-nomad-key: the-key"]
    assert [x for x in lines if x.lower().startswith(b"x-forwarded-for")] == [b"X-Forwarded-For: 127.0.0.1"]
    assert not any(x.lower().startswith(b"connection") for x in lines)


async def test_a_head_that_comes_again_is_a_request_of_its_own() -> None:
    seen: list[bytes] = []
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(3)]
    answers += [b"HTTP/1.1 404 Not Found\r\nX: y\r\nContent-Length: 1\r\n\r\n3", answers[0]]
    other = GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 9.9.9.9\r\nX-Which: other\r\n\r\n")

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            seen.append(await head(reader))
            writer.write(answer)

    async with gateway(container) as connect:
        reader, writer = await connect()
        for request, answer in zip((GET, GET, other, GET, GET), answers, strict=True):
            writer.write(request)
            assert await reader.readexactly(len(answer)) == answer
    calls = [x.partition(b"\r\nx-modal-nomad-call: ")[2].partition(b"\r\n")[0] for x in seen]
    assert all(calls) and len(set(calls)) == 5
    assert [b"x-modal-nomad-key" in x for x in seen] == [True] + [False] * 4
    assert [b"X-Which: other" in x for x in seen] == [False, False, True, False, False]
    assert all(x.count(b"X-Forwarded-For: 127.0.0.1\r\n") == 1 and b"9.9.9.9" not in x for x in seen)
    plain = [x.replace(call, b"") for x, call in zip(seen, calls, strict=True)]
    assert plain[1] == plain[3] == plain[4]


async def test_an_answer_that_comes_again_is_changed_for_who_needs_it() -> None:
    """The same bytes, passed on as they are to one client, are an answer without a body to another."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    bare = whole[:-2]
    asked = (GET, GET, GET.replace(b"GET", b"HEAD"), GET.replace(b"GET", b"HEAD"), GET)

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bare if (await head(reader)).startswith(b"HEAD") else whole)

    async with gateway(container) as connect:
        reader, writer = await connect()
        for request in asked:
            writer.write(request)
            answer = bare if request.startswith(b"HEAD") else whole
            assert await reader.readexactly(len(answer)) == answer
        # On the same connection to the container, for clients that do not stay.
        closing = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        assert await exchange(connect) == closing
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.0\r\nHost: web.localhost\r\n\r\n")
        assert await reader.read() == closing
        # And one that sends the next request before it has its answer.
        reader, writer = await connect()
        writer.write(GET + GET)
        assert await reader.readexactly(2 * len(whole)) == whole + whole


async def test_answers_that_are_none() -> None:
    for answer in (
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ):
        async with gateway(answering(answer)) as connect:
            assert (await exchange(connect)).startswith(b"HTTP/1.1 502 ")


async def test_interim_answers_come_to_an_end() -> None:
    flood = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1001
    async with gateway(answering(flood)) as connect:
        answer = await exchange(connect)
        assert answer.startswith(b"HTTP/1.1 103 ") and b"HTTP/1.1 502 " in answer


async def test_an_answer_that_is_cut_off_is_seen_to_be() -> None:
    async with gateway(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")) as connect:
        assert (await exchange(connect)).endswith(b"\r\n\r\nhalf")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    async with gateway(answering(chunked)) as connect:
        assert (await exchange(connect)).endswith(b"4\r\nhalf\r\n")


async def test_framings_and_interim_answers() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with gateway(
        answering(early + b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
    ) as connect:
        answer = await exchange(connect)
        assert answer.startswith(early)
        assert answer.endswith(b"9\r\nall of it\r\n0\r\n\r\n")
    trailing = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\nX-Sum: 1\r\n\r\n"
    async with gateway(answering(trailing)) as connect:
        assert (await exchange(connect)).endswith(b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n")


async def test_no_length_is_said_of_what_has_no_body() -> None:
    """Some readers would wait for it, and take the next answer for it."""
    for status in (b"103 Early Hints", b"204 No Content"):
        said = b"HTTP/1.1 " + status + b"\r\nX: y\r\nContent-Length: 5\r\n\r\n"
        async with gateway(answering(said + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as connect:
            answer = await exchange(connect)
            assert answer.startswith(b"HTTP/1.1 " + status + b"\r\nX: y\r\n"), answer
            assert b"Content-Length: 5" not in answer
    # Of one that would have a body otherwise it is what the answer to GET would have.
    async with gateway(answering(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n")) as connect:
        assert b"Content-Length: 5\r\n" in await exchange(connect)


async def test_more_than_was_said_reaches_nobody() -> None:
    """What a container sends behind an answer must not be taken for the next one."""
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + poison
    async with gateway(answering(first, first)) as connect:
        for _ in range(3):
            assert (await exchange(connect)).endswith(b"\r\n\r\nok")


async def test_who_is_slow_is_not_waited_for() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with gateway(silent, head_seconds=0.2, stall_seconds=0.2) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTT")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 5\r\n\r\nx")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        reader, _ = await connect()
        assert await reader.read() == b""


async def test_many_connections_that_say_nothing() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with gateway(answering(answer, answer), max_clients=2) as connect:

        async def answered() -> bytes:
            try:
                return (await exchange(connect))[9:12]
            except ConnectionResetError:
                return b""

        assert await answered() == b"200"
        idle = [await connect() for _ in range(2)]
        # The next ones are told so; beyond that nobody is listened to.
        while await answered() != b"503":
            pass
        idle += [await connect() for _ in range(2)]
        while await answered() != b"":
            pass
        for reader, writer in idle:
            writer.close()
            # The gateway has seen it.
            assert await reader.read() == b""
        while await answered() != b"200":
            pass


async def test_nothing_is_collected() -> None:
    """Neither an answer that its client does not read, nor a request that its container does not."""
    sent = 0
    stalled = asyncio.Event()

    async def talking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while sent < 1_000_000_000:
            sent += 1 << 16
            writer.write(b"x" * (1 << 16))
            try:
                # Longer than any turn of the loop that would go on reading.
                await asyncio.wait_for(writer.drain(), 2.0)
            except asyncio.TimeoutError:
                stalled.set()
                await reader.read()
                return

    async with gateway(talking) as connect:
        reader, writer = await connect()
        writer.write(GET)
        await head(reader)
        await stalled.wait()
        assert sent < 100_000_000
        writer.transport.abort()


async def test_a_container_learns_that_its_client_left() -> None:
    left = asyncio.Event()

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            await reader.read()
        finally:
            left.set()

    async with gateway(container) as connect:
        reader, writer = await connect()
        writer.write(GET)
        await head(reader)
        writer.close()
        await left.wait()


async def half(connect: Callable[[], Awaitable[Streams]], requests: bytes) -> bytes:
    reader, writer = await connect()
    writer.write(requests)
    writer.write_eof()
    return await reader.read()


async def test_a_client_that_says_no_more_is_answered() -> None:
    go_on = asyncio.Event()

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head(reader)
            await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with gateway(container) as connect:
        # It is seen to be there still: what is said to it meanwhile is not refused.
        reader, writer = await connect()
        writer.write(GET)
        writer.write_eof()
        assert await head(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        go_on.set()
        assert await reader.read() == (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        # All that came whole is answered, and nothing of what did not.
        assert (await half(connect, GET * 3)).count(b"\r\n\r\nok") == 3
        assert (await half(connect, GET * 3 + GET[:9])).count(b"\r\n\r\nok") == 3
        assert await half(connect, GET[:-2]) == b""
        short = GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\nshort")
        assert await half(connect, short) == b""


async def test_a_client_that_has_gone_is_found_out() -> None:
    came, left = asyncio.Event(), asyncio.Event()

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        came.set()
        try:
            await reader.read()
        finally:
            left.set()

    for version in (b"HTTP/1.1", b"HTTP/1.0"):
        async with gateway(container) as connect:
            _, writer = await connect()
            writer.write(GET.replace(b"HTTP/1.1", version))
            await came.wait()
            writer.close()
            await left.wait()
        came.clear()
        left.clear()


async def test_a_request_that_was_not_taken_is_given_to_another() -> None:
    """A container has got the port that another one had: it knows no such key, whatever the method."""
    came: list[bytes] = []

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await head(reader) + await reader.readexactly(4))
        if len(came) == 1:
            writer.write(NOT_TAKEN % refusal(b"the-key"))
        else:
            writer.write(b"HTTP/1.1 421 Of the App\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with gateway(container, _containers=2) as connect:
        reader, writer = await connect()
        writer.write(POST)
        assert (await head(reader)).startswith(b"HTTP/1.1 421 Of the App")
        assert await reader.readexactly(2) == b"ok"
    assert len(came) == 2 and all(x.endswith(b"body") for x in came)


async def test_a_full_container_is_asked_again_and_no_app_can_say_that_it_was_one() -> None:
    came: list[bytes] = []

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            came.append(await head(reader) + await reader.readexactly(4))
            if len(came) <= 5:
                writer.write(NOT_TAKEN % (refusal(b"the-key") + FULL))
            elif len(came) == 6:
                # It knows no key: what an app would have to guess.
                writer.write(NOT_TAKEN % b"1")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()

    async with gateway(container) as connect:
        reader, writer = await connect()
        writer.write(POST)
        # However often it had no place: that was no try.
        assert (await head(reader)).startswith(b"HTTP/1.1 421")
        assert len(came) == 6
        writer.write(POST)
        assert (await head(reader)).startswith(b"HTTP/1.1 200")
    assert all(x.endswith(b"body") for x in came)


async def test_the_only_container_is_asked_again_after_a_connection_broke() -> None:
    asked = 0

    async def container(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await head(reader)
        asked += 1
        if asked in (1, 3):
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with gateway(container) as connect:
        for _ in range(2):
            assert (await exchange(connect)).startswith(b"HTTP/1.1 200")
    assert asked == 4


async def test_requests_to_a_container_behind_a_wall_are_told_so() -> None:
    """Whatever the method, and those that wait behind the first as well; one that can be had ends it."""

    @asynccontextmanager
    async def walled(seconds: float) -> AsyncIterator[tuple[Gateway, Callable[[], Awaitable[Streams]]]]:
        with socket.socket() as taken:
            # Bound, and nobody listens: every connection is refused.
            taken.bind(("127.0.0.1", 0))
            async with gateway(answering(), _containers=0, unreachable_seconds=seconds) as connect:
                made = _made[-1]
                address = ContainerAddress("ta-0", *taken.getsockname(), "another-key")
                made.instance_up("fu-1", address)
                yield made, connect

    async with walled(0.0) as (_, connect):
        for answer in await asyncio.gather(exchange(connect), exchange(connect, POST)):
            assert answer.startswith(b"HTTP/1.1 502 ") and b"takes a connection" in answer
    async with walled(LIMIT) as (made, connect):
        reader, writer = await connect()
        writer.write(POST)
        async with asyncio.timeout(LIMIT):
            (instance,) = made._services["fu-1"].instances.values()
            while instance.unmet_since is None:  # noqa: ASYNC110 - product code sets it
                await asyncio.sleep(0)

        # Not told yet: that one may have ended just now, and another one is on its way.
        async def container(inner: asyncio.StreamReader, outer: asyncio.StreamWriter) -> None:
            await head(inner)
            outer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        async with serving(container) as port:
            made.instance_out("fu-1", "ta-0")
            made.instance_up("fu-1", ContainerAddress("ta-1", "127.0.0.1", port, "the-key"))
            assert (await head(reader)).startswith(b"HTTP/1.1 200 ")
