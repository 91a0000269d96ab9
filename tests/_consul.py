"""A real Consul for a test session: one server on free ports of 127.0.0.1.

Debian 12 has no package of it; that of Debian 11 runs there. It is fetched from the machine's own Debian
mirror, checked, and kept for later sessions.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests._ports import free_ports
from tests.engine_contract._nomad_agent import wait_until

NO_CONSUL = "no consul on PATH, nor Debian 11's package at this machine's mirror"
_PACKAGE = "pool/main/c/consul/consul_1.8.7%2Bdfsg1-2%2Bb3_amd64.deb"
_SHA256 = "e4e888bba104daba1d9161f49bfc52649a7e4efd45b1a7ead5bc54f2cb9c89d9"
_FETCH_LIMIT = 60.0
_GRPC_TLS_SINCE = (1, 14)


def consul_binary() -> str | None:
    """Return Consul's program: the one on PATH, else that of Debian 11; None where neither can be had."""
    found = shutil.which("consul")
    if found is not None:
        return found
    if not shutil.which("dpkg-deb") or os.uname().machine != "x86_64":
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "modal-nomad-tests")
    binary = cache / f"consul-{_SHA256[:12]}" / "usr/bin/consul"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "consul.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not binary.exists():
                _fetch(cache, binary.parents[2])
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return str(binary)


def _fetch(cache: Path, folder: Path) -> None:
    with urllib.request.urlopen(f"{_mirror()}/{_PACKAGE}", timeout=_FETCH_LIMIT) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise ValueError("the package is not the one that it should be")
    with tempfile.TemporaryDirectory(dir=cache) as made:
        package = Path(made, "consul.deb")
        package.write_bytes(data)
        subprocess.run(["dpkg-deb", "-x", package, f"{made}/files"], check=True, capture_output=True)
        os.rename(f"{made}/files", folder)


def _mirror() -> str:
    """Return where this machine's apt gets Debian from."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for file in files:
        with contextlib.suppress(OSError):
            for found in re.findall(r"https?://[^\s\]]+", file.read_text()):
                if found.rstrip("/").endswith("/debian") and "snapshot" not in found:
                    return str(found).rstrip("/")
    return "http://deb.debian.org/debian"


def _more_ports(binary: str) -> dict[str, int]:
    """Return ports of newer versions alone, at which two on one machine would collide."""
    said = subprocess.run([binary, "version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v(\d+)\.(\d+)", said)
    new = found is not None and (int(found[1]), int(found[2])) >= _GRPC_TLS_SINCE
    return {"grpc_tls": -1} if new else {}


@dataclass
class Consul:
    """A server.

    Attributes:
        binary: the program.
        folder: its own, with its data.
        http: its HTTP port.
        settings: more of its configuration.
        token: an ACL token for what is asked here.
    """

    binary: str
    folder: Path
    http: int
    rpc: int
    lan: int
    wan: int
    process: subprocess.Popen[bytes] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    token: str = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def nomad_settings(self) -> dict[str, Any]:
        """Return what has a Nomad agent register services here, and nothing else of its own."""
        return {
            "address": self.address.removeprefix("http://"),
            "client_auto_join": False,
            "server_auto_join": False,
            "auto_advertise": False,
        }

    def start(self) -> None:
        """Start it and wait until it has a leader."""
        config = {
            "server": True,
            "bootstrap_expect": 1,
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "node_name": "test",
            "data_dir": str(self.folder / "data"),
            "disable_update_check": True,
            "leave_on_terminate": False,
            "performance": {"raft_multiplier": 1},
            "ports": {
                "http": self.http, "server": self.rpc, "serf_lan": self.lan, "serf_wan": self.wan,
                "dns": -1, "grpc": -1, **_more_ports(self.binary),
            },
            **self.settings,
        }  # fmt: skip
        file, log = self.folder / "consul.json", self.folder / "consul.log"
        file.write_text(json.dumps(config))
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [self.binary, "agent", f"-config-file={file}"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        wait_until(self._ready, self.process, log)

    def _ready(self) -> bool:
        try:
            # Its own entry comes last: from then on services can be registered.
            return bool(self.get("/v1/status/leader")) and bool(self.get("/v1/health/node/test"))
        except OSError:
            return False

    def stop(self) -> None:
        """Kill it, as a machine's end would; its data stays."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)

    def get(self, path: str) -> Any:
        """Ask its API."""
        request = urllib.request.Request(self.address + path, headers=self._headers())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def put(self, path: str, body: Any = None) -> Any:
        """Say something to its API; gives its answer."""
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, self._headers(), method="PUT")
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = answer.read()
        return json.loads(said) if said.startswith((b"{", b"[")) else None

    def _headers(self) -> dict[str, str]:
        return {"X-Consul-Token": self.token} if self.token else {}


@contextlib.contextmanager
def consul_server(binary: str, token: str = "") -> Iterator[Consul]:
    """Yield a running server with nothing in it; with a management ``token`` nobody else may do anything."""
    with tempfile.TemporaryDirectory(prefix="consul-test-", ignore_cleanup_errors=True) as folder:
        acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": token, "agent": token}}
        settings = {"acl": acl} if token else {}
        server = Consul(binary, Path(folder), *free_ports(4), settings=settings, token=token)
        try:
            server.start()
            yield server
        finally:
            server.stop()
