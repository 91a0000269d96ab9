"""Containers on Nomad, forked from a memory snapshot in another allocation, and how each of them ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack._dispatcher import dispatcher, get, modal_nomad

APP = """
import os
import pathlib
import time

import modal_nomad as modal

app = modal.App("snapshots")
here = pathlib.Path(__file__).parent
image = modal.Image.debian_slim().add_local_file(here / "words.txt", "/etc/modal-snapshot-words.txt")
limits = dict(enable_memory_snapshot=True, single_use_containers=True, max_containers=1)
VERSION = 1


class Loads:
    @modal.enter(snap=True)
    def load(self):
        self.loaded = os.getpid()

    @modal.enter(snap=False)
    def connect(self):
        self.container = os.environ["MODAL_TASK_ID"]

    def place(self):
        allocation = os.environ["NOMAD_ALLOC_ID"]
        with open("/proc/self/cgroup") as file:
            groups = file.read()
        # Where Nomad has control groups (it needs root for that), this process is in those of its allocation.
        assert "/nomad" not in groups or allocation in groups, groups
        assert allocation in os.getcwd() and allocation in __file__, (os.getcwd(), __file__)
        return allocation


@app.cls(**limits)
class Model(Loads):
    @modal.method()
    def ask(self):
        allocation = self.place()
        print(f"printed in {allocation}", flush=True)
        from snapshots_app import late

        return self.loaded, os.getpid(), os.getppid(), allocation, self.container, late.__file__, VERSION

    @modal.method()
    def hold(self, folder):
        allocation, folder = self.place(), pathlib.Path(folder)
        (folder / f"began.{allocation}").write_text(str(os.getpid()))
        while not (folder / "go").exists():
            time.sleep(0.02)
        return allocation

    @modal.exit()
    def leave(self):
        self.container = ""


@app.cls(image=image, **limits)
class Files(Loads):
    @modal.method()
    def ask(self):
        with open("/etc/modal-snapshot-words.txt") as file:
            return self.loaded, os.getpid(), file.read()
"""

CALLER = """
import json
import os
import pathlib
import signal
import sys
import time
import urllib.request

import snapshots_app
from snapshots_app import Files, Model, app

nomad, folder = sys.argv[1], pathlib.Path(sys.argv[2])


def ask(path, body=None):
    data, method = (None, "GET") if body is None else (json.dumps(body).encode(), "PUT")
    request = urllib.request.Request(nomad + path, data, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def until(true, what):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def state(allocation):
    return json.loads(ask(f"/v1/allocation/{allocation}"))["ClientStatus"]


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stand_in(allocation):
    # The process that Nomad started in an allocation: a fork has the first variables of its snapshot.
    for found in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = found.read_bytes().split(b"\\0")
        except OSError:
            continue
        if f"NOMAD_ALLOC_ID={allocation}".encode() in variables and b"MODAL_IS_REMOTE=1" in variables:
            return int(found.parent.name)
    raise AssertionError("nothing runs in " + allocation)


def hold():
    # An input that runs in a container forked from the snapshot.
    for old in folder.glob("began.*"):
        old.unlink()
    (folder / "go").unlink(missing_ok=True)
    call = Model().hold.spawn(str(folder))
    return call, *began()


def began(besides=()):
    def found():
        return [x for x in folder.glob("began.*") if x.name not in besides and x.read_text()]

    until(found, "the input does not run")
    mark = found()[0]
    return mark.name.split(".")[1], int(mark.read_text())


app.deploy()
first = Model().ask.remote()
assert first[0] == first[1], "the first one loads"
until(lambda: state(first[3]) == "running", "the snapshot's allocation stays")
second = Model().ask.remote()
assert second[0] == first[0] != second[1], "the second is forked"
assert len({first[3], second[3]}) == len({first[4], second[4]}) == 2, "in an allocation of its own"
assert second[3] in second[5], "what is imported later comes from there"
until(lambda: state(second[3]) == "complete", "the forked container ends")
log = f"/v1/client/fs/logs/{second[3]}?task=container&type=stdout&plain=true"
until(lambda: ask(log).decode() == f"printed in {second[3]}\\n", "its log")

# Nomad stops the allocation of a forked container: it finishes what it runs.
call, allocation, pid = hold()
ask(f"/v1/allocation/{allocation}/stop", {})
until(lambda: json.loads(ask(f"/v1/allocation/{allocation}"))["DesiredStatus"] == "stop", "the stop")
(folder / "go").touch()
assert call.get(timeout=60) == allocation
until(lambda: not alive(pid) and state(allocation) == "complete", "the stopped container ends")

# Its stand-in is killed: so is the fork, and the input runs again in another one.
call, allocation, pid = hold()
os.kill(stand_in(allocation), signal.SIGKILL)
until(lambda: not alive(pid), "the fork ends with its stand-in")
again, _ = began([f"began.{allocation}"])
(folder / "go").touch()
assert call.get(timeout=60) == again != allocation

# The snapshot's process is killed: its forks live on, and the next container loads anew.
call, allocation, pid = hold()
os.kill(second[2], signal.SIGKILL)
until(lambda: state(first[3]) == "complete", "the snapshot's allocation ends")
(folder / "go").touch()
assert call.get(timeout=60) == allocation
third = Model().ask.remote()
assert third[0] == third[1] != first[0]
until(lambda: state(third[3]) == "running", "the new snapshot's allocation stays")

# A drained node: the fork finishes what it runs, and the allocation that only waits ends at once.
call, allocation, pid = hold()
(node,) = json.loads(ask("/v1/nodes"))
drain = f"/v1/node/{node['ID']}/drain"
ask(drain, {"DrainSpec": {"Deadline": -1, "IgnoreSystemJobs": True}})
try:
    until(lambda: state(third[3]) == "complete", "the snapshot's allocation ends with its node's drain")
    (folder / "go").touch()
    assert call.get(timeout=60) == allocation
    until(lambda: not alive(pid) and state(allocation) == "complete", "the drained container ends")
finally:
    ask(drain, {"DrainSpec": None, "MarkEligible": True})
third = Model().ask.remote()
until(lambda: state(third[3]) == "running", "a snapshot after the drain")

# Files of the image are at their places in forks too.
one, two = Files().ask.remote(), Files().ask.remote()
assert one[0] == one[1] == two[0] != two[1] and one[2] == two[2] == "the words", (one, two)

# Another version has a snapshot of its own, and ends the earlier one.
print("first part done", third[3], flush=True)
sys.stdin.readline()
until(lambda: state(third[3]) == "complete", "the replaced snapshot ends")
fourth, fifth = Model().ask.remote(), Model().ask.remote()
assert fourth[0] == fourth[1] == fifth[0] != fifth[1] and fourth[6] == 2, (fourth, fifth)
print("second part done", fourth[3], flush=True)
sys.stdin.readline()
until(lambda: state(fourth[3]) == "complete", "the App's stop ends its snapshots")
print("done")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "snapshots_app").mkdir()
    for name, text in {
        "snapshots_app/__init__.py": APP,
        "snapshots_app/late.py": "",
        "snapshots_app/words.txt": "the words",
        "caller.py": CALLER,
    }.items():
        (tmp_path / name).write_text(text)
    yield tmp_path


