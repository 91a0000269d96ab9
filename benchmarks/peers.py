"""The environment that Ray and Dask live in, apart from the project's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-bench"
PYTHON = FOLDER / "bin" / "python"


def prepare() -> str:
    """Make the environment where it is missing; return what went wrong, or nothing."""
    uv = [sys.executable, "-m", "uv"]
    steps = [[*uv, "pip", "install", "--quiet", "--python", str(PYTHON), "--group", "bench"]]
    if not PYTHON.exists():
        steps.insert(0, [*uv, "venv", "--quiet", "--python", sys.executable, str(FOLDER)])
    for step in steps:
        done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["uv failed"])[-1]
    return ""
