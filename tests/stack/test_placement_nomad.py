"""Where Nomad runs containers: what a Function may ask for, on a node that has it and one that lacks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests._control_groups import allowed
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put

LIMIT = 200
FILE = """
import json, os, resource, socket, subprocess, sys, time
import modal
from modal import nomad
from modal.scheduler_placement import SchedulerPlacement

app = modal.App("placed")
SPOT = SchedulerPlacement(region="dc1", zone="eu-1a", spot=False, instance_type=["m5.large", "m5.xlarge"])

@app.function(
    cpu=(0.1, 0.2),
    memory=(64, 900),
    ephemeral_disk=120,
    cloud="aws",
    nonpreemptible=True,
    proxy=modal.Proxy.from_name("office"),
    _experimental_scheduler_placement=SPOT,
    nomad=nomad.Placement(
        node_class="fast",
        node_meta={"rack": "r1"},
        constraints=[
            nomad.Constraint("${attr.kernel.name}", "regexp", "^lin"),
            nomad.Constraint("${meta.rack}", "is_set"),
            nomad.Constraint("", "distinct_hosts"),
        ],
        affinities=[nomad.Affinity("${meta.rack}", "=", "r2", weight=-30)],
        spreads=[nomad.Spread("${node.datacenter}", {"dc1": 100})],
        priority=60,
        meta={"team": "ml"},
    ),
)
def everywhere(x: int) -> dict:
    limit, cores = resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20, len(os.sched_getaffinity(0))
    return {"x": x, "team": os.environ["NOMAD_META_team"], "memory": limit, "cores": cores}

@app.function(memory=(64, 200), retries=0)
def children(x: int) -> None:
    # Each of them is within the limit.
    eat = "import time; held = bytearray(b'x') * (120 << 20); time.sleep(300)"
    started = [subprocess.Popen([sys.executable, "-c", eat]) for _ in range(2)]
    pid, status = os.wait()
    for child in started:
        child.kill()
    raise RuntimeError(f"a child ended with {status}")

@app.function(ephemeral_disk=20, retries=0)
def files(x: int) -> None:
    with open("large", "wb") as file:
        file.write(os.urandom(40 << 20))
    time.sleep(300)

@app.function(cpu=(0.1, 0.2))
def part(x: int) -> float:
    before = time.process_time()
    began = time.monotonic()
    while time.process_time() - before < 0.2:
        pass
    return time.monotonic() - began

@app.function(i6pn=True)
def own(x: int) -> str:
    return socket.getaddrinfo("i6pn.modal.local", None, socket.AF_INET6)[0][4][0]

@app.function(nomad=nomad.Placement(node_meta={"rack": "r9"}))
def rack(x: int): ...

@app.function(cloud="gcp", nomad=nomad.Placement(node_class="fast"))
def cloud(x: int): ...

@app.function(nomad=nomad.Placement(node_pool="elsewhere"))
def pool(x: int): ...

@app.function(proxy=modal.Proxy.from_name("pooled"))
def pooled(x: int): ...

@app.function(region="dc7")
def region(x: int): ...

@app.local_entrypoint()
def main(name: str = "everywhere"):
    print(json.dumps(app.registered_functions[name].remote(3)))
"""
FINE = """
import modal
from modal import nomad

app = modal.App("whole")

@app.function(nomad=nomad.Placement(priority=33))
def a(): ...

@app.function(nomad=nomad.Placement(priority=33))
def b(): ...
"""
REFUSED = (
    FINE.replace("33", "44")
    + """
@app.function(nomad=nomad.Placement(node_pool="nowhere"))
def c(): ...
"""
)
UNKNOWN = """
import modal

app = modal.App("unknown")

