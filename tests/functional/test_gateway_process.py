"""Gateways in processes of their own: several of them, and without a dispatcher for a while."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from _gateways import TOKEN, Gateways, Running, Serve, gateways
from conftest import Live, alive, new_home, serving, until
from test_web import listening_ports
from test_web_gateway import LIMIT, gate_app

import modal_nomad as modal
from tests._certificates import write
from tests._ports import free_ports
from tests._web_urls import at


@dataclass
class Site:
    """A dispatcher of this file's tests, and two gateways, which they leave as they found them."""

    live: Live
    one: Running
    other: Running

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Have the dispatcher do nothing meanwhile."""
        pid = self.live.status()["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with new_home() as home, pytest.MonkeyPatch.context() as patch:
        live = Live(home, tmp_path_factory.mktemp("gateways"))
        with serving(live, patch) as serve:
            serve(**{"web.gateway_token": TOKEN})
            with gateways(live.folder, f"unix://{home}/d.sock") as made:
                yield Site(live, made.start(), made.start())


@pytest.fixture
def more(site: Site, tmp_path: Path) -> Iterator[Gateways]:
    """Further gateways of the dispatcher, for one test."""
    with gateways(tmp_path, f"unix://{site.live.home}/d.sock") as made:
        yield made


@pytest.fixture
def deploy(site: Site) -> Iterator[Callable[[modal.App], None]]:
    """Deploy an App for one test."""
    apps: list[modal.App] = []

    def start(app: modal.App) -> None:
        apps.append(app.deploy())

    yield start
    for app in apps:
        site.live.request("app.stop", app_id=app.app_id)


Deploy = Callable[[modal.App], None]


def pid_at(running: Running, label: str) -> int:
    answer = httpx.get(running.url(label), timeout=LIMIT)
    assert answer.status_code == 200, answer.text
    return int(answer.text.split()[1])


def test_several_serve_from_zero_and_without_the_dispatcher(
    site: Site, more: Gateways, deploy: Deploy
) -> None:
    one, other = site.one, site.other
    deploy(gate_app("several", max_containers=1))
    # The request that starts the container waits at one, and both then know it.
    pid = pid_at(one, "several-web")
    assert pid_at(other, "several-web") == pid
    assert httpx.get(one.url("nobody"), timeout=LIMIT).status_code == 404
    # While the dispatcher does nothing, all goes on.
    with site.halted():
        for _ in range(3):
            assert pid_at(one, "several-web") == pid_at(other, "several-web") == pid
        # One that starts now knows nothing, and says so.
        third = more.start(wait="served at")
        answer = httpx.get(third.url("several-web"), timeout=LIMIT)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    until(lambda: "connected with" in third.log.read_text(), what="the dispatcher")
    assert pid_at(third, "several-web") == pid


def test_what_comes_while_there_is_no_dispatcher_waits_for_one(own: Live, serve: Serve) -> None:
    serve(**{"web.gateway_token": TOKEN})
    app = gate_app("patient", max_containers=1).deploy()
    with gateways(own.folder, f"unix://{own.home}/d.sock") as made:
        _waits_for_one(own, serve, made.start(), app)


def _waits_for_one(own: Live, serve: Serve, running: Running, app: modal.App) -> None:
    pid = pid_at(running, "patient-web")
    # Containers of this engine end with it.
    own.kill()
    until(lambda: not alive(pid), LIMIT)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(pid_at(running, "patient-web")))
    thread.start()
    serve(**{"web.gateway_token": TOKEN})
    thread.join(LIMIT)
    assert found and found != [pid]
    # What is stopped is served nowhere.
    own.request("app.stop", app_id=app.app_id)
    until(lambda: httpx.get(running.url("patient-web"), timeout=LIMIT).status_code == 404)


def test_no_request_waits_behind_another_gateways_while_a_container_is_free(
    site: Site, deploy: Deploy, tmp_path: Path
) -> None:
    one, other = site.one, site.other
    deploy(gate_app("crowded", max_inputs=1, min_containers=2, max_containers=2))
    ended: list[int] = []
    go_on = tmp_path / "go-on"

    def wait(running: Running, name: str) -> None:
        url = f"{running.url('crowded-web')}/wait?{go_on}&{tmp_path / name}"
        ended.append(httpx.post(url, timeout=LIMIT).status_code)

    def begin(running: Running, name: str) -> threading.Thread:
        thread = threading.Thread(target=wait, args=(running, name))
        thread.start()
        until((tmp_path / name).exists, LIMIT)
        return thread

    # Each has had an answer of the second container as well: both are known.
    warm = begin(one, "warm")
    assert pid_at(one, "crowded-web") == pid_at(other, "crowded-web")
    go_on.touch()
    warm.join(LIMIT)
    go_on.unlink()
    # Without the dispatcher neither knows what the other one sends where.
    with site.halted():
        threads = [begin(one, "first")]
        for _ in range(4):
            assert pid_at(other, "crowded-web")
        threads.append(begin(other, "second"))
        # Both are full now, as neither knows: what comes waits, and is no third at a time.
        late = threading.Thread(target=lambda: ended.append(pid_at(one, "crowded-web")))
        late.start()
        go_on.touch()
        for thread in (*threads, late):
            thread.join(LIMIT)
    assert len(ended) == 4 and ended.count(200) == 3


def test_a_killed_gateway_takes_its_own_requests_along_alone(
    site: Site, more: Gateways, deploy: Deploy, tmp_path: Path
) -> None:
    one, other = more.start(), site.other
    deploy(gate_app("killed", max_containers=1))
    pid = pid_at(one, "killed-web")
    ended: list[Any] = []

    def ask(running: Running, name: str) -> None:
        try:
            url = f"{running.url('killed-web')}/wait?{tmp_path / 'go-on'}&{tmp_path / name}"
            ended.append(httpx.post(url, timeout=LIMIT).status_code)
        except httpx.TransportError as error:
            ended.append(error)

    threads = [threading.Thread(target=ask, args=x) for x in ((one, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists(), LIMIT)
    one.kill()
    until(lambda: len(ended) == 1, LIMIT)
    assert isinstance(ended[0], httpx.TransportError)
    assert pid_at(other, "killed-web") == pid
    (tmp_path / "go-on").touch()
    for thread in threads:
        thread.join(LIMIT)
    assert ended[1:] == [200]


def test_a_result_is_had_through_any_of_them(more: Gateways, deploy: Deploy, tmp_path: Path) -> None:
    one, other = more.start(answer_seconds=1.0), more.start(answer_seconds=1.0)
    deploy(gate_app("anywhere", max_containers=1, timeout=600))
    file = tmp_path / "ready"
    with httpx.Client(timeout=LIMIT) as client:
        first = client.post(f"{one.url('anywhere-web')}/wait?{file}", content=b"body")
        assert first.status_code == 303
        where = first.headers["location"]
        there = f"http://127.0.0.1:{other.port}{where}"
        # Not yet: the other one sends its client there again.
        again = client.get(there)
        assert again.status_code == 303 and again.headers["location"] == where
        file.touch()
        answer = client.get(there, follow_redirects=True)
        assert answer.status_code == 200 and answer.text.startswith("open ")
        assert client.get(there).status_code == 404
        # Of one that is gone nothing is known.
        file.unlink()
        lost = client.post(f"{one.url('anywhere-web')}/wait?{file}", content=b"body").headers["location"]
        one.kill()
        until(lambda: client.get(f"http://127.0.0.1:{other.port}{lost}").status_code in (404, 502), LIMIT)
        file.touch()


def test_the_token_of_gateways_is_theirs_alone(site: Site, more: Gateways) -> None:
    stranger = more.start(wait="refuses", gateway_token="some other token")
    assert "gateways, and they alone, come with the dispatcher's gateway_token" in stranger.log.read_text()
    # It is no caller's token.
    import http.client
    import socket

    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(f"{site.live.home}/d.sock")
    connection.request("GET", "/v1/blobs/" + "0" * 64, headers={"Authorization": f"Bearer {TOKEN}"})
    assert connection.getresponse().status == 401
    connection.close()


def test_processes_share_a_port_and_are_started_again(more: Gateways, deploy: Deploy) -> None:
    running = more.start(processes=2)
    deploy(gate_app("shared", max_containers=1))
    assert pid_at(running, "shared-web")
    until(lambda: len(running.children()) == 2, LIMIT)
    for child in running.children():
        os.kill(child, signal.SIGKILL)
        until(lambda child=child: not alive(child), LIMIT)
        # What comes meanwhile waits for the next.
        for _ in range(4):
            assert pid_at(running, "shared-web")
        until(lambda child=child: len(running.children()) == 2, LIMIT)
    children = running.children()
    running.kill()
    until(lambda: not any(map(alive, children)), LIMIT)


def test_proxy_tokens_are_known_for_a_while(site: Site, deploy: Deploy) -> None:
    app = modal.App("guarded")

    @app.function(serialized=True, name="web")
    @modal.asgi_app(requires_proxy_auth=True)
    def web() -> Any:
        async def served(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"in"})

        return served

    deploy(app)
    made = site.live.request("proxy_token.create", environment="main", label="")
    good = {"Modal-Key": made["token_id"], "Modal-Secret": made["token_secret"]}
    url = site.one.url("guarded-web")
    assert httpx.get(url, timeout=LIMIT).status_code == 401
    assert httpx.get(url, headers={**good, "Modal-Secret": "ws-no"}, timeout=LIMIT).status_code == 401
    assert httpx.get(url, headers=good, timeout=LIMIT).text == "in"
    with site.halted():
        assert httpx.get(url, headers=good, timeout=LIMIT).text == "in"


def test_an_edge_of_ones_own_gets_in_where_it_may(own: Live, serve: Serve) -> None:
    serve(**{"web.listen": "http://127.0.0.1:0", "web.edge": True})
    with pytest.warns(modal.exception.ServerWarning, match="web: an edge .* give it min_containers=1"):
        app = gate_app("edged", max_containers=1).deploy()
    url = at(app["web"].get_web_url(), "/")
    base = url.removesuffix("/edged-web/")
    pid = int(httpx.get(url, timeout=LIMIT).text.split()[1])
    (port,) = listening_ports(pid)
    direct = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{direct}/.well-known/modal-nomad/health", timeout=LIMIT).status_code == 200
    found: list[str] = []
    file, begun = own.folder / "go-on", own.folder / "begun"
    thread = threading.Thread(
        target=lambda: found.append(httpx.get(f"{direct}/wait?{file}&{begun}", timeout=LIMIT).text)
    )
    thread.start()
    until(begun.exists, LIMIT)
    # The dispatcher is told of it, past its own gateway.
    until(lambda: [x["busy"] for x in own.status()["containers"]] == [1], LIMIT)
    file.touch()
    thread.join(LIMIT)
    assert found == [f"open {pid}"]

    guarded = modal.App("guarded-edge")

    @guarded.function(serialized=True, name="web")
    @modal.asgi_app(requires_proxy_auth=True)
    def web() -> Any:
        import os

        async def served(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": str(os.getpid()).encode()})

        return served

    guarded.deploy()
    made = own.request("proxy_token.create", environment="main", label="")
    good = {"Modal-Key": made["token_id"], "Modal-Secret": made["token_secret"]}
    answer = httpx.get(f"{base}/guarded-edge-web/", headers=good, timeout=LIMIT)
    (port,) = listening_ports(int(answer.text))
    assert httpx.get(f"http://127.0.0.1:{port}/", headers=good, timeout=LIMIT).status_code == 421

    several = modal.App("several")

    @several.cls(serialized=True)
    class Both:
        @modal.wsgi_app()
        def one(self) -> Any:
            return saying("one")

        @modal.wsgi_app()
        def two(self) -> Any:
            return saying("two")

    def saying(word: str) -> Any:
        def app(environ: Any, start_response: Any) -> list[bytes]:
            import os

            start_response("200 OK", [])
            return [f"{word} {os.getpid()}".encode()]

        return app

    with pytest.warns(modal.exception.ServerWarning, match="min_containers=1"):
        several.deploy()
    answer = httpx.get(f"{base}/several-both-one/", timeout=LIMIT)
    (port,) = listening_ports(int(answer.text.split()[1]))
    # An edge has one pool of connections for a container, and each request says what it is for.
    with httpx.Client(timeout=LIMIT, headers={"Connection": "keep-alive"}) as edge:
        for word in ("one", "two", "one"):
            told = {"X-Modal-Nomad-Method": word}
            assert edge.get(f"http://127.0.0.1:{port}/", headers=told).text.split()[0] == word


def test_https_of_the_dispatcher_itself(own: Live, serve: Serve) -> None:
    cert, key = write(own.folder, "*.web.test")
    (port,) = free_ports(1)
    pair = {"cert": cert, "key": key}
    web = {"web.listen": f"https://127.0.0.1:{port}", "web.domain": "web.test"}
    serve(**web, **{"tls.interval": 0.05, "tls.certificates": [pair]})
    app = gate_app("own", max_containers=1).deploy()
    assert app.registered_functions["web"].get_web_url() == f"https://own-web.web.test:{port}"

    def status(trusted: ssl.SSLContext) -> int:
        named, host = {"sni_hostname": "own-web.web.test"}, {"Host": f"own-web.web.test:{port}"}
        with httpx.Client(verify=trusted, timeout=LIMIT, headers=host) as client:
            return client.get(f"https://127.0.0.1:{port}/", extensions=named).status_code

    assert status(ssl.create_default_context(cafile=cert)) == 200
    write(own.folder, "*.web.test")
    second = ssl.create_default_context(cafile=cert)

    def renewed() -> bool:
        with contextlib.suppress(httpx.ConnectError):
            return status(second) == 200
        return False

    until(renewed, what="the renewed certificate")


def test_https_with_a_certificate_that_changes(more: Gateways, deploy: Deploy, tmp_path: Path) -> None:
    cert, key = write(tmp_path, "secure-web.localhost")
    tables = f'[tls]\ninterval = 0.05\ncertificates = [{{ cert = "{cert}", key = "{key}" }}]\n'
    running = more.start(listen="https://127.0.0.1:0", tables=tables)
    deploy(gate_app("secure", max_containers=1))
    url, host = f"https://127.0.0.1:{running.port}/", {"Host": f"secure-web.localhost:{running.port}"}
    named = {"sni_hostname": "secure-web.localhost"}
    first = ssl.create_default_context(cafile=cert)
    with httpx.Client(verify=first, timeout=LIMIT, headers=host) as client:
        assert client.get(url, extensions=named).status_code == 200
        file, begun = tmp_path / "go-on", tmp_path / "begun"
        found: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: found.append(client.get(f"{url}wait?{file}&{begun}", extensions=named))
        )
        thread.start()
        until(begun.exists, LIMIT)
        write(tmp_path, "secure-web.localhost")
        until(lambda: running.log.read_text().count("certificate for secure-web.localhost") == 2, LIMIT)
        second = ssl.create_default_context(cafile=cert)
        with httpx.Client(verify=second, timeout=LIMIT, headers=host) as other:
            assert other.get(url, extensions=named).status_code == 200
        with (
            httpx.Client(verify=first, timeout=LIMIT, headers=host) as other,
            pytest.raises(httpx.ConnectError),
        ):
            other.get(url, extensions=named)
        # What had begun before ends as if nothing had been.
        file.touch()
        thread.join(LIMIT)
        assert [x.status_code for x in found] == [200]
        assert client.get(url, extensions=named).status_code == 200


def test_a_new_version_under_load_fails_no_request(site: Site, deploy: Deploy) -> None:
    both = [site.one, site.other]
    deploy(gate_app("rolled", "old"))
    for running in both:
        assert httpx.get(running.url("rolled-web"), timeout=LIMIT).text.startswith("old ")
    seen: list[str] = []
    failed: list[Any] = []

    def ask(running: Running) -> None:
        with httpx.Client(timeout=LIMIT) as client:
            while not failed:
                try:
                    answer = client.post(running.url("rolled-web"))
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    failed.append(error)
                    return
                seen.append(answer.text.split()[0])
                if seen[-1] == "new":
                    return

    threads = [threading.Thread(target=ask, args=(running,)) for running in both * 2]
    for thread in threads:
        thread.start()
    deploy(gate_app("rolled", "new"))
    for thread in threads:
        thread.join(LIMIT)
    assert not failed and seen.count("new") == len(threads)


def test_a_container_killed_amid_a_request_costs_that_one(site: Site, deploy: Deploy, tmp_path: Path) -> None:
    one, other = site.one, site.other
    deploy(gate_app("mortal", max_containers=1))
    pid = pid_at(one, "mortal-web")
    found: list[int] = []
    begun = tmp_path / "begun"
    url = f"{one.url('mortal-web')}/wait?{tmp_path / 'never'}&{begun}"
    thread = threading.Thread(target=lambda: found.append(httpx.post(url, timeout=LIMIT).status_code))
    thread.start()
    until(begun.exists, LIMIT)
    os.kill(pid, signal.SIGKILL)
    thread.join(LIMIT)
    assert found == [502]
    assert pid_at(one, "mortal-web") == pid_at(other, "mortal-web") != pid
