"""Where the embedded dispatcher of this user keeps its state."""

from __future__ import annotations

import os
from pathlib import Path

from .exception import InvalidError

SOCKET = "daemon.sock"
LOG = "daemon.log"
LOCK = "daemon.lock"


def home() -> Path:
    """Return the directory, made private (0700) on first use.

    It is ``$MODAL_NOMAD_HOME``, else ``$XDG_STATE_HOME/modal-nomad``, else ``~/.local/state/modal-nomad``.

    Raises:
        InvalidError: when it is not there and cannot be made.
    """
    chosen = os.environ.get("MODAL_NOMAD_HOME")
    if chosen:
        path = Path(chosen).expanduser()
    else:
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        path = Path(state).expanduser() / "modal-nomad"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidError(
            f"the folder {path} for the embedded dispatcher's state cannot be made ({error.strerror}): "
            "set MODAL_NOMAD_HOME to one that you may write to"
        ) from None
    return path.absolute()
