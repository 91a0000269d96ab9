"""Many small blobs in one answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.dispatcher.blobs import DirectoryBlobs
from modal_nomad.wire import blob_lists


@given(st.lists(st.none() | st.binary(max_size=50)))
def test_what_was_packed_is_unpacked(contents: list[bytes | None]) -> None:
    assert blob_lists.unpack(blob_lists.pack(contents)) == contents


@given(st.lists(st.none() | st.binary(max_size=50), min_size=1), st.data())
def test_half_an_answer_is_refused_or_a_shorter_one(
    contents: list[bytes | None], data: st.DataObject
) -> None:
    body = blob_lists.pack(contents)
    part = body[: data.draw(st.integers(0, len(body) - 1))]
    try:
        found = blob_lists.unpack(part)
    except ValueError:
        return
    assert found == contents[: len(found)]


async def test_an_answer_ends_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_lists, "MOST_BYTES", 10)
    monkeypatch.setattr(blob_lists, "LARGEST", 8)
    blobs = DirectoryBlobs(tmp_path)
    names = [await blobs.put(data) for data in (b"first", b"too large", b"", b"second", b"third")]
    assert await blobs.get_some(["0" * 64, *names]) == [None, b"first", None, b"", b"second"]
