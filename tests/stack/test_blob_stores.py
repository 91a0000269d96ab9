"""The contract of a blob store, on a directory and on a real S3-compatible server, and what is its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from modal_nomad.dispatcher.blobs import (
    BlobError,
    BlobMissing,
    BlobStore,
    BlobStoreError,
    DirectoryBlobs,
)
from modal_nomad.dispatcher.blobs.s3 import REDIRECT, S3Blobs
from modal_nomad.dispatcher.blobs.s3_settings import S3Settings
from modal_nomad.wire.transport import BlobClient
from tests._loops import serving
from tests._s3 import KEY_ID, SECRET_KEY, S3Server, s3_server

AGE = 1000.0
_numbers = count()


class Clock:
    """The time, as far ahead as a test says."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


def s3_settings(server: S3Server, **more: Any) -> S3Settings:
    bucket = more.pop("bucket", None) or server.bucket(f"blobs-{next(_numbers)}-{os.getpid()}")
    return S3Settings(
        bucket,
        endpoint=more.pop("endpoint", server.address),
        access_key_id=KEY_ID,
        secret_access_key=SECRET_KEY,
        path_style=True,
        **more,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["directory", "s3"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[BlobStore]:
    store: BlobStore
    if request.param == "directory":
        store = DirectoryBlobs(tmp_path / "blobs", clock=clock)
    else:
        settings = s3_settings(request.getfixturevalue("server"))
        store = S3Blobs(settings, tmp_path, garbage_age=AGE, clock=clock)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
async def bucket(server: S3Server, tmp_path: Path, clock: Clock) -> AsyncIterator[S3Blobs]:
    store = S3Blobs(s3_settings(server), tmp_path, garbage_age=AGE, clock=clock)
    await store.start()
    yield store
    await store.close()


def sha_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@contextlib.asynccontextmanager
async def served(store: BlobStore, path: str = "/{sha}") -> AsyncIterator[TestClient[Any, Any]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await store.serve(request.match_info["sha"], request, "application/zip")
        except BlobMissing:
            raise web.HTTPNotFound from None

    app = web.Application()
    app.router.add_get(path, handler)
    async with TestClient(TestServer(app)) as client:
        yield client


# ---- the contract


async def test_what_was_put_is_there(blobs: BlobStore) -> None:
    sha = await blobs.put(b"data")
    assert sha == sha_of(b"data") and await blobs.put(b"data", sha) == sha
    assert await blobs.get(sha) == b"data"
    other = sha_of(b"other")
    assert await blobs.missing([other, sha, other]) == [other]
    with pytest.raises(BlobMissing, match="upload it first"):
        await blobs.get(other)
    await blobs.delete([sha, other])
    assert await blobs.missing([sha]) == [sha]
    assert await blobs.put(b"") == sha_of(b"") and await blobs.get(sha_of(b"")) == b""


@pytest.mark.parametrize("size", [0, 100, 3 << 20, 19 << 20])
async def test_streams_of_all_sizes(blobs: BlobStore, size: int) -> None:
    data = os.urandom(size)
    pieces = [data[at : at + 300_000] for at in range(0, size, 300_000)]
    assert await blobs.put_stream(chunks(*pieces), sha_of(data)) == sha_of(data)
    assert await blobs.get(sha_of(data)) == data
    if size:
        assert await blobs.put(data + b"x") == sha_of(data + b"x")
        assert await blobs.get(sha_of(data + b"x")) == data + b"x"


async def test_what_is_not_what_was_announced_is_refused(blobs: BlobStore) -> None:
    with pytest.raises(BlobError, match="damaged on its way"):
        await blobs.put_stream(chunks(b"a"), sha_of(b"b"))
    with pytest.raises(BlobError, match="damaged"):
        await blobs.put(b"a", sha_of(b"b"))
    with pytest.raises(BlobError, match="larger than the 3 bytes"):
        await blobs.put_stream(chunks(b"abcd"), max_size=3)

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await blobs.put_stream(broken(), sha_of(b"half"))
    names = [sha_of(x) for x in (b"a", b"b", b"abcd", b"half")]
    assert await blobs.missing(names) == names


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
async def test_names_are_checked(blobs: BlobStore, name: str) -> None:
    for use in (blobs.get(name), blobs.missing([name]), blobs.delete([name]), blobs.put(b"", name)):
        with pytest.raises(BlobError, match="no blob name"):
            await use


async def test_small_ones_go_many_at_once(blobs: BlobStore) -> None:
    contents = [b"%d" % number for number in range(50)] + [b"", b"0"]
    names = await blobs.put_some(contents)
    assert names == [sha_of(data) for data in contents]
    assert [await blobs.get(name) for name in names] == contents
    # A store far away leaves it to each container to fetch them.
    assert await blobs.get_some(names) in (contents, [None] * len(names))


async def test_many_writers_of_one_blob(blobs: BlobStore) -> None:
    data = os.urandom(9 << 20)
    assert set(await asyncio.gather(*(blobs.put_stream(chunks(data)) for _ in range(4)))) == {sha_of(data)}
    assert await blobs.get(sha_of(data)) == data


async def test_collection_spares_what_is_used_new_or_asked_for(blobs: BlobStore, clock: Clock) -> None:
    used, old, asked = [await blobs.put(x) for x in (b"used", b"old", b"asked")]
    clock.ahead = AGE
    assert await blobs.missing([asked]) == []
    new = await blobs.put(b"new")
    # The file system's own clock knows nothing of the test's.
    assert await blobs.missing([new]) == []
    assert await blobs.collect({used}, older_than=AGE / 2) == [old]
    assert await blobs.missing([used, old, asked, new]) == [old]
    clock.ahead = 3 * AGE
    assert await blobs.collect({new}, older_than=AGE / 2) == sorted([used, asked])


async def test_a_blob_asked_for_while_it_is_collected_is_either_kept_or_missing(
    blobs: BlobStore, clock: Clock
) -> None:
    shas = [await blobs.put(b"%d" % i) for i in range(40)]
    clock.ahead = AGE
    removed, *answers = await asyncio.gather(
        blobs.collect((), older_than=AGE / 2), *(blobs.missing([sha]) for sha in shas)
    )
    told = {sha for answer in answers for sha in answer}
    assert set(removed) == told == set(await blobs.missing(shas))


async def test_requests_are_answered(blobs: BlobStore) -> None:
    data = os.urandom(700_000)
    sha = await blobs.put(data)
    async with served(blobs) as client:
        answer = await client.get(f"/{sha}")
        assert (answer.status, answer.content_type) == (200, "application/zip")
        assert answer.content_length == len(data) and await answer.read() == data
        answer = await client.head(f"/{sha}")
        assert answer.status == 200 and answer.headers["Content-Length"] == str(len(data))
        for span, part in (("5-9", data[5:10]), ("699990-", data[699990:]), ("-3", data[-3:])):
            answer = await client.get(f"/{sha}", headers={"Range": f"bytes={span}"})
            assert (answer.status, await answer.read()) == (206, part), span
        answer = await client.get(f"/{sha}", headers={"Range": "bytes=800000-"})
        assert answer.status == 416
        for verb in ("get", "head"):
            assert (await getattr(client, verb)(f"/{sha_of(b'none')}")).status == 404


# ---- what is the bucket's own


async def test_the_date_of_what_is_asked_for_is_made_new_for_other_dispatchers_too(
    server: S3Server, tmp_path: Path
) -> None:
    settings = s3_settings(server)
    store = S3Blobs(settings, tmp_path, garbage_age=0.001)
    await store.start()
    try:
        sha = await store.put(b"old")
        first = made = (await store._call("head_object", Key=store.key(sha)))["LastModified"]
        while made == first:
            # The server's dates have whole seconds.
            assert await store.missing([sha]) == []
            made = (await store._call("head_object", Key=store.key(sha)))["LastModified"]
        assert made > first and await store.get(sha) == b"old"
    finally:
        await store.close()


async def test_other_things_in_the_bucket_are_let_be(bucket: S3Blobs, server: S3Server, clock: Clock) -> None:
    name, old = bucket._bucket, await bucket.put(b"old")
    others = ["blobs/readme.txt", f"blobs/zz/{old}", f"other/{old}"]
    for key in others:
        server.put(name, key, b"x")
    clock.ahead = AGE
    assert await bucket.collect((), older_than=AGE / 2) == [old]
    assert server.keys(name) == sorted(others)


async def test_what_an_ended_dispatcher_left_of_an_upload_goes(bucket: S3Blobs, server: S3Server) -> None:
    await bucket._call("create_multipart_upload", Key=bucket.key(sha_of(b"never")))
    assert server.uploads(bucket._bucket)
    # This server dates all of them years back.
    await bucket.collect((), older_than=AGE)
    assert server.uploads(bucket._bucket) == []


async def test_an_upload_in_parts_that_fails_leaves_nothing(
    bucket: S3Blobs, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = bucket._call

    async def refuse(operation: str, **given: Any) -> Any:
        if operation == "upload_part" and given["PartNumber"] == 3:
            raise BlobStoreError("the disk is full")
        return await call(operation, **given)

    monkeypatch.setattr(bucket, "_call", refuse)
    with pytest.raises(BlobStoreError, match="disk is full"):
        await bucket.put_stream(chunks(bytes(20 << 20)))
    assert server.uploads(bucket._bucket) == [] and server.keys(bucket._bucket) == []


async def test_a_damaged_object_is_told_and_never_given(bucket: S3Blobs, server: S3Server) -> None:
    data = os.urandom(1 << 20)
    sha = await bucket.put(data)
    server.put(bucket._bucket, bucket.key(sha), data[:-1] + b"?")
    with pytest.raises(BlobStoreError, match="is damaged: remove it"):
        await bucket.get(sha)
    async with served(bucket) as client:
        answer = await client.get(f"/{sha}")
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_clients_follow_links_where_they_can(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Blobs(s3_settings(server, redirect=True), tmp_path, garbage_age=AGE)
    await store.start()
    try:
        sha = await store.put(b"linked")
        async with served(store, "/v1/blobs/{sha}") as client:
            link = f"/v1/blobs/{sha}"
            assert (await client.get(link, allow_redirects=False)).status == 200
            answer = await client.get(link, headers={REDIRECT: "1"}, allow_redirects=False)
            assert answer.status == 307 and "X-Amz-Signature=" in answer.headers["Location"]
            blobs = BlobClient(str(client.make_url("")))
            assert await asyncio.to_thread(blobs.get, sha) == b"linked" and blobs._follows
            # What the bucket gives is looked at; so is whether it can be reached.
            server.put(store._bucket, store.key(sha), b"forged")
            with pytest.raises(OSError):
                await asyncio.to_thread(blobs.get, sha)
            server.put(store._bucket, store.key(sha), b"linked")

            async def elsewhere(key: str) -> str:
                return "http://127.0.0.1:9/" + key

            monkeypatch.setattr(store, "_link", elsewhere)
            blobs = BlobClient(str(client.make_url("")))
            assert await asyncio.to_thread(blobs.get, sha) == b"linked" and not blobs._follows
    finally:
        await store.close()


# ---- a service that fails


class Gate:
    """Passes connections on to a server; closes them after so many bytes of answers, so many times."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._stack = contextlib.AsyncExitStack()
        self.cuts = 0
        self.after = 0
        self.address = ""

    async def __aenter__(self) -> Gate:
        self.address = f"http://127.0.0.1:{await self._stack.enter_async_context(serving(self._pass_on))}"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_connection("127.0.0.1", self._server.port)
        asking = asyncio.ensure_future(_copy(reader, out))
        passed = 0
        try:
            with contextlib.suppress(OSError):
                while data := await there.read(4096):
                    passed += len(data)
                    if self.cuts and passed > self.after:
                        self.cuts -= 1
                        break
                    writer.write(data)
                    await writer.drain()
        finally:
            asking.cancel()
            # What was written arrives before the end.
            writer.close()
            out.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def test_a_connection_lost_amid_a_blob_is_made_again(server: S3Server, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    async with Gate(server) as gate:
        store = S3Blobs(s3_settings(server, endpoint=gate.address), tmp_path, garbage_age=AGE)
        await store.start()
        try:
            gate.after, gate.cuts = 0, 2
            sha = await store.put_stream(chunks(data))
            assert gate.cuts == 0
            gate.after, gate.cuts = 500_000, 3
            assert await store.get(sha) == data and gate.cuts == 0
            gate.after, gate.cuts = 100_000, 50
            with pytest.raises(BlobStoreError, match="does not answer"):
                await store.get(sha)
        finally:
            await store.close()


async def test_an_upload_outlasts_a_killed_server(tmp_path: Path) -> None:
    with s3_server(tmp_path) as server:
        store = S3Blobs(s3_settings(server, bucket=server.bucket("blobs")), tmp_path, garbage_age=AGE)
        await store.start()
        try:
            server.kill()
            putting = asyncio.ensure_future(store.put(b"patient"))
            assert not await asyncio.to_thread(server.answers)
            await asyncio.to_thread(server.start)
            server.bucket("blobs")
            await asyncio.wait([putting])
            if putting.exception():
                # It may have tried while the bucket was not made again; what matters is the next time.
                await store.put(b"patient")
            assert await store.get(sha_of(b"patient")) == b"patient"
        finally:
            await store.close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("NoSuchBucket", "create it, or correct \\[s3\\] bucket"),
        ("InvalidAccessKeyId", "correct \\[s3\\] access_key_id"),
        ("SignatureDoesNotMatch", "correct \\[s3\\] secret_access_key"),
        ("AccessDenied", "allow them to get, put, list and delete"),
        ("403", "allow them to get, put, list and delete"),
        ("RequestTimeTooSkewed", "clock differs too much"),
        ("PermanentRedirect", "correct \\[s3\\] region"),
        ("SomethingElse", "see its own log \\(SomethingElse: told\\)"),
    ],
)
async def test_a_refusal_names_its_remedy(tmp_path: Path, code: str, words: str) -> None:
    async def refuse(request: web.Request) -> web.Response:
        body = f"<Error><Code>{code}</Code><Message>told</Message></Error>"
        return web.Response(status=403, text=body, content_type="application/xml")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    async with TestServer(app) as refusing:
        settings = S3Settings("b" * 5, str(refusing.make_url("")), "", "", KEY_ID, SECRET_KEY, True)
        with pytest.raises(BlobStoreError, match=words) as told:
            await S3Blobs(settings, tmp_path, garbage_age=AGE).start()
    assert "\n" not in str(told.value) and SECRET_KEY not in str(told.value)


async def test_a_service_that_is_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.engine_contract._nomad_agent import free_ports

    (port,) = free_ports(1)
    away = S3Settings("bucket", f"http://127.0.0.1:{port}", "", "", KEY_ID, SECRET_KEY, True)
    with pytest.raises(BlobStoreError, match=f"http://127.0.0.1:{port} does not answer"):
        await S3Blobs(away, tmp_path, garbage_age=AGE).start()


async def test_settings_that_cannot_be_used(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BlobStoreError, match="there is no bucket 'none-of-that-name'"):
        await S3Blobs(s3_settings(server, bucket="none-of-that-name"), tmp_path, garbage_age=AGE).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(BlobStoreError, match="there are no credentials for the bucket"):
        await S3Blobs(S3Settings("bucket", server.address), tmp_path, garbage_age=AGE).start()


def test_without_the_library_its_installation_is_named() -> None:
    program = """if True:
        import sys
        sys.modules["aiobotocore"] = None
        import modal_nomad.dispatcher.serve
        try:
            import modal_nomad.dispatcher.blobs.s3
        except Exception as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'modal-nomad[s3]'" in done.stdout and done.stdout.count("\n") == 1
