"""Lines on stderr that Nomad takes over into the agent's log, each at its level."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone


def log(level: str, message: str) -> None:
    """Write one line: ``level`` is one of debug, info, warn, error."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    # One write, so that threads do not cut each other's lines.
    sys.stderr.write(json.dumps({"@level": level, "@message": message, "@timestamp": now}) + "\n")
    sys.stderr.flush()
