"""Whether the processes of a container together use more memory than its limit, which holds each alone."""

from __future__ import annotations

import contextlib
import pathlib

from modal_nomad.engines._local_files import family, usage_of

INTERVAL = 0.2
"""Seconds between two looks at a container that has a limit."""


def over_use(pid: int, limit: int) -> int:
    """Return the bytes that a process and its descendants use, when that is above ``limit``; else 0."""
    # Each counts what it shares with the others: when that is little enough the rest need not be looked at.
    if usage_of(pid)[1] <= limit:
        return 0
    used = sum(map(_own_part, family(pid)))
    return used if used > limit else 0


def _own_part(pid: int) -> int:
    """Return the resident bytes of a process, of shared ones its part."""
    with contextlib.suppress(OSError, ValueError):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
