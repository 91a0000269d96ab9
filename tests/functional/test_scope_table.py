"""Every request and every path of the dispatcher, asked with a token of another environment."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _served import Raw, Served, job_of

from modal_nomad.dispatcher import _requests, scope
from modal_nomad.dispatcher.http_nfs import _VERBS as NFS_VERBS
from modal_nomad.dispatcher.http_volumes import _VERBS as VOLUME_VERBS
from modal_nomad.dispatcher.store.base import TokenRecord, hash_secret
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.spec import FunctionSpec, ImageSpec

REFUSED = "this token is for the environments dev"
LIMIT = 100.0


class Other:
    """A dispatcher with something of each kind in ``prod``, in ``main`` and in ``dev``."""

    def __init__(self, served: Served, stack: contextlib.ExitStack) -> None:
        self.served = served
        self.anyone = Raw(served.path, {"role": "client", "client": new_id("cl")}, self._token("any"))
        stack.callback(self.anyone.socket.close)
        self.anyone.take("welcome")
        self.ids = {environment: self._fill(environment) for environment in ("prod", "main", "dev")}
        self.scoped_token = self._token("scoped", "dev")
        self.scoped = self.scoped_client()
        stack.callback(self.scoped.socket.close)

    def scoped_client(self, **hello: Any) -> Raw:
        made = Raw(
            self.served.path,
            {"role": "client", "client": new_id("cl"), **hello},
            self.scoped_token,
        )
        made.take("welcome")
        return made

    def _token(self, name: str, *environments: str) -> str:
        record = TokenRecord(f"ak-{name}", hash_secret(f"as-{name}"), environments, name, 1.0)
        self.served.do(self.served.store.add_token(record))
        return f"ak-{name}:as-{name}"

    def ask(self, method: str, **args: Any) -> Any:
        answer = self.anyone.request(method, args)
        assert "e" not in answer, answer
        return answer["v"]

    def _fill(self, environment: str) -> dict[str, str]:
        found = {"environment": environment}
        for kind in ("dict", "queue", "volume", "nfs"):
            made = self.ask(
                "object.get_or_create", kind=kind, name=kind, environment=environment, create="always"
            )
            found[kind] = made["object_id"]
        self.ask("secret.create", name="theirs", environment=environment, env={"A": "1"})
        tokens = self.ask("proxy_token.create", environment=environment)
        found["token_id"] = tokens["token_id"]
        job_id = new_id("fu")
        published = self.ask(
            "app.publish",
            state="deployed",
            name="theirs",
            environment=environment,
            functions=[entry(job_id)],
        )
        found["app"], found["function"] = published["app_id"], published["functions"]["f"]
        found["job"] = job_id
        # One that waits for its result, one that only its client remembers.
        found["call"], found["waiting"] = new_id("fc"), new_id("fc")
        header = {"t": "in", "f": found["function"], "x": [0]}
        self.anyone.send({**header, "c": found["call"], "d": 1, "i": 7000}, [b"in"])
        self.anyone.take("rs")
        self.anyone.send({**header, "c": found["waiting"]}, [b"in"])
        self.ask("server.status")
        return found


def entry(job_id: str, **spec: Any) -> dict[str, Any]:
    made = FunctionSpec(app="theirs", name="f", module="m", qualname="f").to_dict()
    return {"spec": {**made, **spec}, "job": job_of(job_id)}


@pytest.fixture(scope="module")
def other() -> Iterator[Other]:
    # A Unix socket's path must be short, which pytest's own folders are not.
    with (
        tempfile.TemporaryDirectory(prefix="mn-", dir="/tmp") as home,
        Served(Path(home), auth="token").running() as served,
        contextlib.ExitStack() as stack,
    ):
        yield Other(served, stack)


def requests(of: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Every request about what is in an environment, as ``method, arguments``; some in several forms."""
    environment = of["environment"]
    where = {"environment": environment}
    named = {"kind": "dict", "name": "dict", **where}
    by_dict, by_queue = {"object_id": of["dict"]}, {"object_id": of["queue"]}
    call = {"call_id": of["call"]}
    function = {"function_id": of["function"]}
    queue = {**by_queue, "key": "k", "partition": "", "wait": 0}
    image = {"spec": dataclasses.asdict(ImageSpec()), **where}
    secret = {"name": "theirs", **where}
    publication = {"state": "deployed", "name": "mine", "functions": [entry("fu-x")]}
    refs = [{"name": "theirs", "environment": environment}]
    return [
        ("app.history", {"app": of["app"]}),
        ("app.history", {"app": "theirs", **where}),
        ("app.list", where),
        ("app.lookup", {"name": "theirs", **where}),
        ("app.lookup", {"name": "made", "create_if_missing": True, **where}),
        ("app.plan", {**publication, **where}),
        ("app.publish", {**publication, **where}),
        ("app.publish", {**publication, "state": "ephemeral", "app_id": of["app"], "environment": "dev"}),
        (
            "app.publish",
            {**publication, "environment": "dev", "functions": [entry("fu-x", secrets=refs)]},
        ),
        ("app.resolve", {"app": of["app"]}),
        ("app.resolve", {"app": of["app"], "environment": "dev"}),
        ("app.resolve", {"app": "theirs", **where}),
        ("app.stop", {"app_id": of["app"]}),
        ("app.subscribe", {"app_id": of["app"], "backlog": True}),
        *((method, call) for method in ("call.cancel", "call.graph", "call.info")),
        *((method, {"call_id": of["waiting"]}) for method in ("call.cancel", "call.graph")),
        ("call.get", {**call, "timeout": 0}),
        ("call.items", {**call, "index": 0, "start": 0, "limit": 1, "timeout": 0}),
        ("call.outputs", {**call, "start": 0, "limit": 1, "timeout": 0}),
        *(
            (f"dict.{verb}", {**by_dict, "flags": [], "after": 0, "what": "keys"})
            for verb in ("clear", "contains", "entries", "get", "len", "pop", "put")
        ),
        ("environment.create", {"name": "more"}),
        ("environment.delete", {"name": environment}),
        ("environment.find", {"name": environment}),
        ("environment.update", {"name": environment, "new_name": "more"}),
        ("function.bind", function),
        ("function.describe", function),
        ("function.lookup", {"app": of["app"], "name": "f"}),
        ("function.lookup", {"app": "theirs", "name": "f", **where}),
        ("function.stats", function),
        ("function.update_autoscaler", {**function, "settings": {"min_containers": 1}}),
        ("function.web_urls", function),
        ("image.ensure", {**image, "follow": "x"}),
        ("image.find", {"name": "theirs", "tag": "latest", **where}),
        ("image.known", {**image, "contents": [], "lists": []}),
        ("image.publish", {**image, "name": "theirs", "tag": "latest"}),
        ("object.delete", by_dict),
        ("object.delete", named),
        ("object.get_or_create", {**named, "create": "if_missing"}),
        ("object.get_or_create", {**named, "create": "ephemeral"}),
        ("object.info", by_dict),
        ("object.list", {"kind": "dict", **where}),
        ("object.rename", {**by_dict, "new_name": "mine"}),
        ("object.rename", {**named, "new_name": "mine"}),
        ("proxy_token.create", where),
        ("proxy_token.delete", {"token_id": of["token_id"], **where}),
        ("proxy_token.list", where),
        *(
            (f"queue.{verb}", {**queue, "wanted": 1, "after": 0, "items": []})
            for verb in ("clear", "get", "len", "look", "put", "put_back", "release", "take")
        ),
        ("secret.create", {**secret, "env": {"A": "2"}, "if_exists": "replace"}),
        ("secret.delete", secret),
        ("secret.get", secret),
        ("secret.keep", {"app": "mine", "envs": [{"A": "1"}], **where}),
        ("secret.list", where),
        ("secret.update", {**secret, "env": {"A": "2"}}),
    ]


