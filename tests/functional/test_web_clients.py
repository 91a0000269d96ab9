"""The frameworks that people bring, asked by what people use: curl, httpx, websockets, a browser."""

from __future__ import annotations

import functools
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
import websockets
from conftest import Live, until

LIMIT = 90.0
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Site:
    """Where the endpoints of ``_web_frameworks`` are."""

    def __init__(self, url: str) -> None:
        self.port = urlsplit(url).port

    def at(self, name: str, path: str = "") -> str:
        """A URL that everything can resolve."""
        return f"http://127.0.0.1:{self.port}/frameworks-{name}-dev{path}"

    def host(self, name: str) -> str:
        return f"frameworks-{name}-dev.localhost:{self.port}"


@pytest.fixture(scope="module")
def site(_shared_home: Path) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        # Imported here to be sent along; the container alone runs it.
        import _web_frameworks

        with _web_frameworks.app.run():
            url = _web_frameworks.app["fastapi"].get_web_url()
            assert url is not None
            yield Site(url)


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=LIMIT, follow_redirects=True) as made:
        yield made


def curl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "90", *words], capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


# --- frameworks -----------------------------------------------------------------------------------


def test_fastapi(site: Site, client: httpx.Client) -> None:
    assert "<title>Live</title>" in client.get(site.at("fastapi", "/")).text
    assert client.get(site.at("fastapi", "/openapi.json")).json()["info"]["title"] == "FastAPI"
    with client.stream("GET", site.at("fastapi", "/events")) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [x for x in answer.iter_lines() if x] == ["data: first", "data: second", "data: last"]
    parts = (b"x" * 100_000 for _ in range(20))
    assert client.post(site.at("fastapi", "/upload"), content=parts).json() == {"bytes": 2_000_000}
    assert client.get(site.at("fastapi", "/nowhere")).status_code == 404


