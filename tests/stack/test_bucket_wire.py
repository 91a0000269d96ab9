"""What mounted buckets say on the wire, to services by their names in the world, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import _certificates
from tests._s3 import S3Server, s3_server
from tests._s3_wire import Answer, Seen, Wire, s3_wire
from tests.conftest import NO_BUCKET_MOUNTS
from tests.stack.test_cloud_bucket_mount import KEY_ID, SECRET_KEY, can_mount

pytestmark = pytest.mark.skipif(not can_mount(), reason=NO_BUCKET_MOUNTS)

R2, GCS = "account.r2.cloudflarestorage.com", "storage.googleapis.com"
HOSTS = ("s3.us-east-1.amazonaws.com", "*.s3.us-east-1.amazonaws.com", "sts.us-east-1.amazonaws.com", R2, GCS)
# A container without a dispatcher: what user code does stands in the middle.
PROGRAM = """
import json, os, subprocess, sys, threading, time
from modal_nomad.exception import ExecutionError
from modal_nomad.wire.mounts import BucketMount, SecretRef
from modal_nomad.worker._buckets import Buckets

given = json.loads(sys.argv[1])
secret = SecretRef("s") if not given.get("role_arn") else None
os.makedirs("/mn-wire", exist_ok=True)
buckets = Buckets([BucketMount("/mn-wire", secret=secret, **given)], os.environ)
buckets.mount()
try:
    USED
finally:
    buckets.close(60)
"""


@dataclass
class World:
    s3: S3Server
    wire: Wire
    folder: Path
    certificate: str

    def run(self, used: str, *, tool: str = "", **mount: Any) -> subprocess.CompletedProcess[str]:
        """Have a container mount a bucket, and run ``used`` in it."""
        self.wire.seen.clear()
        google = mount.get("endpoint", "").endswith("googleapis.com")
        names = ("GOOGLE_ACCESS_KEY_ID", "GOOGLE_ACCESS_KEY_SECRET")
        names = names if google else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL_", "AWS_", "NOMAD_"))}
        env = {
            **clean,
            "MODAL_CA_BUNDLE": self.certificate,
            "https_proxy": self.wire.address,
            "http_proxy": self.wire.address,
            "NOMAD_SECRETS_DIR": str(self.folder),
            "MODAL_BUCKET_0_" + names[0]: KEY_ID,
            "MODAL_BUCKET_0_" + names[1]: SECRET_KEY,
        }
        if tool:
            env["PATH"] = str(self.only(tool))
        lines = used.strip().replace("\n", "\n    ")
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c"]
        return subprocess.run(
            [*command, PROGRAM.replace("USED", lines), json.dumps(mount)],
            env=env,
            capture_output=True,
            text=True,
            timeout=200,
        )

    def only(self, tool: str) -> Path:
        """Return a directory with programs of which none mounts but this one."""
        folder = self.folder / tool
        if not folder.is_dir():
            folder.mkdir()
            for name in (tool, "fusermount", "fusermount3", "unshare"):
                os.symlink(str(shutil.which(name)), folder / name)
        return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("wire")
    certificate = _certificates.write(folder, *HOSTS)
    with s3_server(folder) as s3, s3_wire(s3.port, certificate) as wire:
        yield World(s3, wire, folder, certificate[0])


USED = """
assert open("/mn-wire/old.txt").read() == "old"
with open("/mn-wire/new.txt", "w") as file:
    file.write("new")
with open("/mn-wire/large", "wb") as file:
    file.write(bytes(17 << 20))
