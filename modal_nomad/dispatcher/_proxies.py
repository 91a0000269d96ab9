"""``[proxies]`` of the settings: which nodes have the address of a ``modal.Proxy``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROXY_NAMES = frozenset({"node_pool", "node_meta"})


def proxy_faults(proxies: Mapping[str, Any], engine: str) -> str:
    """Return what is wrong with the table, in one line; empty for nothing."""
    for name, table in proxies.items():
        if not isinstance(table, Mapping):
            return f"[proxies]: {name} is {table!r}; write [proxies.{name}], and its nodes below"
        if unknown := sorted(set(table) - PROXY_NAMES):
            return (
                f"[proxies.{name}] has no setting {unknown[0]!r}; known are {', '.join(sorted(PROXY_NAMES))}"
            )
        if not isinstance(table.get("node_pool", ""), str):
            return f"[proxies.{name}]: node_pool is {table['node_pool']!r}; give a name"
        meta = table.get("node_meta", {})
        if not isinstance(meta, Mapping) or not all(isinstance(value, str) for value in meta.values()):
            return f'[proxies.{name}]: node_meta is {meta!r}; give strings, as {{ egress = "{name}" }}'
        if engine == "nomad" and not table.get("node_pool") and not meta:
            return f"[proxies.{name}] says nothing of its nodes: give node_pool, node_meta or both"
    return ""
