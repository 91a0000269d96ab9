"""A real S3-compatible server for a test session: moto's, on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tests.engine_contract._nomad_agent import free_ports, wait_until

KEY_ID, SECRET_KEY = "key-of-tests", "secret-key-of-tests"
# The server looks at whether a request is signed, not at the signature.
_SCOPE = "20200101/us-east-1/s3/aws4_request"
_SIGNED = f"AWS4-HMAC-SHA256 Credential={KEY_ID}/{_SCOPE}, SignedHeaders=host, Signature=0"


@dataclass
class S3Server:
    """A server that keeps buckets in memory; it takes any credentials unless told otherwise."""

    directory: Path
    port: int
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        out = self.directory / "s3.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MOTO_"))}
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with open(out, "ab") as log:
            self.process = subprocess.Popen(
                command, env={**clean, **self.env}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        wait_until(self.answers, self.process, out)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/moto-api/data.json", timeout=10):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def bucket(self, name: str) -> str:
        """Make a bucket, and return its name."""
        self._ask("PUT", name)
        return name

    def versioned(self, name: str) -> str:
        """Make a bucket that keeps versions: of another one the server names one, and does not know it."""
        on = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        self._ask("PUT", f"{self.bucket(name)}?versioning", on)
        return name

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self._ask("PUT", f"{bucket}/{quote(key)}", data)

    def get(self, bucket: str, key: str) -> bytes:
        return self._ask("GET", f"{bucket}/{quote(key)}")

    def keys(self, bucket: str) -> list[str]:
        found = self._ask("GET", f"{bucket}?list-type=2").decode()
        return sorted(re.findall(r"<Key>([^<]*)</Key>", found))

    def uploads(self, bucket: str) -> list[str]:
        """Return the keys of uploads in parts that were not ended."""
        return re.findall(r"<Key>([^<]*)</Key>", self._ask("GET", f"{bucket}?uploads").decode())

    def _ask(self, verb: str, path: str, data: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/octet-stream", "Authorization": _SIGNED}
        request = urllib.request.Request(f"{self.address}/{path}", data, headers, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise KeyError(path) from None
            raise RuntimeError(f"{verb} {path}: {error.read().decode()}") from None


@contextmanager
def s3_server(directory: Path, **env: str) -> Iterator[S3Server]:
    """Yield a running server."""
    (port,) = free_ports(1)
    server = S3Server(directory, port, env)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.kill()
