"""Running one program of ``benchmarks.subjects`` and reading what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import ROOT

Results = dict[str, float]


def run(name: str, *args: int, python: str | Path = sys.executable, limit: float = 900) -> Results:
    """Run a subject; on failure say why in one line and give no results."""
    command = [str(python), "-m", f"benchmarks.subjects.{name}", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: not done after {limit:g} s", file=sys.stderr)
        return {}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"{name}: failed: {last}", file=sys.stderr)
        return {}
    result: Results = json.loads(lines[-1])
    return result
