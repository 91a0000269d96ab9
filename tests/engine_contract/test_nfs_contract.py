"""NetworkFileSystems must behave alike on every engine: one directory, seen by all at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_contract._program import run
from tests.stack._dispatcher import dispatcher

PROGRAM = """
import io
import os

import modal_nomad as modal

nfs = modal.NetworkFileSystem.from_name("contract", create_if_missing=True)
app = modal.App("contract-nfs")

@app.function(timeout=120, network_file_systems={"/mn-contract/one": nfs})
def write(name, data):
    with open("/mn-contract/one/" + name, "wb") as file:
        file.write(data)

@app.function(timeout=120, network_file_systems={"/mn-contract/two": nfs})
def read(name):
    with open("/mn-contract/two/" + name, "rb") as file:
        return file.read()

if __name__ == "__main__":
    with app.run():
        # Both containers are there before anything is written.
        nfs.write_file("/from/outside", io.BytesIO(b"1"))
        assert read.remote("from/outside") == b"1"
        write.remote("made", b"2")
        assert read.remote("made") == b"2"
        write.remote("made", b"3")
        assert read.remote("made") == b"3"
        assert b"".join(nfs.read_file("made")) == b"3"
        assert sorted(entry.path for entry in nfs.iterdir("/")) == ["from", "made"]
    assert not os.path.exists("/mn-contract"), "the node's own tree was written"
    modal.NetworkFileSystem.delete("contract")
    print("done")
"""


@pytest.fixture(params=["local", "nomad"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    nomad, nfs = {"address": ""}, {}
    # Short: the embedded engine's sockets have short paths.
    folder = tmp_path_factory.mktemp("c")
    if request.param == "nomad":
        nomad = {"address": request.getfixturevalue("nomad_address")}
        nfs = {"directory": str(folder / "shared")}
    with dispatcher(folder, nomad, engine=request.param, auth="none", nfs=nfs) as url:
        yield url


def test_network_file_systems(server: str, tmp_path: Path) -> None:
    file = tmp_path / "contract_nfs.py"
    file.write_text(PROGRAM)
    done = run(server, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]


def test_a_cluster_without_a_shared_directory_says_so(
    nomad_address: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path / "contract_nfs.py"
    file.write_text(PROGRAM.replace('if __name__ == "__main__":', "if True:"))
    folder = tmp_path_factory.mktemp("c")
    with dispatcher(folder, {"address": nomad_address}, auth="none") as url:
        done = run(url, file)
    assert done.returncode != 0
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(
            "this cluster has no shared directory for NetworkFileSystems: name one under [nfs] in the"
            " dispatcher's settings, or use a modal.Volume"
        )
    )
