"""The table: a line for each thing measured, ours first, and each peer's ratio to ours."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.subject import Results

Row = tuple[str, str, float | None, dict[str, float | None], str]
"""What, unit, ours, the peers' by name, the budget."""

PEERS = ("Ray actor", "Ray task", "Dask", "ProcessPool")


class Sizes(NamedTuple):
    """How much was measured, of ours and of the peers."""

    inputs: int
    peer_inputs: int
    sets: int
    peer_sets: int


def rows(ours: Results, peers: dict[str, Results], sizes: Sizes) -> list[Row]:
    """Give the lines that have peers."""
    inputs, peer_inputs, sets, peer_sets = sizes
    ray, dask, pool = (peers.get(name, {}) for name in ("ray", "dask", "pool"))
    table: list[Row] = []
    for key, words, budget in (("p50_us", ".remote() p50", "<= 250"), ("p99_us", ".remote() p99", "")):
        values = (ray.get(key), ray.get(f"task_{key}"), dask.get(key), pool.get(key))
        table.append((words, "us", ours.get(key), dict(zip(PEERS, values, strict=True)), budget))
    for size, their_size, budget in ((1, 1, ""), (100, 100, ""), (inputs, peer_inputs, ">= 80,000")):
        key = f"map_{their_size}"
        values = (None, ray.get(key), dask.get(key), pool.get(key))
        words = f".map of {size:,}" + (f" (peers {their_size:,})" if size != their_size else "")
        table.append((words, "/s", ours.get(f"map_{size}"), dict(zip(PEERS, values, strict=True)), budget))
    items, classes = peers.get("ray_items", {}), peers.get("ray_classes", {})
    for key, source, unit, words in (
        ("items", items, "/s", f"generator of {inputs:,} (peers {peer_inputs:,})"),
        ("concurrent", classes, "/s", "async function, 100 at a time"),
        ("batched", classes, "/s", "batches of 64"),
        ("sets_first_ms", classes, "ms", f"each of {sets} parameter sets (peers {peer_sets})"),
        ("sets", classes, "/s", "  the same, warm"),
    ):
        theirs: dict[str, float | None] = dict.fromkeys(PEERS)
        theirs["Ray actor"] = source.get(key)
        table.append((words, unit, ours.get(key), theirs, ""))
    return table


def own_rows(ours: Results, cold: Results, imports: Results, memory: Results, plugin: Results) -> list[Row]:
    """Give the lines of ours alone."""
    table: list[Row] = [
        (".spawn() accepted, one by one", "/s", ours.get("spawn"), {}, ""),
        (".spawn_map() accepted", "/s", ours.get("spawn_map"), {}, ">= 20,000"),
        ("call graph of 10,000 nodes", "ms", ours.get("graph_ms"), {}, ""),
        ("first answer, fresh home", "ms", cold.get("first_fresh_home_ms"), {}, ""),
        ("first answer from zero", "ms", cold.get("first_ms"), {}, "<= 50"),
        ("  after scaling to zero", "ms", cold.get("zero_ms"), {}, "<= 50"),
        ("deploy of a small app", "ms", cold.get("deploy_ms"), {}, "<= 500"),
    ]
    for name, words in (("bare", "import modal_nomad"), ("used", "  with App and Image")):
        budget = "<= 1.3" if name == "bare" else ""
        table.append((f"{words} / asyncio", "x", imports[name] / imports["asyncio"], {}, budget))
    table.append(("GPU plugin: start", "ms", plugin.get("plugin_line_ms"), {}, "<= 300"))
    table.append(("  to its first devices", "ms", plugin.get("plugin_devices_ms"), {}, ""))
    for who in ("dispatcher", "client"):
        for share in ("10", "100"):
            words = f"{who} memory, {share}% of {memory.get('inputs', 0):,.0f}"
            table.append((words, "MiB", memory.get(f"{who}_{share}"), {}, ""))
    return table


def render(table: list[Row]) -> str:
    """Give the text: a peer's cell is its value and, in brackets, how many times better ours is."""
    lines = [f"{'':40}{'ours':>12}{'budget':>12}" + "".join(f"{peer:>20}" for peer in PEERS)]
    for words, unit, ours, peers, budget in table:
        line = f"{words:40}{_value(ours, unit):>12}{budget:>12}"
        for peer in PEERS if peers else ():
            theirs = peers.get(peer)
            cell = ""
            if theirs and ours:
                better = theirs / ours if unit in ("us", "ms") else ours / theirs
                cell = f"{_value(theirs, unit)} ({better:.1f}x)"
            line += f"{cell:>20}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