def test_the_table_has_every_request(other: Other) -> None:
    there = {method for method, _ in requests(other.ids["prod"])}
    assert there | scope.OPEN | {"environment.list"} == set(_requests._METHODS)


@pytest.mark.parametrize("environment", ["prod", "main"])
def test_every_request_is_refused(other: Other, environment: str) -> None:
    theirs, ours = other.ids[environment], other.ids["dev"]
    reached = []
    for method, args in requests(theirs):
        answer = other.scoped.request(method, args)
        if not (answer.get("e") or ["", ""])[1].startswith(REFUSED):
            reached.append((method, args, answer))
        if not method.startswith("environment."):
            # What is ours beside it opens nothing; neither does a silence about the environment of what
            # is in the default one.
            beside = {"app_id": ours["app"], "function_id": ours["function"], "call_id": ours["call"]}
            if not method.startswith("object."):
                beside["object_id"] = ours["dict"]
            mixed = {**{k: v for k, v in beside.items() if k not in args}, **args}
            if environment == "main" and mixed.get("environment") == "main":
                del mixed["environment"]
            answer = other.scoped.request(method, mixed)
            if method not in ("app.publish",) and "e" not in answer:
                reached.append((method, mixed, answer))
    assert not reached


def test_what_is_theirs_is_as_it_was(other: Other) -> None:
    for environment in ("prod", "main"):
        of = other.ids[environment]
        assert other.ask("app.resolve", app=of["app"])["state"] == "deployed"
        assert other.ask("object.info", object_id=of["dict"])["name"] == "dict"
        assert len(other.ask("object.list", kind="dict", environment=environment)["objects"]) == 1
        assert other.ask("call.info", call_id=of["call"])["num_inputs"] == 1
        assert [x["name"] for x in other.ask("secret.list", environment=environment)["secrets"]] == ["theirs"]
        assert len(other.ask("proxy_token.list", environment=environment)["tokens"]) == 1
        assert len(other.ask("app.list", environment=environment)["apps"]) == 1
    shown = other.scoped.request("server.status", {})["v"]["containers"]
    assert {x["app"] for x in shown} <= {other.ids["dev"]["app"]}
    listed = other.scoped.request("environment.list", {})["v"]["environments"]
    assert [x["name"] for x in listed] == ["dev"]


