"""Entries of Volumes as lines, and the paths that they may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.wire.volumes.entries import (
    CHUNK_BYTES,
    DIRECTORY,
    FILE,
    HOLE,
    REMOVED,
    SYMLINK,
    Entry,
    clean_path,
    decode,
    encode,
)


@given(st.text(max_size=300))
def test_no_path_leads_out(text: str) -> None:
    try:
        path = clean_path(text)
    except ValueError:
        return
    assert not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
    assert clean_path(path) == path


ENTRIES = st.sampled_from(
    [
        Entry("a/ü", FILE, 2, data=b"\x00\n"),
        Entry("a", FILE, 2 * CHUNK_BYTES, 5, 0o600, ("1" * 64, HOLE)),
        Entry("a\n", DIRECTORY, mode=0o755),
        Entry("a", SYMLINK, 1, data=b"x"),
        Entry("a", REMOVED),
    ]
)


@given(ENTRIES, st.binary(max_size=50))
def test_lines_of_entries(entry: Entry, noise: bytes) -> None:
    line = encode(entry)
    assert line.count(b"\n") == 1 and line.isascii() and decode(line) == entry
    for bad in (noise, line[:-3], line.replace(b'"', b"", 1)):
        try:
            decode(bad)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "entry",
    [
        Entry("", FILE),
        Entry("../a", FILE),
        Entry("/a", FILE),
        Entry("a", 4),
        Entry("a", FILE, 5),
        Entry("a", FILE, CHUNK_BYTES + 1, chunks=("1" * 64,)),
        Entry("a", DIRECTORY, data=b"x"),
        Entry("a", SYMLINK),
        Entry("a", FILE, -1),
    ],
)
def test_entries_that_cannot_be(entry: Entry) -> None:
    with pytest.raises(ValueError):
        decode(encode(entry))
