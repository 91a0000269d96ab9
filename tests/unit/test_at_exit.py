"""The end of a program waits for what is under way."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, sys, threading
from modal_nomad import _at_exit

settle = _at_exit.wait_for(float(sys.argv[1]))

def last():
    threading.main_thread().join()
    print("under way", flush=True)
    if sys.argv[2] == "settled":
        print("settled", flush=True)
        settle()

threading.Thread(target=last, daemon=True).start()
if os.fork() == 0:
    # A child has nothing under way.
    sys.exit()
os.wait()
"""


def run(*arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, timeout=100)
    assert done.returncode == 0
    return done.stdout.decode().splitlines()


def test_what_is_under_way_comes_to_its_end() -> None:
    # Were it waited for in the child too, this would not be over in time.
    assert run("1000", "settled") == ["under way", "settled"]


def test_but_nobody_waits_for_ever() -> None:
    assert run("0.05", "stuck")[:1] in ([], ["under way"])