def test_what_is_its_own_is_open(other: Other) -> None:
    of = other.ids["dev"]
    for method, args in requests(of):
        if method in ("app.subscribe", "function.stats", "call.info", "dict.len", "secret.get", "image.find"):
            assert "e" not in other.scoped.request(method, args), method
    assert "e" not in other.scoped.request("object.list", {"kind": "dict", "environment": "dev"})


@pytest.mark.parametrize("environment", ["prod", "main"])
@pytest.mark.parametrize(
    ("kind", "path", "verb"),
    [("volume", "volumes", verb) for verb in sorted(VOLUME_VERBS)]
    + [("nfs", "nfs", verb) for verb in sorted(NFS_VERBS)],
)
def test_every_path_is_refused(other: Other, environment: str, kind: str, path: str, verb: str) -> None:
    object_id = other.ids[environment][kind]
    connection = http.client.HTTPConnection("dispatcher", timeout=LIMIT)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(LIMIT)
    connection.sock.connect(str(other.served.path))
    with contextlib.closing(connection):
        body = json.dumps({"path": "/", "pin": "p"}) + "\n"
        headers = {"Authorization": f"Bearer {other.scoped_token}"}
        connection.request("POST", f"/v1/{path}/{object_id}/{verb}?id=x", body, headers)
        answer = connection.getresponse()
        said = answer.read().decode()
    assert REFUSED in said and answer.status == 403, (answer.status, said)


def test_frames_about_their_calls_are_refused(other: Other) -> None:
    theirs, ours = other.ids["prod"], other.ids["dev"]
    for header in (
        {"f": theirs["function"], "c": new_id("fc")},
        # Under the id of a call in progress: its outputs would come here.
        {"f": ours["function"], "c": theirs["waiting"]},
        {"f": ours["function"], "c": theirs["waiting"], "k": [0]},
    ):
        client = other.scoped_client()
        client.send({"t": "in", "x": [0], **header}, [b"in"])
        client.drain()
        assert client.closed is not None and REFUSED in client.closed[1], client.closed
    client = other.scoped_client()
    for number, call in enumerate((theirs["call"], theirs["waiting"])):
        header = {"t": "in", "f": ours["function"], "c": call, "x": [0], "d": 1, "i": number}
        client.send(header, [b"in"])
        answer = client.take("rs")[0]
        assert answer["i"] == number and answer["e"][1].startswith(REFUSED)
    # To end their call, or to hold their App until one leaves, is nothing that is answered.
    client.send({"t": "end", "c": [theirs["waiting"]]})
    client.socket.close()
    holder = other.scoped_client(apps=[theirs["app"]])
    holder.request("server.status", {})
    holder.socket.close()
    assert other.ask("call.graph", call_id=theirs["waiting"])["calls"]
    assert other.ask("app.resolve", app=theirs["app"])["state"] == "deployed"


def test_a_client_of_another_scope_is_another_client(other: Other) -> None:
    client_id = new_id("cl")
    first = Raw(other.served.path, {"role": "client", "client": client_id}, "ak-any:as-any")
    first.take("welcome")
    call, of = new_id("fc"), other.ids["prod"]
    first.send({"t": "in", "f": of["function"], "c": call, "x": [0]}, [b"mine"])
    first.request("server.status", {})
    second = other.scoped_client(client=client_id)
    worker = other.served.worker(of["job"])
    lease = None
    while lease is None:
        header, payloads = worker.take("run")
        if b"mine" in payloads:
            lease = header["x"][payloads.index(b"mine")]
        else:
            worker.send({"t": "done", "x": header["x"], "d": 0.1}, [b"other"] * len(header["x"]))
    worker.send({"t": "done", "x": [lease], "d": 0.1}, [b"out"])
    assert first.take("out")[1] == [b"out"]
    assert "v" in second.request("server.status", {})
    for peer in (first, second, worker):
        peer.socket.close()


@pytest.mark.parametrize("varied", [False, True])
def test_results_of_a_stopped_app_stay_theirs(other: Other, varied: bool) -> None:
    job_id = new_id("fu")
    published = other.ask(
        "app.publish", state="deployed", name="ends", environment="prod", functions=[entry(job_id)]
    )
    call, function_id = new_id("fc"), published["functions"]["f"]
    if varied:
        # Nothing of a variant is left when its App has stopped.
        own = entry(f"{job_id}--v", timeout=99.0)
        function_id = other.ask("function.bind", function_id=function_id, **own)["function_id"]
        assert function_id != published["functions"]["f"]
    header = {"t": "in", "c": call, "f": function_id, "x": [0], "d": 1, "i": 8000 + varied}
    other.anyone.send(header, [b"in"])
    other.anyone.take("rs")
    other.ask("app.stop", app_id=published["app_id"])
    assert other.ask("call.info", call_id=call)["num_inputs"] == 1
    answer = other.scoped.request("call.get", {"call_id": call, "timeout": 0})
    assert answer["e"][1].startswith(REFUSED)
