"""Queue and Dict beside Redis: the lines of their own table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping

from benchmarks import subject

_LINES = (
    ("queue_pairs", "Queue put + get, pairs", "/s"),
    ("queue_pairs_16", "Queue put + get, 16 threads", "/s"),
    ("queue_pairs_64", "Queue put + get, 64 threads", "/s"),
    ("wake_us", "a waiting get wakes, p50", "us"),
    ("dict_pairs", "Dict put + get, pairs", "/s"),
    ("dict_pairs_16", "Dict put + get, 16 threads", "/s"),
    ("dict_pairs_64", "Dict put + get, 64 threads", "/s"),
)

_PROMISES = (
    ("power", "disk_", "power cuts"),
    ("process", "second_", "kills"),
    ("process", "", "kills, none"),
)
"""Our durability, Redis' mode (always, everysec, memory), and what a write outlives: in memory, nothing."""


def theirs(python: object, count: int, wakes: int) -> subject.Results:
    """Measure Redis, where there is a server."""
    if shutil.which("redis-server") is None:
        print(
            "no Redis: redis-server is not installed (Debian: apt-get install redis-server)", file=sys.stderr
        )
        return {}
    return subject.run("queue_redis", count, wakes, python=str(python))


def render(ours: Mapping[str, subject.Results], redis: subject.Results) -> str:
    """Give the text: for each promise ours, Redis' value and, in brackets, how many times better ours is."""
    lines = [f"{'':32}{'outlives':>12}{'ours':>12}{'Redis':>20}"]
    for key, words, unit in _LINES:
        for durability, mode, said in _PROMISES:
            mine = ours.get(durability, {}).get(key)
            value = redis.get(mode + key)
            cell = "-"
            if value and mine:
                better = value / mine if unit == "us" else mine / value
                cell = f"{_value(value, unit)} ({better:.2f}x)"
            lines.append(f"{words:32}{said:>12}{_value(mine, unit):>12}{cell:>20}")
    return "\n".join(lines)


def _value(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.0f} {unit}"
