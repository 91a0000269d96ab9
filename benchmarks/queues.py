"""Queue and Dict beside Redis: the lines of their own table."""

from __future__ import annotations

import shutil
import sys

from benchmarks import subject

_LINES = (
    ("queue_pairs", "Queue put + get, pairs", "/s"),
    ("wake_us", "a waiting get wakes, p50", "us"),
    ("dict_pairs", "Dict put + get, pairs", "/s"),
)


def theirs(python: object, count: int, wakes: int) -> subject.Results:
    """Measure Redis, where there is a server."""
    if shutil.which("redis-server") is None:
        print(
            "no Redis: redis-server is not installed (Debian: apt-get install redis-server)", file=sys.stderr
        )
        return {}
    return subject.run("queue_redis", count, wakes, python=str(python))


def render(ours: subject.Results, redis: subject.Results) -> str:
    """Give the text: Redis' value and, in brackets, how many times better ours is."""
    lines = [f"{'':36}{'ours':>12}{'Redis, in memory':>24}{'Redis, fsync always':>24}"]
    for key, words, unit in _LINES:
        mine = ours.get(key)
        line = f"{words:36}{_value(mine, unit):>12}"
        for mode in ("", "disk_"):
            value = redis.get(mode + key)
            cell = "-"
            if value and mine:
                better = value / mine if unit == "us" else mine / value
                cell = f"{_value(value, unit)} ({better:.2f}x)"
            line += f"{cell:>24}"
        lines.append(line)
    return "\n".join(lines)


def _value(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.0f} {unit}"
