"""Whether this machine lets the tests make control groups."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from modal_nomad.engines._local_groups import ControlGroups


@functools.cache
def allowed() -> bool:
    """Make one, and take it away."""
    with tempfile.TemporaryDirectory() as folder:
        groups = ControlGroups(f"modal-nomad-{Path(folder).name}", Path(folder, "marker"))
        made = groups.make("probe", 64 << 20, 0.5)
        groups.clear()
    return made is not None
