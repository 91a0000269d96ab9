"""``block_network=True``: user code reaches nothing, and all that the dispatcher does for it goes on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception
from tests._network import netless
from tests._ports import free_ports
from tests._s3 import KEY_ID, SECRET_KEY, s3_server
from tests._web_urls import at
from tests.conftest import NO_BUCKET_MOUNTS

MIB = 1 << 20


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or netless(), reason="the kernel gives no network namespace here"
)


def looker() -> Callable[[int], dict[str, Any]]:
    """Return a function that travels without this file, which containers cannot import."""

    def look(port: int) -> dict[str, Any]:
        """Say what of the network there is."""
        import os
        import socket

        found: dict[str, Any] = {"namespace": os.readlink("/proc/self/ns/net")}
        with open("/proc/self/net/dev") as lines:
            found["devices"] = [line.partition(":")[0].strip() for line in lines if ":" in line]
        for name, family, address in (
            ("loopback", socket.AF_INET, ("127.0.0.1", port)),
            ("loopback6", socket.AF_INET6, ("::1", port)),
            ("outside", socket.AF_INET, ("192.0.2.1", 80)),
            ("abstract", socket.AF_UNIX, f"\0modal-{port}"),
        ):
            with socket.socket(family) as sock:
                sock.settimeout(20)
                try:
                    sock.connect(address)
                    found[name] = "reached"
                except OSError as error:
                    found[name] = type(error).__name__
        # Its own loopback is there: libraries talk to themselves.
        server = socket.create_server(("127.0.0.1", 0))
        with server, socket.create_connection(server.getsockname()[:2], 20):
            found["itself"] = True
        return found

    return look


@pytest.fixture
def host() -> Iterator[int]:
    """A service on this machine's loopback, which answers whoever comes."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        port = server.getsockname()[1]
        abstract.bind(f"\0modal-{port}")
        abstract.listen()
        yield port


def check(found: dict[str, Any]) -> None:
    assert found["devices"] == ["lo"] and found["itself"]
    assert found["namespace"] != os.readlink("/proc/self/ns/net")
    assert {found[name] for name in ("loopback", "loopback6", "outside", "abstract")} <= {
        "ConnectionRefusedError",
        "OSError",
    }


def everything(app: modal.App) -> Any:
    """A blocked Function that uses all that the dispatcher offers."""
    look = looker()

    @app.function(serialized=True, name="double")
    def double(x: int) -> int:
        return x * 2

    @app.function(
        serialized=True,
        name="everything",
        block_network=True,
        timeout=250,
        volumes={"/blocked": modal.Volume.from_name("blocked", create_if_missing=True)},
    )
    def use(port: int, payload: bytes) -> tuple[dict[str, Any], bytes]:
        import modal_nomad as modal

        with modal.Dict.ephemeral() as kept, modal.Queue.ephemeral() as queue:
            kept["x"] = payload
            queue.put(len(kept["x"]))
            payload = payload[: queue.get()]
        with open("/blocked/file", "wb") as file:
            file.write(payload)
        modal.Volume.from_name("blocked").commit()
        if modal.Function.from_name("blocked", "double").remote(4) != 8:
            raise ValueError("another Function gave something else")
        print("printed without a network")
        return look(port), payload[::-1]

    return use


def test_nothing_is_reached_and_everything_goes_on(live: Live, host: int) -> None:
    app = modal.App("blocked")
    everything(app)
    payload = os.urandom(3 * MIB)
    app.deploy()
    try:
        found, back = modal.Function.from_name("blocked", "everything").remote(host, payload)
        check(found)
        assert back == payload[::-1]
        assert b"".join(modal.Volume.from_name("blocked").read_file("file")) == payload
        assert "printed without a network" in live.cli("app", "logs", "blocked").stdout
    finally:
        live.cli("app", "stop", "blocked")
        modal.Volume.objects.delete("blocked")


def test_classes_snapshots_and_siblings_have_networks_of_their_own(live: Live, host: int) -> None:
    app, look = modal.App("blocked-cls"), looker()

    @app.cls(serialized=True, block_network=True, enable_memory_snapshot=True, max_containers=1)
    class Model:
        @modal.enter(snap=True)
        def load(self) -> None:
            self.loaded = look(host)

        @modal.method()
        def get(self) -> tuple[dict[str, Any], dict[str, Any]]:
            return self.loaded, look(host)

    free = app.function(serialized=True, name="free")(look)
    with app.run():
        loaded, now = Model().get.remote()
        check(loaded)
        check(now)
        other = Model.with_options(timeout=90)().get.remote()  # type: ignore[attr-defined]
        assert other[1]["namespace"] != now["namespace"]
        assert free.remote(host)["loopback"] == "reached"


