"""Buckets as directories of containers: real mounts of a real S3-compatible server, on both engines."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests._s3 import S3Server, s3_server
from tests.conftest import NO_BUCKET_MOUNTS
from tests.stack._dispatcher import dispatcher
from tests.stack.test_secrets_nomad import Cluster, cluster, shown_by

KEY_ID, SECRET_KEY = "AKIAOFTHETESTS", "not-to-be-seen-anywhere-4711"


def can_mount() -> bool:
    """Tell whether this machine can mount buckets at all."""
    tools = shutil.which("rclone") and shutil.which("s3fs") and shutil.which("fusermount3")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError:
        return False
    # A plain user's view of the file system is another test's; here containers run as root.
    return bool(tools) and os.geteuid() == 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


__all__ = ["cluster"]
pytestmark = pytest.mark.skipif(not can_mount(), reason=NO_BUCKET_MOUNTS)

HEAD = """
import os
import subprocess
import sys

import modal_nomad as modal

ENDPOINT = os.environ.get("S3_ENDPOINT", "")
NAMES = {"AWS_ACCESS_KEY_ID": "S3_KEY_ID", "AWS_SECRET_ACCESS_KEY": "S3_SECRET"}
KEYS = {name: os.environ.get(given, "") for name, given in NAMES.items()}

def bucket(name, **options):
    options.setdefault("secret", modal.Secret.from_dict(KEYS) if KEYS["AWS_ACCESS_KEY_ID"] else None)
    return modal.CloudBucketMount(name, ENDPOINT or None, **options)

app = modal.App("buckets")
"""


@dataclass
class World:
    """A dispatcher, and an S3 server beside it."""

    s3: S3Server
    url: str
    folder: Path
    nomad: str = ""

    @property
    def log(self) -> str:
        return (self.folder / "dispatcher.log").read_text()

    def run(self, program: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program whose first lines are ``HEAD``."""
        with self.start(program, **env) as process:
            out, err = process.communicate(timeout=110)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, program: str, stdin: int | None = None, **env: str) -> subprocess.Popen[str]:
        file = self.folder / "program.py"
        file.write_text(HEAD + program)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL_", "AWS_"))}
        given = {"S3_ENDPOINT": self.s3.address, "S3_KEY_ID": KEY_ID, "S3_SECRET": SECRET_KEY, **env}
        return subprocess.Popen(
            [sys.executable, str(file)],
            env={**clean, "MODAL_SERVER_URL": self.url, "MODAL_CONFIG_PATH": "/nonexistent", **given},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module", params=["local", "nomad"])
def world(
    request: pytest.FixtureRequest, s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    if request.param == "local":
        with dispatcher(folder, {"address": ""}, engine="local", auth="none") as url:
            yield World(s3, url, folder)
        return
    # On a cluster credentials come from a Vault.
    there: Cluster = request.getfixturevalue("cluster")
    placed = {"namespace": "main"}
    with dispatcher(folder, {"address": there.nomad}, auth="none", vault=there.vault, render=placed) as url:
        yield World(s3, url, folder, there.nomad)


def mounted() -> str:
    """Return what this process sees of mounts, and which processes run."""
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                processes.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return Path("/proc/self/mounts").read_text() + "\n".join(processes)


WORK = """
@app.function(
    timeout=100,
    volumes={
        "/mn-bucket": bucket("BUCKET", key_prefix="in/deep/"),
        "/mn-bucket-ro": bucket("BUCKET", read_only=True),
    },
)
def work():
    found = {"read": open("/mn-bucket/old.txt").read(), "all": sorted(os.listdir("/mn-bucket-ro"))}
    data = bytes(range(256)) * 100_000
    os.mkdir("/mn-bucket/new")
    with open("/mn-bucket/new/large", "wb") as file:
        file.write(data)
    os.rename("/mn-bucket/old.txt", "/mn-bucket/renamed.txt")
    with open("/mn-bucket-ro/in/deep/new/large", "rb") as file:
        found["same"] = file.read() == data
    try:
        open("/mn-bucket-ro/x", "w")
    except OSError as error:
        found["refused"] = error.strerror
    seen = "not-to-be-seen"
    found["leaked"] = [k for k, v in os.environ.items() if k.startswith("MODAL_BUCKET") or seen in v]
    child = subprocess.run(["env"], capture_output=True, text=True).stdout
    found["inherited"] = seen in child
    found["processes"] = seen in subprocess.run(["ps", "axww"], capture_output=True, text=True).stdout
    print("worked")
    return found

if __name__ == "__main__":
    with modal.enable_output(), app.run():
        print(sorted(work.remote().items()))
"""


def test_a_bucket_is_a_directory(world: World, s3: S3Server) -> None:
    name = s3.versioned("work-on-nomad" if world.nomad else "work-here")
    s3.put(name, "in/deep/old.txt", b"old content")
    s3.put(name, "other.txt", b"other")
    done = world.run(WORK.replace("BUCKET", name))
    assert done.returncode == 0, done.stdout + done.stderr + world.log
    expected = {
        "read": "old content",
        "all": ["in", "other.txt"],
        "same": True,
        "refused": "Read-only file system",
        "leaked": [],
        "inherited": False,
        "processes": False,
    }
    assert str(sorted(expected.items())) in done.stdout
    keys = ["in/deep/new/large", "in/deep/renamed.txt", "other.txt"]
    assert s3.keys(name) == keys and len(s3.get(name, keys[0])) == 25_600_000
    assert not os.path.exists("/mn-bucket")
    wait_for(lambda: f"bucket:{name}" not in mounted())
    assert SECRET_KEY not in done.stdout + done.stderr + world.log
    shown = shown_by(world.nomad) if world.nomad else ""
    assert SECRET_KEY not in shown
    assert not any(
        SECRET_KEY.encode() in file.read_bytes()
        for file in (world.folder / "home").rglob("*")
        if file.is_file()
    )


KILLED = """
@app.function(timeout=100, scaledown_window=600, volumes={"/mn-bucket": bucket("killed")})
def where():
    open("/mn-bucket/there", "w").close()
    return os.getpid()

if __name__ == "__main__":
    with app.run():
        print(where.remote(), flush=True)
        sys.stdin.readline()
"""


def test_a_killed_container_leaves_nothing_mounted(world: World, s3: S3Server) -> None:
    s3.bucket("killed")
    with world.start(KILLED, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1] + world.log)
        pid = int(line)
        assert "rclone mount bucket:killed/" in mounted()
        # It sees it, and nobody else on the node.
        assert "/mn-bucket" in Path(f"/proc/{pid}/mounts").read_text()
        assert "/mn-bucket" not in Path("/proc/self/mounts").read_text()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: "bucket:killed" not in mounted())
        process.communicate("\n", timeout=110)
    assert s3.keys("killed") == ["there"]


