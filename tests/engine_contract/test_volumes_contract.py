"""Volumes must behave alike on every engine: mounted for one container alone, committed, reloaded, cached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_contract._program import run, server_of

PROGRAM = """
import io
import os
import sys

import modal_nomad as modal

volume = modal.Volume.from_name("contract", create_if_missing=True)
cache = {"MODAL_VOLUME_CACHE_DIR": sys.argv[1] if len(sys.argv) > 1 else ""}
app = modal.App("contract-volumes", volumes={"/mn-contract": volume})

@app.function(timeout=120, env=cache)
def write(name, data):
    with open("/mn-contract/" + name, "wb") as file:
        file.write(data)
    volume.commit()
    return sorted(os.listdir("/mn-contract"))

@app.function(timeout=120, env=cache)
def read(name):
    volume.reload()
    with open("/mn-contract/" + name, "rb") as file:
        return file.read()

if __name__ == "__main__":
    large = os.urandom(9 << 20)
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(large), "large")
    with app.run():
        assert read.remote("large") == large
        assert write.remote("a", b"1") == ["a", "large"]
        assert read.remote("a") == b"1"
        assert write.remote("large", large[:5_000_000]) == ["a", "large"]
        assert read.remote("large") == large[:5_000_000]
    assert b"".join(volume.read_file("large")) == large[:5_000_000]
    assert not os.path.exists("/mn-contract"), "the node's own tree was written"
    chunks = [name for _, _, names in os.walk(sys.argv[1]) for name in names]
    assert len(chunks) >= 3, "nothing was cached"
    modal.Volume.delete("contract")
    print("done")
"""


@pytest.fixture(params=["local", "nomad"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_of(request, tmp_path_factory) as url:
        yield url


def test_volumes(server: str, tmp_path: Path) -> None:
    file = tmp_path / "contract_volumes.py"
    file.write_text(PROGRAM)
    done = run(server, file, str(tmp_path / "chunks"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]