def test_containers_are_forked_from_a_snapshot_and_end_as_others(nomad_address: str, folder: Path) -> None:
    with dispatcher(folder, {"address": nomad_address}, auth="none") as url:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "MODAL_"))}
        caller = subprocess.Popen(
            [sys.executable, "-W", "ignore", "caller.py", nomad_address, str(folder)],
            cwd=folder,
            env={**clean, "MODAL_SERVER_URL": url, "MODAL_CONFIG_PATH": "/nonexistent"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert caller.stdin is not None and caller.stdout is not None
        try:
            assert caller.stdout.readline().startswith("first"), _rest(caller, folder)
            again = APP.replace("VERSION = 1", "VERSION = 2")
            (folder / "snapshots_app" / "__init__.py").write_text(again)
            deployed = modal_nomad(folder, url, "deploy", "-m", "snapshots_app")
            assert deployed.returncode == 0, deployed.stderr
            caller.stdin.write("\n")
            caller.stdin.flush()
            assert caller.stdout.readline().startswith("second"), _rest(caller, folder)
            stopped = modal_nomad(folder, url, "app", "stop", "snapshots")
            assert stopped.returncode == 0, stopped.stderr
            out, err = caller.communicate("\n", timeout=100)
            assert out == "done\n", err
        finally:
            caller.kill()
            caller.wait()


def _rest(caller: subprocess.Popen[str], folder: Path) -> str:
    caller.kill()
    out, err = caller.communicate()
    return out + err + (folder / "dispatcher.log").read_text()


def test_an_allocation_that_only_waits_gives_way(nomad_address: str, tmp_path: Path) -> None:
    (node,) = get(nomad_address, "/v1/nodes?resources=true")
    total, reserved = node["NodeResources"]["Memory"], node["ReservedResources"]["Memory"]
    file = f"""
import os
import modal

app = modal.App("gives-way")
# Room for one of them.
memory = {int((total["MemoryMB"] - reserved["MemoryMB"]) * 0.6)}

@app.function(enable_memory_snapshot=True, single_use_containers=True, memory=memory)
def one():
    return os.environ["NOMAD_ALLOC_ID"]

@app.function(memory=memory)
def two():
    return os.environ["NOMAD_ALLOC_ID"]

@app.local_entrypoint()
def main():
    print("allocations", one.remote(), two.remote())
"""
    with dispatcher(tmp_path, {"address": nomad_address}, auth="none") as url:
        done = modal_nomad(tmp_path, url, "run", "-q", "app.py", file=file)
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = (x for x in done.stdout.splitlines() if x.startswith("allocations"))
        _, first, second = line.split()
        one, two = (get(nomad_address, f"/v1/allocation/{x}") for x in (first, second))
        assert one["DesiredStatus"] == "stop" and one["CreateIndex"] < two["CreateIndex"]


def test_where_nothing_can_be_forked_a_deployment_says_so(nomad_address: str, tmp_path: Path) -> None:
    file = """
import modal

app = modal.App("no-snapshots")

@app.function(enable_memory_snapshot=True)
def held() -> None: ...
"""
    with dispatcher(tmp_path, {"address": nomad_address}, auth="none", render={"driver": "exec"}) as url:
        done = modal_nomad(tmp_path, url, "deploy", "app.py", file=file)
        assert done.returncode == 0, done.stderr
        said = " ".join((done.stdout + done.stderr).split())
        assert "held: enable_memory_snapshot has no effect with the task driver 'exec'" in said
        modal_nomad(tmp_path, url, "app", "stop", "no-snapshots")