FAILING = """
tools = os.environ.get("TOOLS", "")
cases = {
    "absent": dict(name="absent"),
    "tools": dict(name="there"),
    "role": dict(name="there", secret=None, oidc_auth_role_arn="arn:aws:iam::1:role/r"),
    "fusermount": dict(name="there"),
}
paths = {"tools": "/nonexistent", "fusermount": tools}

def never():
    print("user code started")

functions = [
    app.function(
        name=name,
        serialized=True,
        timeout=100,
        env={"PATH": paths[name]} if name in paths else {},
        volumes={"/mn-bucket": bucket(**options)},
    )(never)
    for name, options in cases.items()
]

if __name__ == "__main__":
    with modal.enable_output(), app.run():
        for function in functions:
            try:
                function.remote()
            except modal.exception.ExecutionError as error:
                print(f"ExecutionError {error}")
"""


@pytest.mark.parametrize("world", ["local"], indirect=True)
def test_what_cannot_be_mounted_is_told_before_user_code(world: World, s3: S3Server, tmp_path: Path) -> None:
    s3.bucket("there")
    s3.put("there", "x", b"x")
    os.symlink(str(shutil.which("rclone")), tmp_path / "rclone")
    done = world.run(FAILING, TOOLS=str(tmp_path))
    assert "user code started" not in done.stdout, done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("ExecutionError ")]
    words = [
        "cannot mount the bucket 'absent' at /mn-bucket: there is no such bucket",
        "neither rclone nor s3fs is on the node: apt-get install rclone fuse3",
        "oidc_auth_role_arn needs the identity that Nomad gives an allocation",
        "fusermount3 is not on the node",
    ]
    assert len(told) == len(words), done.stdout + done.stderr
    for line, part in zip(told, words, strict=True):
        assert part in line


S3FS = """
@app.function(
    timeout=100,
    env={"PATH": os.environ.get("TOOLS", "")},
    volumes={"/mn-bucket": bucket("by-s3fs", key_prefix="in/")},
)
def copy():
    content = open("/mn-bucket/a.txt").read()
    with open("/mn-bucket/b.txt", "w") as file:
        file.write(content * 2)
    return content

if __name__ == "__main__":
    with app.run():
        print(copy.remote())
"""


@pytest.mark.parametrize("world", ["local"], indirect=True)
def test_s3fs_does_as_well(world: World, s3: S3Server, tmp_path: Path) -> None:
    s3.bucket("by-s3fs")
    s3.put("by-s3fs", "in/a.txt", b"content")
    for tool in ("s3fs", "fusermount3"):
        os.symlink(str(shutil.which(tool)), tmp_path / tool)
    done = world.run(S3FS, TOOLS=str(tmp_path))
    assert done.stdout == "content\n", done.stderr + world.log
    assert s3.get("by-s3fs", "in/b.txt") == b"contentcontent"


BY_ROLE = """
role = "arn:aws:iam::123456789012:role/reader"

@app.function(
    timeout=100, volumes={"/mn-bucket": bucket("by-role", secret=None, oidc_auth_role_arn=role)}
)
def write():
    with open("/mn-bucket/a.txt", "w") as file:
        file.write("by a role")

if __name__ == "__main__":
    with app.run():
        write.remote()
"""


@pytest.mark.parametrize("world", ["nomad"], indirect=True)
def test_a_role_is_taken_on_with_nomads_identity(world: World, s3: S3Server) -> None:
    s3.bucket("by-role")
    done = world.run(BY_ROLE)
    assert done.returncode == 0, done.stderr + world.log
    assert s3.get("by-role", "a.txt") == b"by a role"
    # Once for the look, and again by what mounts it.
    assert (s3.directory / "s3.log").read_text().count('"POST / ') >= 2


HALF = """
half = modal.Secret.from_dict({"AWS_ACCESS_KEY_ID": "x"})

@app.function(volumes={"/mn-bucket": bucket("any", secret=half)})
def never():
    pass

if __name__ == "__main__":
    with app.run():
        never.remote()
"""


@pytest.mark.parametrize("world", ["local"], indirect=True)
def test_a_secret_without_keys_is_told_before_anything_starts(world: World) -> None:
    done = world.run(HALF)
    assert "InvalidError" in done.stderr and "has no AWS_SECRET_ACCESS_KEY" in done.stderr
