"""Functions in container images, embedded: this machine's Docker runs what a cluster's nodes would run."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests._docker import Docker
from tests._s3 import KEY_ID, SECRET_KEY, s3_server
from tests.conftest import NO_BUCKET_MOUNTS
from tests.functional._container_app import APP, seen
from tests.functional.conftest import Live, _close_clients, _folder, until

HEAD = """
import os
import signal
import time

import modal_nomad as modal

app = modal.App("boxed-small")
image = modal.Image.from_registry({image!r})
"""


@pytest.fixture(scope="module")
def _docker_home(docker: Docker) -> Iterator[Path]:
    with _folder() as home:
        yield home


@pytest.fixture
def boxed(
    _docker_home: Path, docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Live]:
    """A dispatcher that uses this session's Docker."""
    monkeypatch.setenv("MODAL_NOMAD_HOME", str(_docker_home))
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(_docker_home / "modal.toml"))
    monkeypatch.setenv("DOCKER_HOST", docker.host)
    _close_clients()
    yield Live(_docker_home, tmp_path)
    _close_clients()


def of_home(docker: Docker, home: Path) -> list[str]:
    """Return the containers of a dispatcher, those that ended as well."""
    return docker("ps", "--all", "--quiet", "--filter", f"label=modal-nomad.home={home}").split()


def test_everything_works_in_an_image(boxed: Live, docker: Docker) -> None:
    (boxed.folder / "data.txt").write_text("of the caller")
    script = boxed.write("app.py", APP.format(image=docker.image))
    limits = seen(boxed.python(script))
    assert limits["shown"] is False
    assert limits["memory"] == [str(300 << 20)]
    assert limits["cpu"] in (["50000"], ["50000", "100000"])
    # Nothing stays behind of an App that has ended.
    until(lambda: not of_home(docker, boxed.home), what="the containers' removal")


def test_an_end_is_said_as_what_it_was(boxed: Live, docker: Docker) -> None:
    script = boxed.write(
        "ends.py",
        HEAD.format(image=docker.image)
        + """
@app.function(image=image, memory=(64, 64))
def eat():
    held = bytearray(1 << 30)

@app.function(image=image)
def die():
    os.kill(os.getpid(), signal.SIGKILL)

@app.function(image=image, ephemeral_disk=30)
def fill():
    for number in range(60):
        with open(f"/var/tmp/{number}", "wb") as file:
            file.write(os.urandom(1 << 20))
    time.sleep(300)

if __name__ == "__main__":
    with app.run():
        for function in (eat, die, fill):
            try:
                function.remote()
            except modal.exception.Error as error:
                print(type(error).__name__, error)
""",
    )
    eaten, died, filled = boxed.python(script).splitlines()
    assert "out of memory (limit 64 MiB): ask for more with memory=" in eaten
    assert "killed by signal 9" in died and "memory" not in died
    assert filled.startswith("OutOfDiskError out of disk: its files took ")
    assert "above its limit of 30 MiB: ask for more with ephemeral_disk=" in filled


def test_an_image_without_python_is_said_once(boxed: Live, docker: Docker) -> None:
    lines = f"FROM {docker.image}\nRUN rm -f /usr/bin/python3*\n"
    docker("build", "--quiet", "--network=none", "--tag=mn/none:1", "-", data=lines.encode())
    script = boxed.write(
        "none.py",
        HEAD.format(image="mn/none:1")
        + """
@app.function(image=image)
def none():
    pass

@app.function(image=modal.Image.from_registry("127.0.0.1:9/no/such:1"))
def missing():
    pass

if __name__ == "__main__":
    with app.run():
        for function in (none, missing):
            try:
                function.remote()
            except modal.exception.ExecutionError as error:
                print(error)
""",
    )
    none, missing = boxed.python(script).splitlines()
    assert none.startswith("the image mn/none:1 has no CPython 3.9 or newer: add one to it")
    assert missing.startswith("the image 127.0.0.1:9/no/such:1 is not on this machine and cannot be pulled (")
    assert missing.endswith("): correct its name, or log in to its registry (docker login)")


def test_no_container_outlives_its_dispatcher(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker.host)
    with _folder() as home:
        monkeypatch.setenv("MODAL_NOMAD_HOME", str(home))
        monkeypatch.setenv("MODAL_CONFIG_PATH", str(home / "modal.toml"))
        _close_clients()
        live = Live(home, tmp_path)
        text = HEAD.format(image=docker.image) + (
            "@app.function(image=image, min_containers=1)\n"
            "def stay():\n    return os.uname().nodename\n"
            "if __name__ == '__main__':\n"
            "    app.deploy()\n"
            "    print(modal.Function.from_name('boxed-small', 'stay').remote())\n"
        )
        script = live.write("stay.py", text)
        live.python(script)
        assert of_home(docker, home)
        live.kill()
        until(lambda: not of_home(docker, home), what="the end of a killed dispatcher's containers")
        # What would end them is killed as well: then the next dispatcher does.
        live.python(script)
        (first,) = of_home(docker, home)
        for leash in leashes(home):
            os.kill(leash, signal.SIGKILL)
        live.kill()
        assert of_home(docker, home) == [first]
        live.status()
        until(lambda: first not in of_home(docker, home), what="the end of an earlier dispatcher's container")


