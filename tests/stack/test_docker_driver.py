"""The docker driver of a real Nomad: Functions in container images, and what becomes of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests._docker import Docker
from tests._ports import free_ports
from tests.functional._container_app import APP, seen
from tests.stack._dispatcher import dispatcher

NONE = """
import modal_nomad as modal

app = modal.App("boxed-none")

@app.function(image=modal.Image.from_registry("mn/none:1"))
def none():
    pass

if __name__ == "__main__":
    with app.run():
        try:
            none.remote()
        except modal.exception.ExecutionError as error:
            print(error)
"""


@pytest.fixture(scope="module")
def server(
    nomad_docker_address: str, docker: Docker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("docker-driver")
    (port,) = free_ports(1)
    web = {"listen": f"http://127.0.0.1:{port}"}
    with dispatcher(folder, {"address": nomad_docker_address}, auth="none", web=web) as url:
        yield url


def _python(folder: Path, url: str, text: str) -> str:
    (folder / "app.py").write_text(text)
    (folder / "data.txt").write_text("of the caller")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "MODAL_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "app.py"],
        cwd=folder,
        env={**clean, "MODAL_SERVER_URL": url, "MODAL_CONFIG_PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_everything_works_in_an_image(server: str, docker: Docker, tmp_path: Path) -> None:
    # Secrets of a cluster are Vault's, which tests of their own have.
    text = APP.format(image=docker.image).replace("secrets=[secret], ", "env={'PASSWORD': 'swordfish'}, ")
    limits = seen(_python(tmp_path, server, text))
    assert limits["memory"] == [str(300 << 20)]


def test_an_image_without_python_is_said(server: str, docker: Docker, tmp_path: Path) -> None:
    lines = f"FROM {docker.image}\nRUN rm -f /usr/bin/python3*\n"
    docker("build", "--quiet", "--network=none", "--tag=mn/none:1", "-", data=lines.encode())
    (none,) = _python(tmp_path, server, NONE).splitlines()
    assert none.startswith("the image mn/none:1 has no CPython 3.9 or newer: add one to it")


BLOCKED = """
import os
import socket
from urllib.parse import urlsplit
from urllib.request import Request, urlopen
import modal_nomad as modal

app = modal.App("boxed-blocked")
image = modal.Image.from_registry("{image}")

def look(port):
    found = {{"devices": [name for _, name in socket.if_nameindex()]}}
    try:
        socket.create_connection(("127.0.0.1", port), 5)
        found["reached"] = True
    except OSError as error:
        found["reached"] = type(error).__name__
    with socket.create_server(("127.0.0.1", 0)) as own:
        socket.create_connection(own.getsockname(), 5).close()
    try:
        back = os.open(f"/proc/{{os.getppid()}}/ns/net", os.O_RDONLY)
        found["back"] = "open"
    except OSError as error:
        found["back"] = type(error).__name__
    return found

@app.function(image=image, serialized=True, block_network=True)
def blocked(port):
    with modal.Queue.ephemeral() as queue:
        queue.put(port)
        return look(queue.get())

@app.function(image=image, serialized=True, block_network=True)
@modal.asgi_app()
def served():
    async def web(scope, receive, send):
        if scope["type"] != "http":
            return
        body = repr(look(int(scope["path"].rpartition("/")[2]))).encode()
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": body}})
    return web

if __name__ == "__main__":
    with app.run():
        print(blocked.remote({port}))
        address = urlsplit(served.get_web_url())
        # The name may be one that this system does not resolve.
        path = address.path.rstrip("/") + "/{port}"
        asked = Request(f"http://127.0.0.1:{{address.port}}{{path}}", headers={{"Host": address.netloc}})
        print(urlopen(asked, timeout=200).read().decode())
"""


def test_who_is_to_reach_nothing_needs_no_rights_for_it(server: str, docker: Docker, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        text = BLOCKED.format(image=docker.image, port=there.getsockname()[1])
        said = [literal_eval(line) for line in _python(tmp_path, server, text).splitlines()]
    # The service is there for everybody else; and there is no way back for who has left.
    wanted = {"devices": ["lo"], "reached": "ConnectionRefusedError", "back": "PermissionError"}
    assert said == [wanted, wanted]


OVER = """
import os
import subprocess
import sys
import time
import modal_nomad as modal

app = modal.App("boxed-over")
image = modal.Image.from_registry("{image}")

@app.function(image=image, serialized=True, memory=(64, 200), retries=0)
def children():
    # Each of them is within the limit.
    eat = "import time; held = bytearray(b'x') * (120 << 20); time.sleep(300)"
    started = [subprocess.Popen([sys.executable, "-c", eat]) for _ in range(2)]
    pid, status = os.wait()
    for child in started:
        child.kill()
    raise RuntimeError(f"a child ended with {{status}}")

@app.function(image=image, serialized=True, ephemeral_disk=20, retries=0)
def files():
    with open("/var/tmp/large", "wb") as file:
        file.write(os.urandom(40 << 20))
    time.sleep(300)

if __name__ == "__main__":
    with app.run():
        for function in (children, files):
            try:
                function.remote()
            except modal.exception.ExecutionError as error:
                print(type(error).__name__, error)
"""


def test_an_over_use_is_told_as_what_it_was(server: str, docker: Docker, tmp_path: Path) -> None:
    memory, disk = _python(tmp_path, server, OVER.format(image=docker.image)).splitlines()
    assert memory.startswith("OutOfMemoryError out of memory: its processes together went above its limit")
    assert disk.startswith("OutOfDiskError out of disk: its files took")
    assert "MiB, above its limit of 20 MiB" in disk
