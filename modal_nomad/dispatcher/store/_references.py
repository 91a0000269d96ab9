"""Which blobs the rows of a store name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from modal_nomad.dispatcher.store._volume_rows import chunk_names, chunks_of
from modal_nomad.dispatcher.store.base import References

_NAME = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_MANIFEST = re.compile(rb'"manifest":\s*"([0-9a-f]{64})"')


def referenced_blobs(
    tables: Mapping[str, Collection[str]],
    scan: Callable[[str], Iterable[Sequence[Any]]],
    flagged: Callable[[str], str],
) -> References:
    """Return the names in payloads that are flagged as blobs, and all that read like one elsewhere.

    It goes by the schema, so that a table that comes later is not forgotten: payloads are in tables with
    the columns ``payload`` and ``flags``, chunks of files in a column ``chunks``, the rest in columns
    ``spec``, ``job`` and ``params``. Functions of stopped Apps count no more.

    Args:
        tables: the columns of each.
        scan: runs a query and gives its rows as they come, all in one transaction.
        flagged: gives the query for a table's payloads that are names of blobs.
    """
    names: set[str] = set()
    manifests: set[str] = set()
    for table, columns in tables.items():
        if {"payload", "flags"} <= set(columns):
            names.update(bytes(row[0]).decode("ascii", "replace") for row in scan(flagged(table)))
        if "chunks" in columns:
            names.update(chunk_names(scan(chunks_of(table))))
        live = "app_id IN (SELECT app_id FROM apps WHERE state != 'stopped')"
        where = f" WHERE {live}" if "app_id" in columns else ""
        for column in set(columns) & {"spec", "job", "params"}:
            for (value,) in scan(f"SELECT {column} FROM {table}{where}"):
                if value:
                    data = value.encode() if isinstance(value, str) else value
                    names.update(name.decode() for name in _NAME.findall(data))
                    manifests.update(name.decode() for name in _MANIFEST.findall(data))
    return References(names, manifests)