def leashes(home: Path) -> list[int]:
    """Find what ends a dispatcher's containers."""
    (parent,) = (pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is(pid, home))
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"_leash.py" in words and int(text.rpartition(")")[2].split()[1]) == parent:
            found.append(int(pid))
    assert found
    return found


def _is(pid: int, home: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"modal_nomad.dispatcher" in words and os.fsencode(home) in words


def test_an_image_without_a_network(boxed: Live, docker: Docker) -> None:
    script = boxed.write(
        "blocked.py",
        HEAD.format(image=docker.image)
        + """
@app.function(image=image, block_network=True)
def look(port):
    import socket

    with modal.Dict.ephemeral() as kept, socket.socket() as sock:
        kept["port"] = port
        reached = sock.connect_ex(("127.0.0.1", kept["port"])) == 0
    with open("/proc/self/status") as status:
        (rights,) = [int(line.split()[1], 16) for line in status if line.startswith("CapEff:")]
    return reached, [name for _, name in socket.if_nameindex()], rights >> 21 & 1, rights >> 12 & 1

@app.function(image=image, i6pn=True)
def own():
    import socket

    return socket.getaddrinfo("i6pn.modal.local", None, socket.AF_INET6)[0][4][0]

if __name__ == "__main__":
  import socket

  with socket.create_server(("127.0.0.1", 0)) as host, app.run():
    print(look.remote(host.getsockname()[1]), own.remote() in ("::1", "::ffff:127.0.0.1"))
""",
    )
    # Neither sys_admin nor net_admin, by which it could find one.
    assert "(False, ['lo'], 0, 0) True" in boxed.python(script)


SHARED = """
nfs = modal.NetworkFileSystem.from_name("boxed-shared", create_if_missing=True)
disk = modal.Volume.from_name("boxed-disk", backend="host")

@app.function(image=image, network_file_systems={"/mn/shared": nfs}, volumes={"/mn/disk": disk})
def write(text):
    with open("/mn/shared/file", "w") as shared, open("/mn/disk/file", "w") as own:
        shared.write(text)
        own.write(text)
    disk.commit()

@app.function(image=image, network_file_systems={"/mn/shared": nfs}, volumes={"/mn/disk": disk.read_only()})
def read():
    disk.reload()
    try:
        open("/mn/disk/other", "w")
    except OSError as error:
        return open("/mn/shared/file").read(), open("/mn/disk/file").read(), error.strerror

@app.function(image=image, gpu="T4")
def train():
    pass

if __name__ == "__main__":
    with app.run():
        write.remote("of a container")
        print(*read.remote(), b"".join(nfs.read_file("file")), sep=", ")
        try:
            train.remote()
        except modal.exception.Error as error:
            print(error)
"""


def test_shared_files_and_cards(docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no card here is one to the dispatcher: Docker says that it can give it to nobody."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU-a, Tesla T4, 15360'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_HOST", docker.host)
    with _folder() as home:
        monkeypatch.setenv("MODAL_NOMAD_HOME", str(home))
        monkeypatch.setenv("MODAL_CONFIG_PATH", str(home / "modal.toml"))
        _close_clients()
        live = Live(home, tmp_path)
        (home / "host-volumes").mkdir()
        files, card = live.python(
            live.write("shared.py", HEAD.format(image=docker.image) + SHARED)
        ).splitlines()
        assert files == "of a container, of a container, Read-only file system, b'of a container'"
        assert "install the NVIDIA Container Toolkit on this machine" in card
        assert (home / "host-volumes/boxed-disk/file").read_text() == "of a container"
        _close_clients()


BUCKET = """
keys = modal.Secret.from_dict({{"AWS_ACCESS_KEY_ID": {key!r}, "AWS_SECRET_ACCESS_KEY": {secret!r}}})
bucket = modal.CloudBucketMount("boxed", {address!r}, secret=keys)

@app.function(image=image, volumes={{"/mn/bucket": bucket}})
def use():
    with open("/mn/bucket/new", "w") as file:
        file.write("of a container")
    return open("/mn/bucket/old").read(), sorted(name for name in os.environ if "AWS" in name)

if __name__ == "__main__":
    with app.run():
        print(use.remote())
"""


def test_a_bucket_in_an_image(boxed: Live, docker: Docker, tmp_path: Path) -> None:
    programs = [shutil.which(name) for name in ("rclone", "fusermount3")]
    if not all(programs) or not os.path.exists("/dev/fuse"):
        pytest.skip(NO_BUCKET_MOUNTS)
    context = tmp_path / "context"
    context.mkdir()
    for path in filter(None, programs):
        shutil.copy(path, context)
    names = " ".join(os.path.basename(path) for path in filter(None, programs))
    # As Debian's package has it.
    link = "RUN ln -s fusermount3 /usr/bin/fusermount"
    (context / "Dockerfile").write_text(f"FROM {docker.image}\nCOPY {names} /usr/bin/\n{link}\n")
    docker("build", "--quiet", "--network=none", "--tag=mn/bucket:1", str(context))
    with s3_server(tmp_path) as server:
        server.bucket("boxed")
        server.put("boxed", "old", b"of before")
        text = HEAD.format(image="mn/bucket:1") + BUCKET.format(
            key=KEY_ID, secret=SECRET_KEY, address=server.address
        )
        assert boxed.python(boxed.write("bucket.py", text)) == "('of before', [])\n"
        assert server.get("boxed", "new") == b"of a container"
