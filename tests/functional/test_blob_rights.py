"""Blobs are named by their hashes; who knows one has the content no more than its token allows."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _served import Raw, Served, job_of

from modal_nomad.dispatcher.store.base import TokenRecord, hash_secret
from modal_nomad.wire import blob_lists
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.spec import FunctionSpec
from modal_nomad.wire.volumes.entries import FILE, Entry, encode

LIMIT = 100.0
SENT = "never"
"""A word of every refusal of a name."""


def sha_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Caller:
    """Whoever has a token, over HTTP and over a connection."""

    def __init__(self, served: Served, token: str) -> None:
        self.served = served
        self.token = token
        self.opened: list[Raw] = []

    def http(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("dispatcher", timeout=LIMIT)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(LIMIT)
        connection.sock.connect(str(self.served.path))
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def put(self, data: bytes) -> str:
        assert self.http("PUT", f"/v1/blobs/{sha_of(data)}", data)[0] == 201
        return sha_of(data)

    def reads(self, sha: str) -> bool:
        """Tell whether it may read a blob, which every way of asking agrees on."""
        found = {self.http("GET", f"/v1/blobs/{sha}")[0], self.http("HEAD", f"/v1/blobs/{sha}")[0]}
        body = json.dumps([sha]).encode()
        lacking = json.loads(self.http("POST", "/v1/blobs/missing", body)[1])["missing"]
        (at_once,) = blob_lists.unpack(self.http("POST", "/v1/blobs/some", body)[1])
        assert found in ({200}, {404})
        assert (found == {200}) == (not lacking) == (at_once is not None)
        return found == {200}

    def connect(self) -> Raw:
        made = Raw(self.served.path, {"role": "client", "client": new_id("cl")}, self.token)
        made.take("welcome")
        self.opened.append(made)
        return made

    def ask(self, method: str, payloads: tuple[bytes, ...] = (), **args: Any) -> dict[str, Any]:
        raw = self.connect()
        raw.send({"t": "rq", "i": 1, "m": method, "a": args}, list(payloads))
        return raw.take("rs")[0]

    def publish(self, **spec: Any) -> dict[str, Any]:
        job_id = new_id("fu")
        made = FunctionSpec(app="app", name="f", module="m", qualname="f").to_dict()
        answer = self.ask(
            "app.publish",
            state="deployed",
            name=f"app-{job_id}",
            environment="dev",
            functions=[{"spec": {**made, **spec}, "job": job_of(job_id)}],
        )
        return {**answer, "job": job_id}

    def object(self, kind: str) -> str:
        answer = self.ask(
            "object.get_or_create", kind=kind, name=kind, environment="dev", create="if_missing"
        )
        return str(answer["v"]["object_id"])


def is_shut_out(peer: Raw) -> None:
    """Wait until the dispatcher has closed a connection."""
    with pytest.raises(ConnectionError):
        while peer.socket.recv(LIMIT):
            pass


class Callers:
    def __init__(self, served: Served) -> None:
        self.served = served
        self.anyone = self._with("any")
        self.dev = self._with("dev", "dev")
        self.both = self._with("both", "dev", "prod")
        self.workers: list[Raw] = []

    def _with(self, name: str, *environments: str) -> Caller:
        record = TokenRecord(f"ak-{name}", hash_secret(f"as-{name}"), environments, name, 1.0)
        self.served.do(self.served.store.add_token(record))
        return Caller(self.served, f"ak-{name}:as-{name}")

    def worker(self, job_id: str) -> Raw:
        self.workers.append(self.served.worker(job_id))
        return self.workers[-1]

    def restarted(self) -> None:
        """Have the dispatcher know no more than its store does."""

        async def forget() -> None:
            self.served.dispatcher.rights._known.clear()

        self.served.do(forget())


@pytest.fixture(scope="module")
def callers() -> Iterator[Callers]:
    with (
        tempfile.TemporaryDirectory(prefix="mn-", dir="/tmp") as home,
        Served(Path(home), auth="token").running() as served,
    ):
        made = Callers(served)
        yield made
        for peer in (*made.anyone.opened, *made.dev.opened, *made.both.opened, *made.workers):
            peer.socket.close()


def test_a_hash_opens_nothing_to_another_environments_token(callers: Callers) -> None:
    data = b"theirs alone"
    sha = callers.anyone.put(data)
    assert callers.anyone.reads(sha)
    assert not callers.dev.reads(sha)
    # Who has the bytes has them.
    callers.dev.put(data)
    assert callers.dev.reads(sha)
    callers.restarted()
    assert callers.dev.reads(sha)
    assert callers.both.reads(sha)

    several = [callers.both.put(b"of both"), sha]
    assert not callers.dev.reads(several[0])
    answer = callers.dev.http("POST", "/v1/blobs/some", json.dumps(several[::-1]).encode())[1]
    assert blob_lists.unpack(answer) == [data]
    stored = callers.dev.http("POST", "/v1/blobs/put", blob_lists.pack([b"of both"]))[1]
    assert json.loads(stored)["stored"] == several[:1] and callers.dev.reads(several[0])


def test_nobody_names_what_it_does_not_hold(callers: Callers) -> None:
    foreign = callers.anyone.put(b"foreign")
    name = foreign.encode()
    own = callers.dev.publish()
    assert "e" not in own, own
    function = own["v"]["functions"]["f"]
    by_dict = {"object_id": callers.dev.object("dict"), "flags": [1]}
    refused = callers.dev.ask("dict.put", (b"key", name), **by_dict)
    assert SENT in refused["e"][1]
    assert callers.dev.ask("dict.get", (b"key",), object_id=by_dict["object_id"])["v"] == {"found": False}

    client = callers.dev.connect()
    header = {"t": "in", "f": function, "c": new_id("fc"), "x": [0], "g": [1]}
    client.send({**header, "d": 1, "i": 7, "n": 1}, [name])
    assert SENT in client.take("rs")[0]["e"][1]
    client.send(header, [name])
    is_shut_out(client)
    assert callers.served.dispatcher.calls.function_of(header["c"]) is None

    volume = callers.dev.object("volume")
    line = encode(Entry("a", FILE, 7, 0, 0o644, chunks=(foreign,)))
    status, said = callers.dev.http("POST", f"/v1/volumes/{volume}/commit?id=x&rule=last", line)
    assert status == 409 and SENT in said.decode()

    manifest = callers.dev.put(json.dumps([["/x", foreign, 0o644]]).encode())
    image = {"layers": [{"kind": "copy", "args": ["/x"], "options": {"manifest": manifest}}]}
    job = {**job_of(new_id("fu")), "Meta": {"modal_image": json.dumps(image)}}
    for entry in ({"code_bundle": foreign}, {"function_blob": foreign}, {"image": image}):
        answer = callers.dev.publish(**entry)
        assert SENT in answer["e"][1], (entry, answer)
    spec = FunctionSpec(app="app", name="f", module="m", qualname="f").to_dict()
    for method, args in (
        ("app.publish", {"functions": [{"spec": spec, "job": job}], "state": "deployed", "name": "x"}),
        ("function.bind", {"function_id": function, "spec": {**spec, "function_blob": foreign}, "job": job}),
        ("image.ensure", {"spec": image, "follow": "x"}),
        ("image.publish", {"spec": image, "name": "i", "tag": "latest"}),
    ):
        answer = callers.dev.ask(method, environment="dev", **args)
        assert SENT in answer["e"][1], (method, answer)

    # Nor does a container of its own.
    client = callers.dev.connect()
    client.send({"t": "in", "f": function, "c": new_id("fc"), "x": [0]}, [b"in"])
    worker = callers.worker(own["job"])
    lease = worker.take("run")[0]["x"][0]
    worker.send({"t": "done", "x": [lease], "d": 0.1, "f": [1]}, [name])
    is_shut_out(worker)
    assert not callers.dev.reads(foreign)


def test_what_is_named_to_a_caller_is_its_to_read(callers: Callers) -> None:
    value, chunk = callers.anyone.put(b"a value"), callers.anyone.put(b"a chunk")
    by_dict = callers.dev.object("dict")
    assert "e" not in callers.anyone.ask("dict.put", (b"k", value.encode()), object_id=by_dict, flags=[1])
    assert not callers.dev.reads(value)
    assert callers.dev.ask("dict.get", (b"k",), object_id=by_dict)["v"]["flags"] == 1
    assert callers.dev.reads(value)
    popped = callers.anyone.put(b"popped")
    callers.anyone.ask("dict.put", (b"k", popped.encode()), object_id=by_dict, flags=[1])
    assert callers.dev.ask("dict.pop", (b"k",), object_id=by_dict)["v"]["flags"] == 1
    assert callers.dev.reads(popped)

    volume = callers.dev.object("volume")
    line = encode(Entry("a", FILE, 7, 0, 0o644, chunks=(chunk,)))
    assert callers.anyone.http("POST", f"/v1/volumes/{volume}/commit?id=y&rule=last", line)[0] == 200
    callers.dev.http("POST", f"/v1/volumes/{volume}/list", b'{"path": ""}')
    assert not callers.dev.reads(chunk)
    assert callers.dev.http("POST", f"/v1/volumes/{volume}/changes", b'{"since": 0}')[0] == 200
    assert callers.dev.reads(chunk)
    callers.restarted()
    assert callers.dev.reads(chunk)

    inner = callers.anyone.put(b"a file of an image")
    manifest = callers.anyone.put(json.dumps([["/x", inner, 0o644]]).encode())
    image = {"layers": [{"kind": "copy", "args": ["/x"], "options": {"manifest": manifest}}]}
    callers.anyone.ask("image.publish", environment="dev", spec=image, name="i", tag="latest")
    assert callers.dev.ask("image.find", environment="dev", name="i", tag="latest")["v"]["spec"]
    assert callers.dev.reads(manifest) and callers.dev.reads(inner)


def test_large_arguments_and_results_cross_scopes(callers: Callers) -> None:
    """A Function deployed by a token of one environment, called by one of all; and the other way."""
    given = callers.anyone.put(b"a large argument")
    scoped = callers.dev.publish()
    client = callers.anyone.connect()
    call = {"t": "in", "c": new_id("fc"), "x": [0]}
    client.send({**call, "f": scoped["v"]["functions"]["f"], "g": [1]}, [given.encode()])
    worker = callers.worker(scoped["job"])
    header, payloads = worker.take("run")
    assert payloads == [given.encode()]
    (container,) = [
        x.container_id
        for x in callers.served.dispatcher.containers.infos.values()
        if x.function.job_id == scoped["job"]
    ]
    inside = Caller(callers.served, callers.served.tokens.mint(container))
    assert inside.reads(given)
    result = inside.put(b"a large result")
    worker.send({"t": "done", "x": header["x"], "d": 0.1, "f": [1]}, [result.encode()])
    assert client.take("out")[1] == [result.encode()]

    free = callers.anyone.publish()
    client = callers.dev.connect()
    client.send({**call, "c": new_id("fc"), "f": free["v"]["functions"]["f"]}, [b"in"])
    worker = callers.worker(free["job"])
    lease = worker.take("run")[0]["x"]
    result = callers.anyone.put(b"another large result")
    assert not callers.dev.reads(result)
    worker.send({"t": "done", "x": lease, "d": 0.1, "f": [1]}, [result.encode()])
    assert client.take("out")[1] == [result.encode()]
    assert callers.dev.reads(result)


def test_without_a_token_nomad_fetches_bundles_alone(callers: Callers) -> None:
    nobody, other = Caller(callers.served, ""), callers.anyone.put(b"no bundle")
    bundle = callers.dev.put(b"a bundle")
    assert nobody.http("GET", f"/artifacts/{bundle}.zip")[0] == 404
    assert "e" not in callers.dev.publish(code_bundle=bundle)
    callers.restarted()
    assert nobody.http("GET", f"/artifacts/{bundle}.zip") == (200, b"a bundle")
    assert nobody.http("GET", f"/artifacts/{other}.zip")[0] == 404


def test_what_is_collected_is_forgotten(callers: Callers) -> None:
    sha = callers.dev.put(b"old")
    rights, store = callers.served.dispatcher.rights, callers.served.store

    async def remove(older_than: float) -> Any:
        await callers.served.dispatcher.blobs.delete([sha])
        await rights.forget([sha], older_than)
        return await store.blob_holders([sha])

    # It was sent again while the old one was removed.
    assert callers.served.do(remove(1000.0)) == {sha: ["dev"]}
    assert callers.served.do(remove(-1000.0)) == {}
    assert not callers.dev.reads(sha)
