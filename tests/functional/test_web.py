"""Web endpoints, asked by real clients through the gateway of the embedded dispatcher."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import _web_served as served
import aiohttp
import httpx
import pytest
import websockets
from conftest import Live, until

import modal_nomad as modal
from modal_nomad.exception import AlreadyExistsError, DeprecationError, InvalidError, ServerWarning
from tests._web_urls import named

LIMIT = 90.0


@pytest.fixture(scope="module")
def base(_shared_home: Path) -> Iterator[str]:
    """Where the gateway is; the endpoints of ``_web_served`` are at ``/<label>`` there."""
    with served.app.run():
        url = served.app["raw"].get_web_url()
        assert url is not None
        yield f"http://127.0.0.1:{urlsplit(url).port}"


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT)) as session:
        yield session


def get(url: str, **options: Any) -> httpx.Response:
    return httpx.get(url, timeout=LIMIT, **options)


def raw_exchange(base: str, data: bytes) -> bytes:
    """Send bytes and return all that comes back until the gateway closes."""
    where = urlsplit(base)
    with socket.create_connection((where.hostname, where.port), timeout=LIMIT) as sock:
        sock.sendall(data)
        found = bytearray()
        while part := sock.recv(65536):
            found += part
        return bytes(found)


# --- what user code sees --------------------------------------------------------------------------


def test_an_asgi_app(base: str) -> None:
    answer = get(f"{base}/served-raw-dev/?a=b%20c", headers={"X-Mine": "1", "X-Forwarded-For": "6.6.6.6"})
    lines = answer.text.splitlines()
    assert lines[0] == "GET /served-raw-dev/ a=b%20c"
    assert lines[1] == "root /served-raw-dev" and lines[2] == "client 127.0.0.1 http"
    assert lines[3] == "state in startup"
    assert re.fullmatch(r"input in-\w{22}:0", lines[4])
    fields = dict(line.split(": ", 1) for line in lines[5:])
    assert fields["x-mine"] == "1" and fields["x-forwarded-for"] == "127.0.0.1"
    assert fields["x-forwarded-proto"] == "http" and fields["x-forwarded-host"] == fields["host"]
    assert not any(name.startswith("x-modal") for name in fields)
    # State is copied for each request: what one leaves there, no other sees.
    assert "state in startup" in get(f"{base}/served-raw-dev/").text


def test_the_host_name_leads_there_too(base: str) -> None:
    url = served.app["raw"].get_web_url()
    host = named(url)
    assert host.startswith("served-raw-dev.localhost:")
    answer = get(f"{base}/deep/", headers={"Host": host})
    assert answer.text.splitlines()[:2] == ["GET /deep/ ", "root "]
    with pytest.warns(DeprecationError, match="get_web_url"):
        assert served.app["raw"].web_url == url


@pytest.mark.parametrize("host", ["evil.example.com", "served-raw-dev.localhost.evil.com", "localhost"])
def test_other_hosts_lead_nowhere(base: str, host: str) -> None:
    assert get(f"{base}/", headers={"Host": host}).status_code == 404


def test_methods_and_head(base: str) -> None:
    for method in ("DELETE", "PATCH", "OPTIONS", "PUT"):
        answer = httpx.request(method, f"{base}/served-raw-dev/", timeout=LIMIT)
        assert answer.text.startswith(f"{method} /")
    head = httpx.head(f"{base}/served-raw-dev/", timeout=LIMIT)
    assert head.status_code == 200 and int(head.headers["content-length"]) > 0 and not head.content


def test_large_fields(base: str) -> None:
    answer = get(f"{base}/served-raw-dev/fields")
    assert len(answer.headers["x-long"]) == 20_000
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    sent = get(f"{base}/served-raw-dev/", headers={"X-Long": "z" * 20_000})
    assert "z" * 20_000 in sent.text


async def test_bodies_of_both_framings(base: str) -> None:
    data = bytes(range(256)) * 4096

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 99_999):
            yield data[start : start + 99_999]

    async with client() as session:
        for body in (data, parts()):
            async with session.post(f"{base}/served-raw-dev/echo", data=body) as answer:
                assert await answer.read() == data
        async with session.post(f"{base}/served-raw-dev/echo", data=b"x" * 10, expect100=True) as answer:
            assert await answer.read() == b"x" * 10
        async with session.get(f"{base}/served-raw-dev/large") as answer:
            assert sum([len(x) async for x in answer.content.iter_any()]) == 64 << 18


async def test_parts_come_as_they_are_sent(base: str) -> None:
    async with client() as session, session.get(f"{base}/served-raw-dev/stream") as answer:
        assert answer.content_type == "text/event-stream"
        for number in range(3):
            # The next part is made only now: nobody may have held this one back.
            assert await answer.content.readuntil(b"\n\n") == f"data: {number}\n\n".encode()
            async with session.post(f"{base}/served-raw-dev/next") as went_on:
                assert went_on.status == 204
        assert await answer.content.read() == b""


async def test_both_directions_at_once(base: str) -> None:
    more: asyncio.Queue[bytes] = asyncio.Queue()

    async def parts() -> AsyncIterator[bytes]:
        while part := await more.get():
            yield part

    async with client() as session:
        more.put_nowait(b"first")
        async with session.post(f"{base}/served-raw-dev/both-ways", data=parts()) as answer:
            assert await answer.content.readany() == b"first"
            more.put_nowait(b"second")
            assert await answer.content.readany() == b"second"
            more.put_nowait(b"")
            assert await answer.content.readany() == b""


async def test_a_websocket(base: str) -> None:
    address = base.replace("http:", "ws:") + "/served-raw-dev/"
    async with websockets.connect(address, subprotocols=["shout"], open_timeout=LIMIT) as socket_:
        assert socket_.subprotocol == "shout"
        await socket_.send("hello")
        assert await socket_.recv() == "HELLO"
        await socket_.send(b"abc" * 100_000)
        assert await socket_.recv() == b"cba" * 100_000
        before = int(get(f"{base}/served-raw-dev/counts").text.split()[1])
        socket_.transport.abort()
    # The app is told, and may clean up.
    while int(get(f"{base}/served-raw-dev/counts").text.split()[1]) <= before:
        continue


def test_wsgi_apps(base: str) -> None:
    answer = httpx.post(f"{base}/served-wsgi-dev/a/b?c=d", content=b"12345", timeout=LIMIT)
    assert answer.text == "POST /served-wsgi-dev /a/b 5" and answer.headers["x-kind"] == "wsgi"
    assert get(f"{base}/served-flask-dev/you").json() == {"hello": "you"}


def test_a_fastapi_endpoint(base: str) -> None:
    url = f"{base}/served-square-dev"
    answer = httpx.post(f"{url}/?x=5", headers={"Origin": "http://other"}, timeout=LIMIT)
    assert answer.json() == {"square": 25}
    assert answer.headers["access-control-allow-origin"] in ("*", "http://other")
    assert get(url).status_code == 405
    assert httpx.post(f"{url}/?x=y", timeout=LIMIT).status_code == 422
    assert "swagger" in get(f"{url}/docs").text.lower()
    assert get(f"{url}/openapi.json").json()["paths"]
    assert get(f"{base}/served-model-show-dev/docs").status_code == 404


def test_methods_of_a_class(base: str) -> None:
    assert get(f"{base}/served-model-show-dev/").json() == {"size": 3, "one loop": True}
    assert served.Model().double.remote(4) == 8
    url = served.Model().show.get_web_url()
    assert url and "served-model-show-dev" in url and served.Model().double.get_web_url() is None
    with pytest.raises(InvalidError, match="webhook"):
        served.Model().show.remote()


async def test_a_server_of_the_users_own(base: str) -> None:
    url = f"{base}/served-server-dev"
    async with client() as session:
        async with session.get(f"{url}/a%20b?c") as answer:
            text = await answer.text()
        assert text.startswith("/a%20b?c ") and "x-modal" not in text.lower()

        async def ask(number: int) -> str:
            async with session.get(f"{url}/{number}") as answer:
                return (await answer.text()).split()[0]

        assert await asyncio.gather(*map(ask, range(40))) == [f"/{x}" for x in range(40)]
        async with session.get(f"{url}/garbage") as answer:
            assert answer.status == 502
        async with session.get(f"{url}/again") as answer:
            assert answer.status == 200


# --- what goes wrong ------------------------------------------------------------------------------


def test_an_error_shows_nothing_of_the_code(base: str) -> None:
    answer = get(f"{base}/served-raw-dev/boom")
    assert answer.status_code == 500 and "words" not in answer.text and "Traceback" not in answer.text


@pytest.mark.parametrize("label", ["served-lacking-dev", "served-nobody-listens-dev", "served-unstarted-dev"])
def test_a_container_that_cannot_start(base: str, label: str) -> None:
    answer = get(f"{base}/{label}/")
    assert answer.status_code == 500 and answer.text == (
        "500 Internal Server Error: the endpoint could not start: its logs say why\n"
    )


def test_the_logs_say_why(base: str, live: Live) -> None:
    get(f"{base}/served-lacking-dev/")
    app_id = str(served.app.app_id)
    until(lambda: 'pip_install("fastapi[standard]")' in live.cli("app", "logs", app_id).stderr, LIMIT)


def test_the_timeout_of_the_function_holds(base: str) -> None:
    answer = get(f"{base}/impatient-dev/wait")
    assert answer.status_code == 504 and "timeout of 1 s" in answer.text


async def test_work_is_cancelled_when_its_client_leaves(base: str) -> None:
    url = f"{base}/served-raw-dev"
    async with client() as session:

        async def counts() -> list[int]:
            async with session.get(f"{url}/counts") as answer:
                return [int(x) for x in (await answer.text()).split()]

        async def reach(index: int, value: int) -> None:
            # Each look is a request that the container answers in its turn.
            while (await counts())[index] < value:
                continue

        started, cancelled, _ = await counts()
        async with client() as other:
            task = asyncio.create_task(other.get(f"{url}/wait"))
            await reach(0, started + 1)
            task.cancel()
        await reach(1, cancelled + 1)


def test_what_runs_in_a_thread_ends_with_its_request(base: str, tmp_path: Path) -> None:
    """The containers take one request at a time: the second one is answered when the first has ended."""
    with httpx.stream("GET", f"{base}/served-endless-dev/", timeout=LIMIT) as left:
        assert next(left.iter_bytes())
    assert get(f"{base}/served-endless-dev/closed").text == "['closed']"

    begun, where = tmp_path / "begun", urlsplit(base)
    with socket.create_connection((where.hostname, where.port), timeout=LIMIT) as sock:
        head = f"GET /served-sync-dev/?file={begun} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        sock.sendall(head.encode())
        until(begun.exists)
    assert get(f"{base}/served-sync-dev/").json() == {"running": 1, "cut": ["InputCancellation"]}


def test_a_thread_that_does_not_end_is_not_waited_for(base: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    try:
        assert get(f"{base}/served-unstoppable-dev/?file={end}").status_code == 504
    finally:
        end.touch()


async def test_no_more_requests_at_a_time_than_there_may_be(base: str) -> None:
    url = f"{base}/served-one-at-a-time-dev"
    async with client() as session:
        streaming = await session.get(f"{url}/stream")
        assert await streaming.content.readuntil(b"\n\n") == b"data: 0\n\n"
        waiting = [asyncio.create_task(session.get(f"{url}/counts")) for _ in range(3)]
        async with session.get(f"{base}/served-raw-dev/counts") as answer:
            assert answer.status == 200
        assert not any(x.done() for x in waiting)
        streaming.close()
        answers = await asyncio.gather(*waiting)
        assert {x.status for x in answers} == {200}
        for answer in answers:
            answer.release()


async def test_a_container_that_dies(base: str) -> None:
    url = f"{base}/served-raw-dev"
    async with client() as session:
        async with session.post(f"{url}/die") as answer:
            assert answer.status == 502
        async with session.get(f"{url}/") as answer:
            assert answer.status == 200


def test_a_container_ends_when_nobody_asks(base: str, live: Live) -> None:
    assert get(f"{base}/served-brief-dev/counts").status_code == 200

    def running() -> list[Any]:
        return [x for x in live.status()["containers"] if x["function"] == "brief"]

    until(lambda: not running(), LIMIT, "the container's end")
    app_id = str(served.app.app_id)
    until(lambda: "lifespan ended" in live.cli("app", "logs", app_id).stdout, LIMIT)
    assert get(f"{base}/served-brief-dev/counts").status_code == 200


# --- the wire -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /served-raw-dev/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /served-raw-dev/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"GET /served-raw-dev/ HTTP/1.1\nHost: localhost\n\n\r\n\r\n",
        b"GET /served-raw-dev/ HTTP/1.1\r\nHost: localhost\r\nX_Forwarded_For: 1.2.3.4\r\n\r\n",
        b"GET /served-raw-dev/ HTTP/1.1\r\nHost: localhost\r\nX-Modal_Nomad-Key: k\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_could_be_understood_in_two_ways_is_refused(base: str, request_: bytes) -> None:
    closing = request_.replace(b"Host: localhost\r\n", b"Host: localhost\r\nConnection: close\r\n")
    assert raw_exchange(base, closing).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("target", "host", "seen"),
    [
        # Nobody resolves dots, decodes or folds slashes: what follows a label is its app's, as it is.
        (
            "/served-raw-dev/../served-model-secret-dev/",
            "localhost",
            "/served-raw-dev/../served-model-secret-dev/",
        ),
        ("/served-raw-dev/%2e%2e/x/", "localhost", "/served-raw-dev/../x/"),
        (
            "/served-raw-dev//served-model-secret-dev/",
            "localhost",
            "/served-raw-dev//served-model-secret-dev/",
        ),
        ("/../served-model-secret-dev/", "served-raw-dev.localhost", "/../served-model-secret-dev/"),
        ("http://served-raw-dev.localhost/", "served-model-secret-dev.localhost", "/"),
        ("http://served-model-secret-dev.localhost/", "served-raw-dev.localhost", "401"),
        ("http://served-raw-dev.localhost@served-model-secret-dev.localhost/", "localhost", "400"),
        ("/served-model-secret-dev/..;/", "localhost", "401"),
        ("/%73erved-raw-dev/", "localhost", "404"),
        ("//served-raw-dev/", "localhost", "404"),
        ("/../served-raw-dev/", "localhost", "404"),
        ("/served-raw-dev/", "served-raw-dev.localhost.", "/served-raw-dev/"),
        ("/", "served-raw-dev.localhost:99999999", "400"),
    ],
)
def test_no_path_leads_to_another_app(base: str, target: str, host: str, seen: str) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    head, _, body = raw_exchange(base, request.encode()).decode().partition("\r\n\r\n")
    if seen.isdigit():
        assert head.split()[1] == seen
    else:
        assert body.split()[:2] == ["GET", seen], head


def test_a_smuggled_request_is_part_of_the_body(base: str) -> None:
    inner = b"GET /served-raw-dev/die HTTP/1.1\r\nHost: localhost\r\n\r\n"
    outer = (
        b"POST /served-raw-dev/echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % len(inner)
    )
    answer = raw_exchange(base, outer + inner)
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(inner)


def test_requests_in_a_row_are_answered_in_order(base: str) -> None:
    one = b"POST /served-raw-dev/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n%d"
    last = b"GET /served-raw-dev/counts HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = raw_exchange(base, b"".join(one % x for x in range(5)) + last)
    bodies = [x.rpartition(b"\r\n\r\n")[2] for x in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies[:5] == [b"0", b"1", b"2", b"3", b"4"] and len(bodies) == 6


def test_older_and_newer_versions(base: str) -> None:
    old = raw_exchange(base, b"GET /served-raw-dev/large HTTP/1.0\r\nHost: localhost\r\n\r\n")
    head, _, body = old.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower() and len(body) == 64 << 18
    newer = raw_exchange(base, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    # A frame of settings, then one that asks for HTTP/1.1.
    assert newer[3] == 4 and newer[12] == 7 and newer[-1] == 0x0D


def test_too_much_is_refused(base: str) -> None:
    assert raw_exchange(base, b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000).startswith(b"HTTP/1.1 431 ")
    large = b"POST /served-raw-dev/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    assert raw_exchange(base, large).startswith(b"HTTP/1.1 413 ")


def test_nobody_else_gets_into_a_container(base: str) -> None:
    """Another process of the node finds the port, but has no key."""
    pid = int(get(f"{base}/served-raw-dev/counts").text.split()[2])
    ports = listening_ports(pid)
    assert ports
    for port in ports:
        found = raw_exchange(f"http://127.0.0.1:{port}", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 421 ")


def listening_ports(pid: int) -> list[int]:
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(link.readlink().name)
        except OSError:
            continue
    found = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
            found.append(int(words[1].partition(":")[2], 16))
    return found


# --- tokens, labels, deployments ------------------------------------------------------------------


def test_proxy_auth(base: str, live: Live) -> None:
    url = f"{base}/served-model-secret-dev/"
    refused = get(url)
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Modal-Key"
    assert refused.text.startswith("401 Unauthorized: ") and "modal-nomad proxy-token create" in refused.text
    made = live.request("proxy_token.create", label="a test")
    fields = {"Modal-Key": made["token_id"], "Modal-Secret": made["token_secret"]}
    assert get(url, headers={**fields, "Modal-Secret": "wrong"}).status_code == 401
    answer = get(url, headers=fields)
    assert answer.status_code == 200 and answer.json() == "open"
    listed = live.cli("proxy-token", "list")
    assert made["token_id"] in listed.stdout and made["token_secret"] not in listed.stdout
    done = live.cli("proxy-token", "delete", "-y", made["token_id"])
    assert done.returncode == 0, done.stderr
    assert get(url, headers=fields).status_code == 401
    shown = live.cli("proxy-token", "create", "--json")
    assert shown.returncode == 0 and '"token_id": "wk-' in shown.stdout


def test_a_label_belongs_to_one_deployed_app(base: str, live: Live) -> None:
    def labelled(name: str, label: str = "mine", domain: str = "api.example.com") -> modal.App:
        app = modal.App(name)

        @app.function(serialized=True, name="web")
        @modal.asgi_app(label=label, custom_domains=[domain])
        def web() -> Any:
            async def hello(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "lifespan":
                    return
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": name.encode()})

            return hello

        return app

    first = labelled("first").deploy()
    try:
        with pytest.raises(AlreadyExistsError, match="'mine', where App first is"):
            labelled("second").deploy()
        with pytest.raises(AlreadyExistsError, match=r"'api.example.com', where App first is"):
            labelled("second", "other").deploy()
        # Nor may one that has an endpoint of its own take another's domain.
        second = labelled("second", "other", "b.example.com").deploy()
        try:
            with pytest.raises(AlreadyExistsError, match=r"'api.example.com', where App first is"):
                labelled("second", "other").deploy()
        finally:
            live.request("app.stop", app_id=second.app_id)
        assert get(f"{base}/mine/").text == "first"
        labelled("first").deploy()
        assert get(f"{base}/mine/").text == "first"
        assert named(modal.Function.from_name("first", "web").get_web_url()).startswith("mine.localhost:")
    finally:
        live.request("app.stop", app_id=first.app_id)
    assert get(f"{base}/mine/").status_code == 404


def test_what_cannot_start_is_told_when_it_is_deployed(base: str, live: Live) -> None:
    app = modal.App("without-fastapi")

    @app.function(serialized=True, name="square")
    @modal.fastapi_endpoint()
    def square(x: int) -> int:
        return x * x

    with pytest.warns(ServerWarning, match=r"square is a FastAPI endpoint.*pip_install\(.fastapi"):
        app.deploy()
    assert app.app_id is not None
    live.request("app.stop", app_id=app.app_id)


def test_urls_are_printed(live: Live) -> None:
    script = live.write(
        "printed.py",
        """
        import modal_nomad as modal

        app = modal.App("printed")

        @app.function()
        @modal.asgi_app()
        def web():
            pass

        @app.local_entrypoint()
        def main():
            pass
        """,
    )

    def printed(word: str) -> str:
        said = live.cli(word, str(script)).stdout
        return named(said.partition("Created web function web => ")[2].split()[0])

    assert printed("run").startswith("printed-web-dev.localhost:")
    assert printed("deploy").startswith("printed-web.localhost:")
    assert live.cli("app", "stop", "printed").returncode == 0


def test_the_port_is_kept_over_a_restart(own: Live) -> None:
    app = modal.App("kept")

    @app.function(serialized=True, name="web")
    @modal.asgi_app()
    def web() -> Any:
        async def hello(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"still here"})

        return hello

    app.deploy()
    url = app["web"].get_web_url()
    address = f"http://127.0.0.1:{urlsplit(str(url)).port}/kept-web/"
    assert get(address).text == "still here"
    own.kill()
    assert own.status()["apps"] == 1
    assert modal.Function.from_name("kept", "web").get_web_url() == url
    assert get(address).text == "still here"
