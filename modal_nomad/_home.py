"""Where the embedded dispatcher of this user keeps its state."""

from __future__ import annotations

import os
from pathlib import Path

SOCKET = "daemon.sock"
LOG = "daemon.log"
LOCK = "daemon.lock"


def home() -> Path:
    """Return the directory, made private (0700) on first use.

    It is ``$MODAL_NOMAD_HOME``, else ``$XDG_STATE_HOME/modal-nomad``, else ``~/.local/state/modal-nomad``.
    """
    chosen = os.environ.get("MODAL_NOMAD_HOME")
    if chosen:
        path = Path(chosen).expanduser()
    else:
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        path = Path(state).expanduser() / "modal-nomad"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path.absolute()
