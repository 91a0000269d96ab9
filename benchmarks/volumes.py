"""Volumes beside rsync and rclone: the lines of their own table."""

from __future__ import annotations

import shutil
import sys

from benchmarks import subject

_LINES = (
    ("upload_ms", "upload of the tree"),
    ("commit_ms", "commit of two changed files"),
    ("one_ms", "first read: one file, from nothing"),
    ("all_ms", "full read, from nothing"),
)
_PEERS = ("rsync", "rclone")


def theirs(large_mib: int, small: int) -> subject.Results:
    """Measure the peers that are installed."""
    for name in _PEERS:
        if shutil.which(name) is None:
            print(f"no {name}: it is not installed (Debian: apt-get install {name})", file=sys.stderr)
    return subject.run("volume_peers", large_mib, small)


def render(ours: subject.Results, peers: subject.Results) -> str:
    """Give the text: a peer's value and, in brackets, how many times better ours is."""
    lines = [f"{'':36}{'ours':>14}{'ours, no FUSE':>16}" + "".join(f"{name:>22}" for name in _PEERS)]
    for key, words in _LINES:
        mine = ours.get(key)
        line = f"{words:36}{_value(mine):>14}{_value(ours.get(f'filled_{key}')):>16}"
        for name in _PEERS:
            value = peers.get(f"{name}_{key}")
            cell = f"{_value(value)} ({value / mine:.2f}x)" if value and mine else "-"
            line += f"{cell:>22}"
        lines.append(line)
    return "\n".join(lines)


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"
