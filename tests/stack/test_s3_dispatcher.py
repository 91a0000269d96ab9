"""A dispatcher whose blobs are in a bucket: code, large values and Volumes, on both engines."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests._s3 import KEY_ID, SECRET_KEY, S3Server, s3_server
from tests.stack._dispatcher import dispatcher

PROGRAM = """
import os

import modal_nomad as modal

volume = modal.Volume.from_name("in-a-bucket", create_if_missing=True)
app = modal.App("in-a-bucket", volumes={"/mn-bucket": volume})

@app.function(timeout=120)
def keep(data):
    with open("/mn-bucket/data", "wb") as file:
        file.write(data)
    volume.commit()
    return data[::-1]

if __name__ == "__main__":
    data = os.urandom(9 << 20)
    with app.run():
        assert keep.remote(data) == data[::-1]
    assert b"".join(volume.read_file("data")) == data
    modal.Volume.delete("in-a-bucket")
    print("done")
"""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


def bucket(server: S3Server, name: str, **more: Any) -> dict[str, Any]:
    keys = {"access_key_id": KEY_ID, "secret_access_key": SECRET_KEY}
    return {"bucket": server.bucket(name), "endpoint": server.address, "path_style": True, **keys, **more}


@pytest.mark.parametrize(("engine", "redirect"), [("local", False), ("local", True), ("nomad", False)])
def test_all_blobs_are_in_the_bucket(
    engine: str, redirect: bool, s3: S3Server, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    address = request.getfixturevalue("nomad_address") if engine == "nomad" else ""
    name = f"all-{engine}-{redirect}".lower()
    settings: dict[str, Any] = {"engine": engine, "auth": "none", "s3": bucket(s3, name, redirect=redirect)}
    (tmp_path / "program.py").write_text(PROGRAM)
    with dispatcher(tmp_path, {"address": address}, **settings) as url:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
        done = subprocess.run(
            [sys.executable, str(tmp_path / "program.py")],
            env={**clean, "MODAL_SERVER_URL": url, "MODAL_CONFIG_PATH": "/nonexistent"},
            capture_output=True,
            text=True,
            timeout=250,
        )
    log = (tmp_path / "dispatcher.log").read_text()
    assert done.stdout == "done\n", done.stderr + log
    # The runtime, the code, an argument, its result, and three chunks.
    assert len(s3.keys(name)) >= 7
    assert not [x for x in (tmp_path / "home" / "blobs").rglob("*") if x.is_file()]
    assert SECRET_KEY not in log + done.stderr


def test_a_bucket_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    with s3_server(tmp_path) as server:
        settings: dict[str, Any] = {"engine": "local", "auth": "none", "s3": bucket(server, "away")}
        with dispatcher(tmp_path, {"address": ""}, **settings) as url:
            data = os.urandom(1 << 20)
            sha = hashlib.sha256(data).hexdigest()
            server.kill()
            status, text = ask("PUT", f"{url}/v1/blobs/{sha}", data)
            assert status == 503 and b"does not answer: see whether it runs" in text
            server.start()
            server.bucket("away")
            assert ask("PUT", f"{url}/v1/blobs/{sha}", data)[0] == 201
            assert ask("GET", f"{url}/v1/blobs/{sha}") == (200, data)


def test_a_dispatcher_does_not_start_without_its_bucket(s3: S3Server, tmp_path: Path) -> None:
    settings = {**bucket(s3, "there"), "bucket": "not-there"}
    with (
        pytest.raises(RuntimeError, match="there is no bucket 'not-there'"),
        dispatcher(tmp_path, {"address": ""}, engine="local", auth="none", s3=settings),
    ):
        raise AssertionError("it started")
    assert "Traceback" not in (tmp_path / "dispatcher.log").read_text()


def ask(verb: str, url: str, data: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, method=verb)
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
