"""What users and strangers get wrong: one clear line and an exit code; the dispatcher stays up."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Live
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.client import Client
from modal_nomad.wire import frames
from modal_nomad.wire.transport import SyncWebSocket
from tests._ports import free_ports

APP = """
    import modal

    app = modal.App("bad-input")

    @app.function()
    def f(x: int):
        return x

    @app.function()
    def items():
        yield 1

    @app.local_entrypoint()
    def main(count: int = 1):
        print(f.remote(count))

    @app.local_entrypoint()
    def other():
        pass
"""

TWO_APPS = """
    import modal

    one, two = modal.App("one"), modal.App("two")

    @one.function()
    def f():
        pass

    @two.function()
    def g():
        pass
"""


def one_line(done: subprocess.CompletedProcess[str], *words: str, code: int) -> None:
    text = done.stderr
    assert done.returncode == code, (done.returncode, text, done.stdout)
    assert "Traceback" not in text + done.stdout
    for word in words:
        assert word in text, text
    assert sum("Error" in line for line in text.splitlines()) == 1, text


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["run", "absent.py"], 2, ["absent.py"]),
        (["run", "app.py::absent"], 2, ["absent", "main"]),
        (["run", "app.py"], 1, ["main", "other"]),
        (["run", "app.py::main", "--wrong", "1"], 2, ["--wrong"]),
        (["run", "app.py::main", "--count", "many"], 2, ["--count", "'many' is not a valid integer"]),
        (["deploy", "no_app.py"], 2, ["app"]),
        (["deploy", "absent.py"], 2, ["absent.py"]),
        (["run", "apart/queue.py"], 2, ["hide Python's own module queue", "another name"]),
        (["deploy", "apart/modal.py"], 2, ["hide the package modal", "another name"]),
        (["run", "no_app.py"], 2, ["no_app.py", "modal.App("]),
        (["run", "two.py"], 1, ["two.py::NAME", "f / one.f", "g / two.g"]),
        (["deploy", "two.py"], 2, ["one, two", "two.py::VARIABLE"]),
        (["deploy", "app.py::f"], 2, ["app.py::f is not a Modal App"]),
        (["run", "-m", "no.such.module"], 2, ["no.such.module"]),
        (["run", "app.py::items"], 1, ["items is a generator function"]),
        (["run", "app.py:main"], 2, ["Did you mean 'app.py::main'?"]),
        (["run", "-q", "-i", "app.py::main"], 2, ["remove the --quiet flag"]),
        (["run", "app.py::main", "--count", "1", "more"], 2, ["more"]),
        (
            ["run", "-w", "out.txt", "app.py::f", "--x", "1"],
            1,
            ["must return str or bytes", "got int"],
        ),
        (["render", "app.py"], 2, ["--server-url"]),
        (["render", "app.py", "--server-url", "nonsense"], 2, ["nonsense", "http://HOST:PORT"]),
        (["app", "history", "no-such-app"], 1, ["no-such-app"]),
        (["app", "stop", "no-such-app"], 1, ["no-such-app"]),
        (["app", "logs", "no-such-app"], 1, ["no-such-app"]),
        (["frobnicate"], 2, ["frobnicate"]),
    ],
)
def test_command_line(live: Live, words: list[str], code: int, expected: list[str]) -> None:
    live.write("app.py", APP)
    live.write("no_app.py", "x = 1")
    live.write("two.py", TWO_APPS)
    (live.folder / "apart").mkdir()
    live.write("apart/queue.py", APP)
    live.write("apart/modal.py", APP)
    one_line(live.cli(*words), *expected, code=code)


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("import modal\n\n\ndef f(:\n", "SyntaxError"),
        ("import modal\nimport nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("from modal import Nothing\n", "ImportError: cannot import name 'Nothing'"),
        ("raise RuntimeError('mine')\n", "RuntimeError: mine"),
    ],
)
def test_a_file_that_does_not_import_shows_the_users_own_lines(live: Live, text: str, last: str) -> None:
    live.write("broken.py", text)
    for command in ("run", "deploy"):
        done = live.cli(command, "broken.py")
        frames = [line for line in done.stderr.splitlines() if line.startswith("  File ")]
        assert done.returncode == 1 and "broken.py" in frames[-1] and len(frames) == 1, done.stderr
        assert last in done.stderr.splitlines()[-1]


def test_a_newer_protocol_is_refused_with_a_remedy(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    live.status()
    live.write("app.py", APP)
    later = live.write(
        "later.py",
        """
        import sys

        from modal_nomad.cli import main
        from modal_nomad.wire import frames

        frames.PROTOCOL_VERSION = 99
        main(sys.argv[1:])
        """,
    )
    done = live._finish(live.start(str(later), "app", "list"))
    one_line(done, "version", "both sides", code=1)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "unix:///nowhere/at/all.sock", "nonsense", "ftp://x", "http://host:port"]
)
def test_no_route_to_the_server(live: Live, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    live.write("app.py", APP)
    monkeypatch.setenv("MODAL_SERVER_URL", url)
    one_line(live.cli("run", "app.py::main"), url.rpartition("/")[2], code=1)


@pytest.mark.parametrize(
    ("home", "words"),
    [("/proc/nowhere", "cannot be made"), ("/tmp/" + "a" * 130, "too long for a Unix socket")],
)
def test_a_home_that_cannot_be(live: Live, monkeypatch: pytest.MonkeyPatch, home: str, words: str) -> None:
    live.write("app.py", APP)
    monkeypatch.setenv("MODAL_NOMAD_HOME", home)
    try:
        one_line(live.cli("run", "app.py::main"), words, "set MODAL_NOMAD_HOME", code=1)
    finally:
        if home.startswith("/tmp"):
            os.rmdir(home)


def test_functions_that_do_not_exist(live: Live) -> None:
    with pytest.raises(exception.NotFoundError, match=r"nobody.*here|here.*nobody"):
        modal.Function.from_name("nobody", "here").remote()
    with pytest.raises(exception.NotFoundError, match="nobody"):
        modal.App.lookup("nobody")


def test_a_bad_token_is_refused(
    own: Live, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    serve(listen=f"http://127.0.0.1:{port}", auth="token")
    own.write("app.py", APP)
    one_line(own.cli("run", "app.py::main"), "token", "MODAL_TOKEN_ID", code=1)
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-1")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-1")
    one_line(own.cli("app", "list"), "token", code=1)
    with pytest.raises(exception.AuthError, match="token"):
        Client.from_env()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
    for method in ("GET", "PUT"):
        connection.request(method, "/v1/blobs/" + "0" * 64, body=b"")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 401
    connection.close()


def connect(live: Live) -> SyncWebSocket:
    live.status()
    return SyncWebSocket.connect(f"unix://{live.home}/daemon.sock", "/v1/connect", {}, timeout=100)


HELLO = {"t": "hello", "v": 1, "role": "client", "version": modal.__version__, "client": "cl-test"}


def test_another_protocol_version_is_refused_by_name(live: Live) -> None:
    ws = connect(live)
    ws.send(frames.encode({**HELLO, "v": 99, "version": "9.9"}))
    answer = ws.recv(10)
    ws.close()
    assert answer is not None
    header, _ = frames.decode(answer)
    assert header["t"] == "refused" and header["e"][0] == "VersionError"
    assert "9.9" in header["e"][1] and "both sides" in header["e"][1]


def drained(ws: SyncWebSocket) -> None:
    """Read until the server closes, or says that it took everything."""
    try:
        while ws.recv(0.02) is not None:
            pass
    except (ConnectionError, OSError, ValueError):
        pass
    ws.close()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
_kinds = st.sampled_from(
    ["in", "end", "rq", "hb", "hello", "done", "ready", "back", "log", "bye", "gen", "more", "xx"]
)
_methods = st.sampled_from(
    ["app.publish", "app.plan", "app.stop", "app.resolve", "app.list", "app.history", "app.lookup",
     "app.subscribe", "function.lookup", "blob.missing", "call.get", "call.cancel",
     "call.info", "call.outputs", "call.items", "call.graph", "nothing"]
)  # fmt: skip
_args = st.dictionaries(
    st.sampled_from(
        ["app", "app_id", "name", "environment", "state", "functions", "hashes", "call_id", "index",
         "timeout", "tag", "description", "logs", "backlog", "create_if_missing"]
    ),
    _json,
    max_size=6,
)  # fmt: skip
_headers = st.fixed_dictionaries(
    {"t": _kinds},
    optional={
        "c": _json, "f": _json, "x": _json, "g": _json, "k": _json, "d": _json, "i": _json, "s": _json,
        "n": _json, "p": _json, "q": _json,
        "m": _methods | _json, "a": _args | _json,
    },
)  # fmt: skip
_fuzz = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_fuzz
@given(data=st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: struct.pack(">I", len(b)) + b))
def test_bytes_that_are_no_frames(live: Live, data: bytes) -> None:
    for first in ([], [frames.encode(HELLO)]):
        ws = connect(live)
        for message in [*first, data]:
            ws.send(message)
        drained(ws)
    assert live.status()["pid"]


@_fuzz
@given(
    headers=st.lists(_headers, min_size=1, max_size=8), payload=st.lists(st.binary(max_size=9), max_size=3)
)
def test_frames_of_odd_content(live: Live, headers: list[dict[str, Any]], payload: list[bytes]) -> None:
    ws = connect(live)
    ws.send(frames.encode(HELLO))
    try:
        for header in headers:
            ws.send(frames.encode(header, payload))
    except (ConnectionError, OSError):
        pass
    drained(ws)
    assert live.status()["pid"]


@_fuzz
@given(hello=st.fixed_dictionaries({"t": st.just("hello")}, optional={
    "v": st.just(1) | _json, "role": st.sampled_from(["client", "worker"]) | _json, "client": _json,
    "container": _json, "slots": _json, "apps": _json, "version": _json,
}))  # fmt: skip
def test_hellos_of_odd_content(live: Live, hello: dict[str, Any]) -> None:
    ws = connect(live)
    ws.send(frames.encode(hello))
    drained(ws)
    assert live.status()["pid"]


class _UnixHTTP(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=100)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(100)
        self.sock.connect(self._path)


@_fuzz
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "HEAD", "DELETE", "PATCH"]),
    path=st.sampled_from(["/", "/healthz", "/metrics", "/v1/connect", "/v1/blobs/%s", "/artifacts/%s.zip"]),
    sha=st.sampled_from(
        ["0" * 64, "..", "%2e%2e%2fstore.db", "..%2f..%2fetc%2fpasswd", "A" * 64, "", "%ff%00"]
    ),
    body=st.binary(max_size=300) | st.just(json.dumps({"a": 1}).encode()),
)  # fmt: skip
def test_http_requests_of_any_kind(live: Live, method: str, path: str, sha: str, body: bytes) -> None:
    live.status()
    connection = _UnixHTTP(f"{live.home}/daemon.sock")
    try:
        connection.request(method, path % sha if "%s" in path else path, body=body)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 500
        assert b"SQLite" not in text and b"root:" not in text
    finally:
        connection.close()
    assert live.status()["pid"]


@_fuzz
@given(data=st.binary(min_size=1, max_size=400))
def test_bytes_that_are_no_http(live: Live, data: bytes) -> None:
    live.status()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(f"{live.home}/daemon.sock")
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        try:
            while raw.recv(4096):
                pass
        except (ConnectionError, TimeoutError):
            pass
    assert live.status()["pid"]


def test_the_dispatcher_is_healthy_after_all_that(live: Live) -> None:
    app = modal.App("after")

    @app.function(serialized=True)
    def double(x: int) -> int:
        return 2 * x

    with app.run():
        assert list(app["double"].map(range(5))) == [0, 2, 4, 6, 8]
    # Read now: whoever comes here first has no daemon before the run.
    log = (live.home / "daemon.log").read_text()
    assert "Traceback" not in log, log[-3000:]