def test_through_a_relay_where_the_dispatcher_is_on_the_network(
    own: Live, serve: Callable[..., Any], host: int
) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    process = serve(listen=url)
    app = modal.App("blocked")
    everything(app)

    @app.function(serialized=True, name="waits", block_network=True, timeout=250)
    def waits(folder: str) -> str:
        import os
        import pathlib
        import time

        pathlib.Path(folder, "begun").touch()
        while not pathlib.Path(folder, "go").exists():
            time.sleep(0.02)
        return os.environ["MODAL_SERVER_URL"]

    app.deploy()
    payload = os.urandom(3 * MIB)
    found, back = modal.Function.from_name("blocked", "everything").remote(host, payload)
    check(found)
    assert back == payload[::-1]

    call = modal.Function.from_name("blocked", "waits").spawn(str(own.folder))
    until((own.folder / "begun").exists, what="the call")
    process.kill()
    process.wait(100)
    serve(listen=url)
    (own.folder / "go").touch()
    assert modal.FunctionCall.from_id(call.object_id).get(timeout=200).startswith("unix://")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_network": 1}, "block_network is 1"),
        ({"block_network": True, "proxy": "office"}, "proxy= contradict each other"),
        ({"block_network": True, "i6pn": True}, "i6pn=True contradict each other"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    if "proxy" in options:
        options = {**options, "proxy": modal.Proxy.from_name("office")}
    with pytest.raises(exception.InvalidError, match=message):
        modal.App("a").function(serialized=True, **options)(lambda: 1)


def test_requests_come_in_and_nothing_goes_out(live: Live, host: int) -> None:
    app, look = modal.App("blocked-web"), looker()

    @app.function(serialized=True, name="asgi", block_network=True)
    @modal.asgi_app()
    def asgi() -> Any:
        async def served(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            import json

            size = 0
            while True:
                part = await receive()
                size += len(part.get("body", b""))
                if not part.get("more_body"):
                    break
            data = json.dumps([size, look(int(scope["path"].rpartition("/")[2]))]).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": data + b" " * (3 << 20)})

        return served

    @app.function(serialized=True, name="server", block_network=True)
    @modal.web_server(8000)
    def server() -> None:
        import subprocess
        import sys

        subprocess.Popen([sys.executable, "-m", "http.server", "8000", "--bind", "127.0.0.1"])

    with app.run():
        url = at(asgi.get_web_url())
        for size in (0, 3 * MIB):
            answer = httpx.post(f"{url}/{host}", content=b"x" * size, timeout=90)
            assert answer.status_code == 200, answer.text
            got, found = answer.json()
            assert got == size
            check(found)
        page = httpx.get(at(server.get_web_url()), timeout=90)
        assert page.status_code == 200 and "Directory listing" in page.text


def test_a_bucket_is_mounted_from_outside(live: Live, host: int, tmp_path: Path) -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError:
        pytest.skip(NO_BUCKET_MOUNTS)
    if os.geteuid() != 0 or not all(shutil.which(x) for x in ("rclone", "fusermount3")):
        pytest.skip(NO_BUCKET_MOUNTS)
    app, look = modal.App("blocked-bucket"), looker()
    with s3_server(tmp_path) as server:
        server.bucket("blocked")
        server.put("blocked", "old", b"of before")
        keys = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        bucket = modal.CloudBucketMount("blocked", server.address, secret=modal.Secret.from_dict(keys))
        options: dict[str, Any] = {"block_network": True, "volumes": {"/mn-blocked-bucket": bucket}}

        @app.function(serialized=True, name="use", **options)
        def use(port: int) -> tuple[dict[str, Any], str]:
            with open("/mn-blocked-bucket/new", "w") as file:
                file.write("of a container")
            return look(port), open("/mn-blocked-bucket/old").read()

        with app.run():
            found, old = use.remote(host)
        check(found)
        assert old == "of before" and server.get("blocked", "new") == b"of a container"


def test_where_the_kernel_gives_no_network_namespace_no_code_runs(own: Live) -> None:
    script = own.write(
        "never.py",
        """
        import pathlib
        import modal_nomad as modal

        app = modal.App("blocked-never")

        @app.function(serialized=True, block_network=True)
        def never(mark: str) -> None:
            pathlib.Path(mark).touch()

        with app.run():
            try:
                never.remote("ran")
            except modal.exception.ExecutionError as error:
                print(error)
        """,
    )
    # In a user namespace this test may say so itself, without any more rights than its user has.
    limit = "echo 0 > /proc/sys/user/max_net_namespaces"
    command = f"{limit} && exec {sys.executable} {script}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", command],
        cwd=own.folder,
        env={**os.environ, "MODAL_NOMAD_HOME": str(own.home)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    if limit in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(done.stderr)
    assert "block_network=True needs a network namespace" in done.stdout, done.stdout + done.stderr
    assert "sysctl" in done.stdout and not (own.folder / "ran").exists()
