"""Many small blobs at once, asked of a dispatcher."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad._bridge import blocking_function, io
from modal_nomad._uploads import upload_missing
from modal_nomad.wire import blob_lists
from modal_nomad.wire.transport import BlobClient


def test_blobs_come_many_at_once(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs: BlobClient = modal.Client.from_env()._blobs
    contents = [b"one", b"", b"two" * 100, b"large" * blob_lists.LARGEST, *(b"%d" % i for i in range(50))]
    names = [blobs.put(data) for data in contents]
    asked: list[str] = []
    exchange = blobs.exchange

    def noted(method: str, path: str, *rest: object, **more: object) -> tuple[int, bytes]:
        asked.append(path)
        return exchange(method, path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(blobs, "exchange", noted)
    assert blobs.get_all([*names, *names]) == dict(zip(names, contents, strict=True))
    assert asked == ["/v1/blobs/some", f"/v1/blobs/{names[3]}"]
    absent = hashlib.sha256(b"nobody put this").hexdigest()
    with pytest.raises(KeyError, match=absent):
        blobs.get_all([names[0], absent])
    for wrong in (b"no JSON", b"{}", b"[1]", json.dumps(["x"] * (blob_lists.MOST_NAMES + 1)).encode()):
        assert exchange("POST", "/v1/blobs/some", wrong)[0] == 409
    assert blobs.put_all(contents[:3]) == names[:3]
    new = [b"new %d" % i * 20_000 for i in range(10)]
    assert [blobs.get(x) for x in blobs.put_all(new)] == new
    for wrong in (b"1", blob_lists.pack([None]), blob_lists.pack([b""] * (blob_lists.MOST_NAMES + 1))):
        assert exchange("POST", "/v1/blobs/put", wrong)[0] == 400
    assert exchange("POST", "/v1/blobs/some", b'["../secret"]')[0] == 400
    assert exchange("POST", "/v1/blobs/missing", b'["../secret"]')[0] == 400


def test_files_are_sent_by_their_sizes(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = modal.Client.from_env()
    contents: dict[str, bytes | Path] = {}
    for i in range(2500):
        path = tmp_path / str(i)
        path.write_bytes(tmp_path.name.encode() + b"%d" % i)
        contents[hashlib.sha256(path.read_bytes()).hexdigest()] = path
    large = tmp_path / "large"
    large.write_bytes(tmp_path.name.encode() * blob_lists.LARGEST)
    name = hashlib.sha256(large.read_bytes()).hexdigest()
    contents[name] = large
    asked: list[str] = []
    exchange = client._blobs.exchange

    def noted(method: str, path: str, *rest: object, **more: object) -> tuple[int, bytes]:
        asked.append(path)
        return exchange(method, path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(client._blobs, "exchange", noted)

    @blocking_function
    async def upload(client: modal.Client, contents: dict[str, bytes | Path]) -> int:
        return int(await io(upload_missing(client, contents)))

    assert upload(client, contents) == 2501
    assert sorted(asked) == [f"/v1/blobs/{name}", *["/v1/blobs/put"] * 3]
    assert upload(client, contents) == 0
    assert client._blobs.get_all([*contents]) == {sha: path.read_bytes() for sha, path in contents.items()}
    for changed in (large, tmp_path / "0"):
        sha = hashlib.sha256(changed.read_bytes() + b"before").hexdigest()
        with pytest.raises(modal.exception.ExecutionError, match=f"{changed.name} changed while it was"):
            upload(client, {sha: changed})