os.rename("/mn-wire/new.txt", "/mn-wire/renamed.txt")
os.remove("/mn-wire/old.txt")
print(sorted(os.listdir("/mn-wire")))
"""


@pytest.mark.parametrize(
    ("tool", "host", "of_bucket", "region"),
    [
        ("rclone", "", "{}.s3.us-east-1.amazonaws.com", "us-east-1"),
        ("rclone", R2, R2, "auto"),
        ("rclone", GCS, GCS, "auto"),
        ("s3fs", "", "{}.s3.us-east-1.amazonaws.com", "us-east-1"),
    ],
)
def test_each_service_is_spoken_to_as_it_wants(
    world: World, tool: str, host: str, of_bucket: str, region: str
) -> None:
    name = world.s3.versioned(f"of-{tool}-{(host or 'aws')[:3]}")
    world.s3.put(name, "in/old.txt", b"old")
    # The server knows what a bucket's host at AWS is, and no other service's.
    world.wire.host = f"127.0.0.1:{world.s3.port}" if host else ""
    endpoint = f"https://{host}" if host else ""
    done = world.run(
        USED, tool=tool, bucket=name, endpoint=endpoint, key_prefix="in/", requester_pays=not host
    )
    assert done.stdout == "['large', 'renamed.txt']\n", done.stderr
    assert world.s3.keys(name) == ["in/large", "in/renamed.txt"]
    assert len(world.s3.get(name, "in/large")) == 17 << 20
    seen = world.wire.seen
    assert all(one.secure for one in seen) and {one.verb for one in seen} >= {"GET", "PUT", "DELETE"}
    # The look does not go by the bucket's own host, which is nowhere before there is a bucket.
    assert {one.host for one in seen[1:]} == {of_bucket.format(name)}
    assert {one.headers["authorization"].split("/")[2] for one in seen} == {region}
    if not host:
        assert not [one for one in seen if one.headers.get("x-amz-request-payer") != "requester"]
    # Google has none of either.
    assert not [one for one in seen if one.query == "delete"]
    assert not [one for one in seen if "STREAMING" in one.headers.get("x-amz-content-sha256", "")]


def test_what_is_left_open_at_the_end_is_sent(world: World) -> None:
    world.wire.host = f"127.0.0.1:{world.s3.port}"
    name = world.s3.versioned("left-open")

    def slow(seen: Seen) -> Answer | None:
        if seen.verb == "PUT" and seen.path.endswith("of-a-child"):
            # Longer than what is not held back takes to end.
            time.sleep(3)
        return None

    world.wire.answer = slow
    try:
        done = world.run(
            """
kept = open("/mn-wire/by-lines", "w")
kept.write("a line\\n")
raw = os.open("/mn-wire/raw", os.O_WRONLY | os.O_CREAT)
os.write(raw, b"raw")
writes = 'file = open("/mn-wire/of-a-child", "wb"); print(file.write(bytes(1 << 20)), flush=True)'
child = subprocess.Popen([sys.executable, "-c", writes], stdout=subprocess.PIPE)
child.stdout.readline()
""",
            bucket=name,
            endpoint="https://" + R2,
        )
    finally:
        world.wire.answer = lambda seen: None
    assert done.returncode == 0, done.stderr
    assert world.s3.keys(name) == ["by-lines", "of-a-child", "raw"], done.stderr
    assert world.s3.get(name, "by-lines") == b"a line\n" and len(world.s3.get(name, "of-a-child")) == 1 << 20


def test_a_refused_write_is_an_error_and_its_reason_is_said(world: World) -> None:
    world.wire.host = f"127.0.0.1:{world.s3.port}"
    name = world.s3.bucket("refusing")
    body = b"<Error><Code>AccessDenied</Code><Message>no more of yours</Message></Error>"
    world.wire.answer = lambda seen: (
        (403, {"content-type": "application/xml"}, body) if seen.verb == "PUT" else None
    )
    try:
        done = world.run(
            """
try:
    with open("/mn-wire/x", "w") as file:
        file.write("x")
except OSError as error:
    print(error.strerror)
""",
            bucket=name,
            endpoint="https://" + R2,
        )
    finally:
        world.wire.answer = lambda seen: None
    assert done.stdout == "Input/output error\n" and world.s3.keys(name) == []
    assert "bucket 'refusing'" in done.stderr and "AccessDenied: no more of yours" in done.stderr


def test_a_role_is_taken_on_again_when_what_was_lent_ends(world: World) -> None:
    world.wire.host = ""
    name = world.s3.bucket("lent")
    (world.folder / "nomad_buckets.jwt").write_text("first.of.nomad")

    def brief(seen: Seen, answer: Answer) -> Answer:
        status, headers, data = answer
        if seen.host.startswith("sts.") and b"<Expiration>" in data:
            before, _, rest = data.partition(b"<Expiration>")
            soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2)).encode()
            data = before + b"<Expiration>" + soon + rest[rest.index(b"</") :]
        return status, headers, data

    world.wire.after = brief
    try:
        done = world.run(
            f"""
with open({str(world.folder / "nomad_buckets.jwt")!r}, "w") as file:
    file.write("second.of.nomad")
for number in range(4):
    with open(f"/mn-wire/{{number}}", "w") as file:
        file.write("by a role")
    time.sleep(1.5)
""",
            bucket=name,
            role_arn="arn:aws:iam::123456789012:role/writer",
        )
    finally:
        world.wire.after = lambda seen, answer: answer
    assert done.returncode == 0, done.stderr
    assert world.s3.keys(name) == ["0", "1", "2", "3"]
    asked = [one.body for one in world.wire.seen if one.host == "sts.us-east-1.amazonaws.com"]
    # For the look, for the mount, and again with the token that Nomad has renewed meanwhile.
    assert len(asked) >= 3 and b"first.of.nomad" in asked[0] and b"second.of.nomad" in asked[-1]
