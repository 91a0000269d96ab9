"""A dispatcher of the benchmark's own, so that the user's is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def private_home(**settings: str) -> Iterator[None]:
    """Point this process and its children at a fresh home; stop that home's daemon at the end.

    Args:
        settings: other environment variables, for that time.
    """
    before = {k: os.environ.pop(k) for k in list(os.environ) if k.startswith("MODAL_")}
    with tempfile.TemporaryDirectory(prefix="mn-bench-") as folder:
        # No profile either: it could name a server.
        os.environ.update(
            MODAL_NOMAD_HOME=f"{folder}/home", MODAL_CONFIG_PATH=f"{folder}/none.toml", **settings
        )
        try:
            yield
        finally:
            subprocess.run([sys.executable, "-m", "modal_nomad", "local", "stop"], capture_output=True)
            for name in ("MODAL_NOMAD_HOME", "MODAL_CONFIG_PATH", *settings):
                del os.environ[name]
            os.environ.update(before)
