"""Whether this machine lets a container have a FUSE file system, found out by making one."""

from __future__ import annotations

import functools
import subprocess
import sys

from modal_nomad.worker.fuse.mounting import helper, usable

_TRIAL = """
import sys, tempfile
from modal_nomad.worker._mounts import enter_private_namespace
from modal_nomad.worker.fuse import mounting
try:
    enter_private_namespace()
    mounting.mount(mounting.open_device(), tempfile.mkdtemp(), False)
except OSError as error:
    sys.exit(str(error))
"""


@functools.cache
def why_not_mounted() -> str:
    """Return why a process cannot mount for itself; empty where it can."""
    able, reason = usable()
    if not able:
        return reason
    done = subprocess.run(
        [sys.executable, "-c", _TRIAL], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def why_not() -> str:
    """Return why Volumes cannot come through FUSE here; empty where they can."""
    reason = why_not_mounted()
    return reason if not (usable()[0] and helper()) else ""
