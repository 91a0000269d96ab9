"""Several nodes: containers on both, and what becomes of inputs when one is gone at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests._ports import free_ports
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import (
    agent_config,
    agent_process,
    nomad_binary,
    ready_nodes,
    wait_until,
)
from tests.stack._dispatcher import dispatcher, get, put

FILE = """
import os, pathlib, time
import modal

app = modal.App("nodes")

@app.function(min_containers=4, max_containers=4)
def where(folder: str, x: int) -> tuple:
    allocation = os.environ["NOMAD_ALLOC_ID"]
    pathlib.Path(folder, f"{x}.{allocation}").touch()
    while not pathlib.Path(folder, "go").exists():
        time.sleep(0.05)
    return x, allocation

@app.local_entrypoint()
def main(folder: str):
    for x, allocation in where.starmap([(folder, x) for x in range(8)]):
        print("answer", x, allocation)
"""


class Nodes:
    """A server and two clients on loopback."""

    def __init__(self, directory: Path, binary: str, stack: ExitStack) -> None:
        http, rpc, serf = free_ports(3)
        self.address = f"http://127.0.0.1:{http}"
        self.clients: list[subprocess.Popen[bytes]] = []
        parts = {
            "server": agent_config(
                str(directory / "server"),
                http,
                rpc,
                serf,
                name="server",
                server={
                    "enabled": True,
                    "bootstrap_expect": 1,
                    # A node is not gone because the machine has other work.
                    "heartbeat_grace": "6s",
                    "min_heartbeat_ttl": "1s",
                },
                client={"enabled": False},
            )
        }
        for name in ("one", "two"):
            parts[name] = agent_config(
                str(directory / name),
                *free_ports(3),
                name=name,
                client={"enabled": True, "servers": [f"127.0.0.1:{rpc}"]},
            )
        for name, config in parts.items():
            (directory / name).mkdir()
            process, log = stack.enter_context(agent_process(binary, str(directory / name), config))
            if name == "server":
                wait_until(lambda: _leads(self.address), process, log)
            else:
                self.clients.append(process)
                wait_until(lambda: ready_nodes(self.address) == len(self.clients), process, log)


def _leads(address: str) -> bool:
    try:
        return bool(get(address, "/v1/status/leader"))
    except OSError:
        return False


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    with ExitStack() as stack:
        yield Nodes(tmp_path_factory.mktemp("nodes"), binary, stack)


def _end_with_all_it_runs(agent: subprocess.Popen[bytes]) -> None:
    """SIGKILL an agent and every process under it: what a node's power cut looks like from outside."""
    found, ends = [agent.pid], []
    while found:
        pid = found.pop()
        ends.append(pid)
        out = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
        found += map(int, out.split())
    for pid in ends:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    agent.wait()


def test_inputs_of_a_node_that_is_gone_run_again_on_the_other(nodes: Nodes, tmp_path: Path) -> None:
    put(nodes.address, "/v1/operator/scheduler/configuration", {"SchedulerAlgorithm": "spread"})
    marks = tmp_path / "marks"
    marks.mkdir()
    (tmp_path / "app.py").write_text(FILE)
    with dispatcher(tmp_path, {"address": nodes.address}, auth="none") as url:
        command = [sys.executable, "-m", "modal_nomad", "run", "app.py", "--folder", str(marks)]
        env = {**os.environ, "MODAL_SERVER_URL": url, "MODAL_CONFIG_PATH": "/nonexistent"}
        out = tmp_path / "out"
        with open(out, "wb") as file:
            run = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=file, stderr=file)
        try:
            wait_until(lambda: len(list(marks.iterdir())) >= 4, run, out)
            begun = dict(mark.name.split(".") for mark in marks.iterdir())
            names = {a: get(nodes.address, f"/v1/allocation/{a}")["NodeName"] for a in begun.values()}
            assert set(names.values()) == {"one", "two"}
            _end_with_all_it_runs(nodes.clients[0])
            lost = {x for x, allocation in begun.items() if names[allocation] == "one"}
            # Each of them begins anew while the others still wait for the word to go.
            wait_until(lambda: lost <= _begun_on(marks, "two", nodes.address), run, out)
            (marks / "go").touch()
            assert run.wait(100) == 0, out.read_text()
        finally:
            run.kill()
            run.wait()
    answers = [line.split() for line in out.read_text().splitlines() if line.startswith("answer")]
    assert [int(words[1]) for words in answers] == list(range(8)), out.read_text()
    assert {get(nodes.address, f"/v1/allocation/{words[2]}")["NodeName"] for words in answers} == {"two"}


def _begun_on(marks: Path, node: str, address: str) -> set[str]:
    pairs = [mark.name.split(".") for mark in marks.iterdir() if "." in mark.name]
    return {x for x, allocation in pairs if get(address, f"/v1/allocation/{allocation}")["NodeName"] == node}