@app.function(proxy=modal.Proxy.from_name("home"))
def f(): ...
"""


class Stack(NamedTuple):
    nomad: str
    url: str
    folder: Path


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    folder = tmp_path_factory.mktemp("placed")
    meta = {"rack": "r1", "zone": "eu-1a", "instance_type": "m5.xlarge", "cloud": "aws", "egress": "office"}
    proxies = {"office": 'node_meta = { egress = "office" }', "pooled": 'node_pool = "elsewhere"'}
    with (
        nomad_agent(binary, client={"meta": meta, "node_class": "fast"}) as nomad,
        dispatcher(folder, {"address": nomad}, auth="none", proxies=proxies) as url,
    ):
        put(nomad, "/v1/node/pool/elsewhere", {"Name": "elsewhere"})
        put(nomad, "/v1/operator/scheduler/configuration", {"MemoryOversubscriptionEnabled": True})
        yield Stack(nomad, url, folder)


def test_a_function_runs_where_it_asks_to_be(stack: Stack) -> None:
    done = modal_nomad(stack.folder, stack.url, "deploy", "app.py", file=FILE)
    assert done.returncode == 0, done.stderr
    try:
        job = get(stack.nomad, "/v1/job/placed-everywhere")
        # Nomad's own reading of the job, not ours.
        assert (job["Priority"], job["Datacenters"], job["NodePool"]) == (91, ["dc1"], "default")
        rules = {(x["LTarget"], x["Operand"], x["RTarget"]) for x in job["Constraints"]}
        assert {
            ("${meta.cloud}", "=", "aws"),
            ("${meta.preemptible}", "!=", "true"),
            ("${meta.zone}", "=", "eu-1a"),
            ("${meta.instance_type}", "set_contains_any", "m5.large,m5.xlarge"),
            ("${meta.egress}", "=", "office"),
            ("${node.class}", "=", "fast"),
            ("${meta.rack}", "=", "r1"),
            ("${attr.kernel.name}", "regexp", "^lin"),
        } <= rules
        assert [(x["RTarget"], x["Weight"]) for x in job["Affinities"]] == [("r2", -30)]
        assert [x["Attribute"] for x in job["Spreads"]] == ["${node.datacenter}"]
        (group,) = job["TaskGroups"]
        resources = group["Tasks"][0]["Resources"]
        assert (resources["CPU"], resources["MemoryMB"], resources["MemoryMaxMB"]) == (100, 64, 900)
        assert group["EphemeralDisk"]["SizeMB"] == 120
        again = modal_nomad(stack.folder, stack.url, "deploy", "app.py", "--plan", file=FILE)
        assert again.returncode == 0, again.stdout
        moved = FILE.replace('"r2", weight=-30', '"r3", weight=-30')
        plan = modal_nomad(stack.folder, stack.url, "deploy", "app.py", "--plan", file=moved)
        assert "Affinity" in plan.stdout and "r3" in plan.stdout, plan.stdout + plan.stderr
    finally:
        modal_nomad(stack.folder, stack.url, "app", "stop", "placed")
    done = modal_nomad(stack.folder, stack.url, "run", "app.py", file=FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert said == [{"x": 3, "team": "ml", "memory": 900, "cores": 1}]
    # The agent's own network, which is loopback here.
    done = modal_nomad(stack.folder, stack.url, "run", "app.py", "--name", "own", file=FILE)
    assert '"::ffff:127.0.0.1"' in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("children", "Error: out of memory: its processes together went above its limit of 200 MiB"),
        ("files", "MiB, above its limit of 20 MiB: ask for more with ephemeral_disk="),
    ],
)
def test_an_over_use_is_told_as_what_it_was(stack: Stack, name: str, words: str) -> None:
    if name == "children" and not allowed():
        pytest.skip("no control groups here")
    done = modal_nomad(stack.folder, stack.url, "run", "app.py", "--name", name, file=FILE)
    assert done.returncode != 0 and words in done.stdout + done.stderr, done.stdout + done.stderr


def test_a_part_of_a_processor_is_held(stack: Stack) -> None:
    if not allowed():
        pytest.skip("no control groups here")
    done = modal_nomad(stack.folder, stack.url, "run", "app.py", "--name", "part", file=FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    # At best in 0.9 seconds: no more than one period's was left over.
    assert float(done.stdout.strip().splitlines()[-1]) > 0.5


def test_the_rendered_job_shows_the_placement(stack: Stack) -> None:
    done = modal_nomad(stack.folder, stack.url, "render", "app.py", "--hcl", file=FILE)
    assert done.returncode == 0, done.stderr
    for words in ("affinity {", "spread {", 'target "dc1" {', '"${meta.rack}"', "distinct_hosts"):
        assert words in done.stdout, done.stdout
    file = stack.folder / "job.hcl"
    file.write_text(done.stdout.partition('\njob "placed-children"')[0])
    checked = subprocess.run(
        ["nomad", "job", "validate", f"-address={stack.nomad}", str(file)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rack", "0 of 1 nodes have ${meta.rack} = r9"),
        ("cloud", "0 of 1 nodes have ${meta.cloud} = gcp (cloud=)"),
        ("pool", "no node in node pool elsewhere is eligible"),
        ("pooled", "no node in node pool elsewhere is eligible"),
        ("region", "no node in node pool default is eligible, or none in its datacenters (region=)"),
    ],
)
def test_who_waits_for_a_place_is_told_why(stack: Stack, name: str, words: str) -> None:
    (stack.folder / "app.py").write_text(FILE)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "MODAL_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "modal_nomad", "run", "app.py", "--name", name],
        cwd=stack.folder,
        env={**clean, "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_SERVER_URL": stack.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    # Who never says it is ended, and what it said instead is the failure.
    guard = threading.Timer(LIMIT, process.kill)
    guard.start()
    seen: list[str] = []
    try:
        for line in process.stdout:
            seen.append(line)
            if f"{name}: waiting for a container: {words}" in line:
                break
        else:
            raise AssertionError("".join(seen))
    finally:
        guard.cancel()
        process.terminate()
        process.communicate(timeout=LIMIT)


@pytest.mark.parametrize("command", [["deploy", "app.py"], ["run", "app.py::f"], ["render", "app.py"]])
def test_a_proxy_that_the_cluster_lacks_is_one_clear_line(stack: Stack, command: list[str]) -> None:
    done = modal_nomad(stack.folder, stack.url, *command, file=UNKNOWN)
    assert done.returncode != 0
    assert "this cluster has no proxy 'home' (it has office, pooled)" in done.stderr, done.stderr
    assert "[proxies.home]" in done.stderr and "Traceback" not in done.stderr


def test_an_app_that_nomad_refuses_leaves_nothing_behind_and_what_was_deployed_as_it_was(
    stack: Stack,
) -> None:
    """One job is refused for its node pool; the others, which are not, go with it."""

    def jobs() -> dict[str, dict[str, Any]]:
        found = get(stack.nomad, "/v1/jobs?prefix=whole-")
        return {x["ID"]: get(stack.nomad, f"/v1/job/{x['ID']}") for x in found if not x["Stop"]}

    done = modal_nomad(stack.folder, stack.url, "run", "app.py::a", file=REFUSED)
    assert done.returncode != 0
    assert 'nonexistent node pool "nowhere"' in done.stderr and "node pool apply" in done.stderr, done.stderr
    assert jobs() == {}
    assert modal_nomad(stack.folder, stack.url, "deploy", "app.py", file=FINE).returncode == 0
    before = jobs()
    try:
        assert set(before) == {"whole-a", "whole-b"}
        assert modal_nomad(stack.folder, stack.url, "deploy", "app.py", file=REFUSED).returncode != 0
        after = jobs()
        assert set(after) == set(before)
        assert {x["Priority"] for x in after.values()} == {33}
    finally:
        modal_nomad(stack.folder, stack.url, "app", "stop", "whole")
