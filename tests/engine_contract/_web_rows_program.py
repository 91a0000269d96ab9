"""A program that uses every parameter of every web decorator, and asks: run from a copy, on every engine.

As in ``_web_program``, the packages of the environment that runs this stand in for those of an Image.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import modal_nomad as modal

LIMIT = 200
PACKAGES = os.environ.get("TEST_PACKAGES", "")
if PACKAGES:
    sys.path.append(PACKAGES)
PORTS = json.loads(os.environ.get("TEST_PORTS", "[1, 2]"))
told = {
    "TEST_PACKAGES": next((x for x in sys.path if x.endswith("site-packages")), ""),
    "TEST_PORTS": json.dumps(PORTS),
}
app = modal.App("contract-rows")
office = modal.Proxy.from_name("office")


@app.function()
def plain(x: int) -> int:
    return x


# The deprecated name, with all that it takes; its warning is the caller's alone.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")

    @app.function(env=told, proxy=office)
    @modal.web_endpoint(
        method="PUT",
        label="contract-rows-old",
        docs=False,
        custom_domains=["old.contract.test"],
        requires_proxy_auth=True,
        wait_for_response=True,
    )
    def old(name: str) -> dict[str, str]:
        return {"name": name}


@app.function(env=told)
@modal.fastapi_endpoint(label="contract-rows-simple")
def simple(request: Any) -> dict[str, str]:
    return {"message": f"hello {request}"}


@app.function(env=told)
@modal.fastapi_endpoint(
    method="POST",
    label="contract-rows-new",
    custom_domains=["new.contract.test"],
    docs=True,
    requires_proxy_auth=True,
)
async def new(name: str) -> dict[str, str]:
    return {"name": name, "input": str(modal.current_input_id() is not None)}


@app.function(scaledown_window=600)
@modal.concurrent(max_inputs=5)
@modal.asgi_app(
    label="contract-rows-asgi",
    custom_domains=(x for x in ("asgi.contract.test", "asgi2.contract.test")),
    requires_proxy_auth=True,
    wait_for_response=True,
)
def create_asgi() -> Callable[..., Any]:
    async def served(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["made"] = "in startup"
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        seen = json.dumps([scope["state"].get("made"), "own" in scope["state"]])
        scope["state"]["own"] = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": seen.encode()})

    return served


@app.function()
@modal.asgi_app()
def unstarted() -> Callable[..., Any]:
    async def served(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    return served


@app.function(env=told)
@modal.wsgi_app(
    label="contract-rows-wsgi",
    custom_domains=["wsgi.contract.test"],
    requires_proxy_auth=True,
    wait_for_response=True,
)
def create_wsgi() -> Callable[..., Any]:
    from flask import Flask

    made = Flask("rows")
    made.add_url_rule("/", view_func=lambda: "flask")
    return made


@app.function(env=told, max_containers=1)
@modal.concurrent(max_inputs=5)
@modal.web_server(
    PORTS[0],
    startup_timeout=60,
    label="contract-rows-server",
    custom_domains=["server.contract.test"],
    requires_proxy_auth=True,
)
def serve_sockets() -> None:
    program = (
        f"import sys; sys.path.append({told['TEST_PACKAGES']!r})\n"
        "from websockets.sync.server import serve\n"
        "def page(connection, request):\n"
        "    return connection.respond(200, 'page') if request.path.endswith('page') else None\n"
        "def shout(socket):\n"
        "    for text in socket: socket.send(text.upper())\n"
        f"serve(shout, '0.0.0.0', {PORTS[0]}, process_request=page).serve_forever()\n"
    )
    subprocess.Popen([sys.executable, "-c", program])


@app.function(env=told)
@modal.web_server(PORTS[1], startup_timeout=0.5)
def never_listens() -> None:
    pass


@app.cls(env=told, proxy=office, scaledown_window=600)
class Model:
    @modal.enter()
    def load(self) -> None:
        self.greeting = "hi"

    @modal.fastapi_endpoint(label="contract-rows-greet")
    def greet(self, name: str) -> str:
        return f"{self.greeting} {name}"

    @modal.wsgi_app()
    def page(self) -> Callable[..., Any]:
        def served(environ: Any, start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [self.greeting.encode()]

        return served


def refused(word: str, work: Callable[[], Any]) -> None:
    try:
        work()
    except modal.exception.Error as error:
        assert word in str(error), error
    else:
        raise AssertionError(f"nobody refused: {word}")


def main() -> None:
    import httpx
    from websockets.sync.client import connect

    assert office.hydrate() is office and office.object_id.startswith("pr-")
    refused("no proxy 'none'", modal.Proxy.from_name("none").hydrate)
    assert app.registered_web_endpoints == [
        "old", "simple", "new", "create_asgi", "unstarted", "create_wsgi", "serve_sockets", "never_listens",
        "Model.greet", "Model.page",
    ]  # fmt: skip
    app.deploy()
    made = subprocess.run(
        [sys.executable, "-m", "modal_nomad", "proxy-token", "create", "--json"], stdout=subprocess.PIPE
    )
    token = json.loads(made.stdout)
    key = {"Modal-Key": token["token_id"], "Modal-Secret": token["token_secret"]}
    client = httpx.Client(timeout=LIMIT, follow_redirects=True)

    def found(function: Any) -> str:
        url = function.get_web_url()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert url and function.web_url == url
        return str(url)

    # A name from another program leads to the same address, and what is no endpoint has none.
    assert plain.get_web_url() is None
    named = modal.Function.from_name("contract-rows", "create_asgi")
    assert found(named) == found(create_asgi) and "contract-rows-asgi" in found(named)

    def asked(function: Any, domain: str, method: str = "GET", **params: str) -> httpx.Response:
        """Ask without the token, which is refused, and then at the endpoint's own address and its domain."""
        url = found(function)
        assert client.request(method, url, params=params).status_code == 401
        wrong = {**key, "Modal-Secret": "another"}
        assert client.request(method, url, params=params, headers=wrong).status_code == 401
        answer = client.request(method, url, params=params, headers=key)
        own = httpx.URL(url).copy_with(path="/")
        there = client.request(method, own, params=params, headers={**key, "Host": domain})
        assert there.status_code == answer.status_code == 200 and there.text == answer.text, answer.text
        return answer

    # All at once: each starts a container.
    firsts = [
        old,
        simple,
        new,
        create_asgi,
        unstarted,
        create_wsgi,
        serve_sockets,
        never_listens,
        Model().greet,
    ]
    threads = [
        threading.Thread(target=client.post, args=(found(x),), kwargs={"headers": key}) for x in firsts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert asked(old, "old.contract.test", "PUT", name="a").json() == {"name": "a"}
    assert client.get(found(old), headers=key).status_code == 405
    for page in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(found(old) + page, headers=key).status_code == 404
        assert client.get(found(new) + page, headers=key).status_code == 200
    assert asked(new, "new.contract.test", "POST", name="b").json() == {"name": "b", "input": "True"}
    from_page = {"Origin": "https://elsewhere.test"}
    answer = client.get(found(simple), params={"request": "there"}, headers=from_page)
    assert answer.json() == {"message": "hello there"}
    assert answer.headers["access-control-allow-origin"] in ("*", from_page["Origin"])
    preflight = {**from_page, "Access-Control-Request-Method": "GET"}
    assert client.options(found(simple), headers=preflight).status_code == 200
    assert client.get(found(simple)).status_code == 422

    assert asked(create_asgi, "asgi.contract.test").json() == ["in startup", False]
    assert asked(create_asgi, "asgi2.contract.test").json() == ["in startup", False]
    assert asked(create_wsgi, "wsgi.contract.test").text == "flask"
    socket_url = found(serve_sockets).replace("http://", "ws://") + "/"
    assert client.get(found(serve_sockets) + "/page").status_code == 401
    assert client.get(found(serve_sockets) + "/page", headers=key).text.strip() == "page"
    host = {**key, "Host": "server.contract.test"}
    assert (
        client.get(httpx.URL(found(serve_sockets)).copy_with(path="/page"), headers=host).status_code == 200
    )
    with connect(socket_url, additional_headers=key, open_timeout=LIMIT) as socket:
        socket.send("shout")
        assert socket.recv(timeout=LIMIT) == "SHOUT"

    greet, page = found(Model().greet), found(Model().page)
    assert client.get(greet, params={"name": "you"}).json() == "hi you" and client.get(page).text == "hi"
    for function in (unstarted, never_listens):
        assert client.get(found(function)).status_code == 500

    for call in (create_asgi.remote, create_asgi.spawn, lambda: list(create_asgi.remote_gen())):
        refused("webhook", call)
    assert simple.local("me") == {"message": "hello me"}
    print(json.dumps(key))


if __name__ == "__main__":
    main()
