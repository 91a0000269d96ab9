"""A real Docker daemon for a test session: Debian's programs, a socket and files of its own.

All processes of a session share one daemon and one base image. A supervisor, which this file is when it is
run as a program, ends the daemon once the session's first process is gone, however that ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NO_DOCKER = "no dockerd, docker or debootstrap that works here, or not root"
IMAGE = "modal-nomad-tests/debian:1"
PACKAGES = ("python3", "python3-pip")
_PROGRAMS = ("dockerd", "docker", "debootstrap", "tar", "setsid")
_START_LIMIT = 150.0
_BOOTSTRAP_LIMIT = 600.0
_PR_SET_PDEATHSIG = 1
# What no test looks at, and every layer and import would carry.
_LEFT_OUT = ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/info", "var/cache/apt")


class Unusable(Exception):
    """There can be no daemon here; the text says why."""


@dataclass(frozen=True)
class Docker:
    """A running daemon.

    Attributes:
        host: its address, as in DOCKER_HOST.
        image: a Debian with Python and pip in it, which the daemon has.
        network: what containers can have: the host's.
    """

    host: str
    image: str = IMAGE
    network: str = "host"

    def __call__(self, *arguments: str, data: bytes | None = None) -> str:
        """Run a docker command and return what it printed; what it said is the error when it fails."""
        done = subprocess.run(
            ["docker", *arguments],
            env={**os.environ, "DOCKER_HOST": self.host},
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, (arguments, done.stderr.decode(), done.stdout.decode())
        return done.stdout.decode().strip()


def docker_daemon(shared: Path) -> Docker:
    """Return the daemon of all processes that name ``shared``, started by the first of them.

    Raises:
        Unusable: there can be none; told without another try to whoever asks after the first.
    """
    with _locked(shared / "docker.lock"):
        told = shared / "docker.json"
        if told.exists():
            found = json.loads(told.read_text())
        else:
            try:
                found = {"host": _start()}
            except Unusable as exc:
                found = {"unusable": str(exc)}
            told.write_text(json.dumps(found))
    if "unusable" in found:
        raise Unusable(found["unusable"])
    return Docker(found["host"])


def _start() -> str:
    missing = [x for x in _PROGRAMS if shutil.which(x) is None]
    if missing or os.geteuid() != 0:
        raise Unusable(f"{', '.join(missing)} missing" if missing else "not root")
    base = _base_image()
    # A socket's path must be short, which pytest's own folders are not.
    folder = Path(tempfile.mkdtemp(prefix="mn-docker-", dir="/tmp"))
    # Of several processes the one that started them outlives them all.
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    reader, writer = os.pipe()
    # A process of its own, that this one need not see the end of.
    subprocess.run(
        ["setsid", "--fork", sys.executable, "-I", __file__, str(folder), str(session), str(writer)],
        pass_fds=[writer],
        stdin=subprocess.DEVNULL,
        # Or whoever reads what this session prints would wait for the daemon's end.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    if said:
        raise Unusable(f"the daemon does not start: {said}")
    docker = Docker(f"unix://{folder}/docker.sock")
    docker("import", str(base), IMAGE)
    return docker.host


def _base_image() -> Path:
    """Return the base image's files, made once on a machine: they are kept from session to session."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "modal-nomad-tests")
    cache.mkdir(parents=True, exist_ok=True)
    suite = _suite()
    target = cache / f"{suite}-{'-'.join(PACKAGES)}.tar"
    with _locked(cache / "debootstrap.lock"):
        if not target.exists():
            _bootstrap(suite, target)
    return target


def _bootstrap(suite: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="mn-debootstrap-", dir=target.parent) as name:
        root = Path(name, "root")
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, str(root)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_BOOTSTRAP_LIMIT
            )
        except subprocess.TimeoutExpired:
            raise Unusable(f"debootstrap took longer than {_BOOTSTRAP_LIMIT:g} s") from None
        if done.returncode != 0:
            raise Unusable("debootstrap failed: " + done.stdout.decode(errors="replace")[-500:])
        for folder in _LEFT_OUT:
            shutil.rmtree(root / folder, ignore_errors=True)
        for lists in (root / "var/lib/apt/lists").glob("*_*"):
            lists.unlink()
        half = Path(name, "image.tar")
        subprocess.run(["tar", "-C", str(root), "--numeric-owner", "-cf", str(half), "."], check=True)
        half.rename(target)


def _suite() -> str:
    with contextlib.suppress(OSError):
        words = dict(x.split("=", 1) for x in Path("/etc/os-release").read_text().splitlines() if "=" in x)
        if words.get("ID") == "debian":
            return words.get("VERSION_CODENAME", "bookworm")
    return "bookworm"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def supervise(folder: Path, session: int, ready: int) -> None:
    """Run a daemon until a process is gone; its files go with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watched = os.pidfd_open(session)
    log = folder / "dockerd.log"
    host = f"unix://{folder}/docker.sock"
    command = ["dockerd", f"--data-root={folder}/data", f"--exec-root={folder}/run", f"--host={host}"]
    # Containers have the host's network or none: a bridge would be one for all daemons of the machine.
    command += [f"--pidfile={folder}/pid", "--iptables=false", "--ip6tables=false", "--bridge=none"]
    with open(log, "wb") as out:
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=_die_with_parent
        )
    try:
        if _answers(host, daemon, watched):
            os.close(ready)
            select.select([watched], [], [])
        else:
            os.write(ready, log.read_bytes()[-2000:] or b"it says nothing")
    finally:
        daemon.terminate()
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        _unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(host: str, daemon: subprocess.Popen[bytes], watched: int) -> bool:
    deadline = time.monotonic() + _START_LIMIT
    while daemon.poll() is None and time.monotonic() < deadline:
        done = subprocess.run(["docker", "-H", host, "version"], capture_output=True, check=False)
        if done.returncode == 0:
            return True
        if select.select([watched], [], [], 0.1)[0]:
            return False
    return False


def _unmount_below(folder: Path) -> None:
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted((x for x in points if x.startswith(f"{folder}/")), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    supervise(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
