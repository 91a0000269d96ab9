"""What an import costs, in fresh interpreters, one after the other in turn."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

STATEMENTS = {
    "nothing": "pass",
    "asyncio": "import asyncio",
    "bare": "import modal_nomad",
    "used": "import modal_nomad; modal_nomad.App, modal_nomad.Image",
}


def import_times(runs: int) -> dict[str, float]:
    """Give milliseconds of each import beyond an empty program: medians of runs that take turns."""
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(runs):
        for name, statement in STATEMENTS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            times[name].append((time.perf_counter() - began) * 1e3)
    base = median(times.pop("nothing"))
    return {name: median(values) - base for name, values in times.items()}
