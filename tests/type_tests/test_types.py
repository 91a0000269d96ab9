"""User code is checked as it is written: blocking calls and their ``.aio`` twins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_public_types() -> None:
    here = Path(__file__).parent
    files = [str(here / name) for name in ("api.py", "storage.py")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *files],
        cwd=here.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