def test_starlette(site: Site, client: httpx.Client) -> None:
    """Links that an app makes lead back to it, by its host name and by its path."""
    base = site.at("starlette")
    found = client.get(f"{base}/where").json()
    assert found["url"] == f"{base}/where"
    assert client.get(found["link"]).text == "0123456789" * 500
    assert client.get(f"{base}/moved").url.path.endswith("/frameworks-starlette-dev/where")
    by_name = client.get(f"http://127.0.0.1:{site.port}/where", headers={"Host": site.host("starlette")})
    assert by_name.json()["url"] == f"http://{site.host('starlette')}/where"
    assert client.get(f"{base}/cookie").text == "never"
    assert client.get(f"{base}/cookie").text == "before"
    squeezed = client.get(f"{base}/static/notes.txt", headers={"Accept-Encoding": "gzip"})
    assert squeezed.headers["content-encoding"] == "gzip" and squeezed.text == "0123456789" * 500
    part = client.get(
        f"{base}/static/notes.txt", headers={"Range": "bytes=10-14", "Accept-Encoding": "identity"}
    )
    assert (part.status_code, part.text) == (206, "01234")
    again = client.get(f"{base}/static/notes.txt", headers={"If-None-Match": part.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_flask(site: Site, client: httpx.Client) -> None:
    base = site.at("flask")
    for item in ("bread", "milk"):
        answer = client.post(f"{base}/basket", data={"item": item})
        assert answer.status_code == 200 and answer.url.path == urlsplit(f"{base}/basket").path
    assert answer.json() == {"items": ["bread", "milk"]}
    sent = client.post(f"{base}/file", files={"file": ("big.bin", b"y" * 1_000_000)})
    assert sent.json() == {"name": "big.bin", "bytes": 1_000_000}
    assert client.get(f"{base}/stream").text.count("line ") == 1000


def test_django(site: Site) -> None:
    # By its host name: it reckons once where its static files are.
    where = f"http://127.0.0.1:{site.port}"
    host = {"Host": site.host("django")}
    with httpx.Client(base_url=where, headers=host, timeout=LIMIT, follow_redirects=True) as client:
        assert client.get("/visits").text == "visit 1 by AnonymousUser"
        assert client.get("/visits").text == "visit 2 by AnonymousUser"
        page = client.get("/admin/")
        assert page.url.path == "/admin/login/" and "Django administration" in page.text
        style = re.search(r'href="([^"]*base\.css)"', page.text)
        assert style is not None
        assert client.get(style.group(1)).headers["content-type"].startswith("text/css")
        form = {"username": "ann", "password": "secret", "next": "/admin/"}
        # Without the form's token nobody gets in.
        assert client.post("/admin/login/", data=form).status_code == 403
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        assert token is not None
        page = client.post("/admin/login/", data={**form, "csrfmiddlewaretoken": token.group(1)})
        assert page.status_code == 200 and "Site administration" in page.text
        assert client.get("/visits").text == "visit 3 by ann"
        assert "ann@example.com" in client.get("/admin/auth/user/").text
        # Its check of where a form comes from goes by what the gateway says, whatever a client says.
        secure = {"X-Forwarded-Proto": "https"}
        assert client.get("/scheme", headers=secure).text == "http"
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', client.get("/admin/").text)
        assert token is not None
        out = {"csrfmiddlewaretoken": token.group(1)}
        for origin, status in ((f"https://{host['Host']}", 403), (f"http://{host['Host']}", 200)):
            told = {"Origin": origin, **secure}
            assert client.post("/admin/logout/", data=out, headers=told).status_code == status
        assert client.get("/stream").text.count("line ") == 1000
    # What depends on the request alone works by the path, too.
    by_path = httpx.get(site.at("django", "/admin/"), timeout=LIMIT)
    assert by_path.headers["location"].startswith("/frameworks-django-dev/admin/login/")


def test_http_server(site: Site, client: httpx.Client) -> None:
    base = site.at("files")
    assert client.get(f"{base}/hello.txt").text == "hello from a file\n"
    assert 'href="hello.txt"' in client.get(f"{base}/").text
    assert client.head(f"{base}/hello.txt").headers["content-length"] == "18"
    assert client.get(f"{base}/not-there").status_code == 404
    # What its HTTP/1.0 does not know.
    assert client.post(f"{base}/hello.txt").status_code == 501


WORK = [
    *[("fastapi", kind) for kind in ("async", "def", "streamed", "streamed-async")],
    *[("starlette", kind) for kind in ("async", "def")],
    *[(name, kind) for name in ("flask", "django") for kind in ("def", "streamed")],
]


def test_who_leaves_ends_what_works_for_them(site: Site, tmp_path: Path) -> None:
    left: list[tuple[Path, socket.socket]] = []
    try:
        for name, kind in WORK:
            folder = tmp_path / f"{name}-{kind}"
            folder.mkdir()
            sock = socket.create_connection(("127.0.0.1", site.port), timeout=LIMIT)
            left.append((folder, sock))
            target = f"/frameworks-{name}-dev/work/{kind}?{urlencode({'folder': str(folder)})}"
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        for folder, _ in left:
            until((folder / "begun").exists, what=f"the beginning of {folder.name}")
    finally:
        for _, sock in left:
            sock.close()
    for folder, _ in left:
        ended = "CancelledError" if folder.name.endswith("async") else "InputCancellation"
        until(functools.partial(holds, folder / "ended", ended), what=f"the end of {folder.name}")


def holds(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


# --- clients --------------------------------------------------------------------------------------


def test_curl(site: Site, tmp_path: Path) -> None:
    page = site.at("fastapi", "/style.css")
    text = "h1 { color: rgb(0, 128, 0); }"
    told = curl("-w", " %{http_code} %{http_version}", page).stdout
    assert told == f"{text} 200 1.1"
    assert curl("--http1.0", "-w", " %{http_code}", page).stdout == f"{text} 200"
    # It asks for an upgrade, and goes on with what it has.
    assert curl("--http2", "-w", " %{http_version}", page).stdout == f"{text} 1.1"
    name = site.host("fastapi")
    assert curl("--resolve", f"{name}:127.0.0.1", f"http://{name}/style.css").stdout == text
    file = tmp_path / "big"
    file.write_bytes(b"z" * 3_000_000)
    for words in (
        ("-T", str(file)),
        ("-T", str(file), "-H", "Transfer-Encoding: chunked"),
        ("--data-binary", f"@{file}"),
    ):
        found = curl(*words, "-H", "Expect: 100-continue", site.at("fastapi", "/upload"))
        assert found.stdout == '{"bytes":3000000}', found.stderr
    assert "content-length: 5000" in curl("-I", site.at("starlette", "/static/notes.txt")).stdout.lower()
    two = curl(page, site.at("fastapi", "/events"), "-N").stdout
    assert two == f"{text}data: first\n\ndata: second\n\ndata: last\n\n"


def test_curl_that_insists_on_http2(site: Site) -> None:
    done = curl("--http2-prior-knowledge", "-v", site.at("fastapi", "/style.css"), check=False)
    if "option --http2-prior-knowledge" in done.stderr:
        pytest.skip("this curl has no HTTP/2")
    # Told in its own words, so that it does not wait, nor try for ever: HTTP_1_1_REQUIRED.
    assert done.returncode not in (0, 28), done.stderr
    assert "HTTP_1_1_REQUIRED" in done.stderr or "HTTP/2" in done.stderr or "GOAWAY" in done.stderr


async def test_websockets(site: Site) -> None:
    url = site.at("fastapi", "/socket").replace("http:", "ws:")
    async with websockets.connect(
        url, subprotocols=[websockets.Subprotocol("echo")], open_timeout=LIMIT
    ) as ws:
        assert ws.subprotocol == "echo"
        for message in ("text", b"bytes", "x" * 500_000, ""):
            await ws.send(message)
            assert await ws.recv() == message
        await (await ws.ping())
        # In pieces, as streams of messages are sent.
        await ws.send(["one ", "message"])
        assert await ws.recv() == "one message"
        await ws.send("close")
        with pytest.raises(websockets.ConnectionClosed):
            await ws.recv()
        assert (ws.close_code, ws.close_reason) == (4321, "as you wish")
    with pytest.raises(websockets.InvalidStatus):
        await websockets.connect(url.replace("/socket", "/nowhere"), open_timeout=LIMIT)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium")
def test_a_browser(site: Site, live: Live) -> None:
    api: Any = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page(viewport={"width": 640, "height": 360})
            page.set_default_timeout(LIMIT * 1000)
            faults: list[str] = []
            page.on(
                "console", lambda message: faults.append(message.text) if message.type == "error" else None
            )
            page.goto(f"http://{site.host('fastapi')}/")
            page.wait_for_function("document.body.innerText.includes('last')")
            page.wait_for_function("document.body.innerText.includes('hello by WebSocket')")
            page.wait_for_function("document.body.innerText.includes('3000000 bytes')")
            assert page.inner_text("#events").split() == ["first", "second", "last"]
            assert page.inner_text("#echo") == "hello by WebSocket"
            assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(0, 128, 0)"
            page.screenshot(path=live.folder / "live.png")
            # The browser's own way through a form, its cookies and redirects.
            page.goto(f"http://{site.host('django')}/admin/")
            page.fill("#id_username", "ann")
            page.fill("#id_password", "secret")
            page.click("input[type=submit]")
            page.wait_for_function("document.body.innerText.includes('Site administration')")
            page.screenshot(path=live.folder / "admin.png")
            # It asks for an icon by itself, which no app here has.
            assert [x for x in faults if "404" not in x] == []
        finally:
            browser.close()
