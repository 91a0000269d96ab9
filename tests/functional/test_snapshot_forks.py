"""A snapshot's process and the stand-ins of its forks, by themselves: no dispatcher, no engine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import alive, until

FIRST = """
import ctypes, os, signal, sys
from modal_nomad.worker import _cgroups, _snapshot
from modal_nomad.worker._obstacles import descriptors

def run(moved):
    case = os.environ["CASE"]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print(os.getpid(), case, os.getcwd(), flush=True)
    if case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "stuck":
        # A call into C that never lets another thread of Python run.
        ctypes.PyDLL(None).pause()
    if case == "told":
        signal.sigwait([signal.SIGTERM])
        return 8
    return 7

def refuse(pid):
    raise PermissionError(13, "Permission denied")

if "refuse" in sys.argv:
    _cgroups.join = refuse
ours = descriptors()
link = _snapshot.keep(sys.argv[1], ours, lambda: None, run, idle=600.0, within=True)
print("kept", link is not None, flush=True)
sys.stdin.read(1)
"""
LATER = """
import os, sys
from modal_nomad.worker._stand_in import restore

code = restore(sys.argv[1])
if code is None:
    print("anew", os.environ.get("MODAL_SNAPSHOT"))
    code = 0
sys.exit(code)
"""


class Node:
    """A folder of snapshots, and who uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshots = folder / "snapshots"
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, program: str, *words: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(self.snapshots / "name"), *words],
            env={**os.environ, "CASE": "", "MODAL_SNAPSHOT": "name", **env},
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def first(self, *words: str) -> subprocess.Popen[str]:
        process = self.start(FIRST, *words)
        assert process.stdout is not None
        assert process.stdout.readline() == "kept True\n"
        return process

    def fork(self, later: subprocess.Popen[str]) -> int:
        """Return the process that a stand-in stands for, once that runs."""
        assert later.stdout is not None
        return int(later.stdout.readline().split()[0])

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        # The snapshot's process ends with its allocation's.
        until(lambda: not list(self.snapshots.glob("name")), 200)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.end()


def test_a_stand_in_ends_as_its_fork(node: Node) -> None:
    first = node.first()
    for case, code in {"value": 7, "killed": -signal.SIGKILL}.items():
        later = node.start(LATER, CASE=case)
        out, err = later.communicate(timeout=200)
        # Descriptors, environment and working directory are those of the process that asked.
        assert out.split()[1:] == [case, str(node.folder)], out + err
        assert later.returncode == code
    assert first.poll() is None


def test_signals_reach_the_fork(node: Node) -> None:
    node.first()
    later = node.start(LATER, CASE="told")
    assert node.fork(later) != later.pid
    # It stands for the fork from then on.
    until(lambda: _catches(later.pid, signal.SIGTERM), 200)
    later.send_signal(signal.SIGTERM)
    later.communicate(timeout=200)
    assert later.returncode == 8


def test_a_killed_stand_in_takes_a_fork_along_that_is_stuck_in_c(node: Node) -> None:
    node.first()
    later = node.start(LATER, CASE="stuck")
    fork = node.fork(later)
    assert alive(fork)
    later.kill()
    until(lambda: not alive(fork), 200)


def test_forks_outlive_the_snapshot_and_say_their_own_end(node: Node) -> None:
    first = node.first()
    later = node.start(LATER, CASE="told")
    fork = node.fork(later)
    first.kill()
    until(lambda: not list(node.snapshots.glob("name")), 200)
    os.kill(fork, signal.SIGTERM)
    later.communicate(timeout=200)
    assert later.returncode == 8


def test_what_cannot_be_a_fork_starts_anew_and_says_why(node: Node) -> None:
    node.first("refuse")
    out, err = node.start(LATER).communicate(timeout=200)
    # The name is gone as well: it keeps no snapshot either.
    assert out == "anew None\n"
    assert err == (
        "modal-nomad worker: its memory snapshot is not used, because the control groups of its allocation "
        "cannot be entered: [Errno 13] Permission denied; the container starts anew\n"
    )
    node.snapshots.chmod(0o755)
    out, err = node.start(LATER).communicate(timeout=200)
    assert out == "anew None\n" and "is not this user's alone" in err


def test_without_a_snapshot_a_container_starts_anew_without_a_word(node: Node) -> None:
    out, err = node.start(LATER).communicate(timeout=200)
    assert (out, err) == ("anew name\n", "")
    # What one left behind that was killed is no snapshot either.
    node.snapshots.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"/proc/self/fd/{os.open(node.snapshots, os.O_RDONLY)}/name")
    out, err = node.start(LATER).communicate(timeout=200)
    assert (out, err) == ("anew name\n", "")
    node.first()
    assert node.start(LATER, CASE="value").wait(60) == 7


def _catches(pid: int, number: int) -> bool:
    (mask,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)
