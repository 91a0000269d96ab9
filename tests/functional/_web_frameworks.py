"""A user's module with an app of each framework that people bring, as they would write it.

As in ``_web_served``, the packages of the tests' own environment stand in for those of an Image.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _web_served import packages, port

import modal_nomad as modal

app = modal.App("frameworks")

PORT = port()

PAGE = """<!doctype html>
<html>
  <head><title>Live</title><link rel="stylesheet" href="style.css"></head>
  <body>
    <h1>Live page</h1>
    <p>Events: <span id="events"></span></p>
    <p>Echo: <span id="echo"></span></p>
    <p>Posted: <span id="posted"></span></p>
    <script>
      const say = (id, text) => { document.getElementById(id).textContent += text; };
      const source = new EventSource("events");
      source.onmessage = event => {
        say("events", event.data + " ");
        if (event.data === "last") source.close();
      };
      const socket = new WebSocket(new URL("socket", location.href.replace("http", "ws")));
      socket.onopen = () => socket.send("hello by WebSocket");
      socket.onmessage = event => say("echo", event.data);
      fetch("upload", { method: "POST", body: new Uint8Array(3000000) })
        .then(answer => answer.json()).then(found => say("posted", found.bytes + " bytes"));
    </script>
  </body>
</html>
"""


def note(folder: str, error: BaseException | None = None) -> None:
    (Path(folder) / ("ended" if error else "begun")).write_text(type(error).__name__)


def work(folder: str) -> Any:
    """Work that ends when somebody ends it: as it is, or as what an answer is made of."""
    note(folder)
    try:
        while True:
            time.sleep(0.01)
    except BaseException as error:
        note(folder, error)
        raise


def working(folder: str) -> Any:
    yield b"first"
    yield work(folder)


async def work_async(folder: str) -> Any:
    note(folder)
    try:
        await asyncio.Event().wait()
    except BaseException as error:
        note(folder, error)
        raise


async def working_async(folder: str) -> Any:
    yield b"first"
    yield await work_async(folder)


@app.function(env=packages, max_containers=1)
@modal.concurrent(max_inputs=50)
@modal.asgi_app()
def fastapi() -> Any:
    from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
    from fastapi.responses import HTMLResponse, Response, StreamingResponse

    made = FastAPI()

    async def page() -> Any:
        return HTMLResponse(PAGE)

    async def style() -> Any:
        return Response("h1 { color: rgb(0, 128, 0); }", media_type="text/css")

    async def events() -> Any:
        async def parts() -> Any:
            for word in ("first", "second", "last"):
                yield f"data: {word}\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def upload(request: Any) -> dict[str, int]:
        count = 0
        async for part in request.stream():
            count += len(part)
        return {"bytes": count}

    async def socket(websocket: Any) -> None:
        await websocket.accept(subprotocol="echo" if "echo" in websocket.scope["subprotocols"] else None)
        try:
            while True:
                message = await websocket.receive()
                if message.get("text") == "close":
                    await websocket.close(code=4321, reason="as you wish")
                elif message.get("text") is not None:
                    await websocket.send_text(message["text"])
                elif message.get("bytes") is not None:
                    await websocket.send_bytes(message["bytes"])
                else:
                    return
        except WebSocketDisconnect:
            return

    # What the annotations name is imported here, where FastAPI cannot look it up.
    upload.__annotations__["request"] = Request
    socket.__annotations__["websocket"] = WebSocket
    made.get("/work/async")(work_async)
    made.get("/work/def")(work)
    made.get("/work/streamed")(lambda folder: StreamingResponse(working(folder)))
    made.get("/work/streamed-async")(lambda folder: StreamingResponse(working_async(folder)))
    made.get("/", response_class=HTMLResponse)(page)
    made.get("/style.css")(style)
    made.get("/events")(events)
    made.post("/upload")(upload)
    made.put("/upload")(upload)
    made.websocket("/socket")(socket)
    return made


@app.function(env=packages)
@modal.concurrent(max_inputs=50)
@modal.asgi_app()
def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    folder = Path(tempfile.mkdtemp())
    (folder / "notes.txt").write_text("0123456789" * 500)

    async def where(request: Any) -> Any:
        return JSONResponse(
            {"url": str(request.url), "link": str(request.url_for("static", path="/notes.txt"))}
        )

    async def moved(request: Any) -> Any:
        return RedirectResponse(request.url_for("where"))

    async def cookie(request: Any) -> Any:
        answer = PlainTextResponse(request.cookies.get("seen", "never"))
        answer.set_cookie("seen", "before", httponly=True)
        return answer

    async def at_work(request: Any) -> Any:
        await work_async(request.query_params["folder"])

    def at_work_def(request: Any) -> Any:
        work(request.query_params["folder"])

    return Starlette(
        routes=[
            Route("/work/async", at_work),
            Route("/work/def", at_work_def),
            Route("/where", where, name="where"),
            Route("/moved", moved),
            Route("/cookie", cookie),
            Mount("/static", StaticFiles(directory=folder), name="static"),
        ],
        middleware=[Middleware(GZipMiddleware)],
    )


@app.function(env=packages)
@modal.concurrent(max_inputs=10)
@modal.wsgi_app()
def flask() -> Any:
    import flask as package

    made = package.Flask("shop")
    made.secret_key = "of a test"

    @made.route("/basket", methods=["GET", "POST"])
    def basket() -> Any:
        if package.request.method == "POST":
            package.session["items"] = [*package.session.get("items", []), package.request.form["item"]]
            return package.redirect(package.url_for("basket"))
        return {"items": package.session.get("items", [])}

    @made.route("/file", methods=["POST"])
    def file() -> Any:
        sent = package.request.files["file"]
        return {"name": sent.filename, "bytes": len(sent.read())}

    made.add_url_rule("/work/def", "work", lambda: work(package.request.args["folder"]))
    made.add_url_rule(
        "/work/streamed", "working", lambda: package.Response(working(package.request.args["folder"]))
    )

    @made.route("/stream")
    def stream() -> Any:
        return package.Response((f"line {x}\n" for x in range(1000)), mimetype="text/plain")

    return made


@app.function(env=packages, max_containers=1)
@modal.concurrent(max_inputs=10)
@modal.wsgi_app()
def django() -> Any:
    """A site with sessions, static files, a form with its token, and the admin's pages."""
    import types

    import django as package
    from django.conf import settings

    urls: Any = types.ModuleType("urls")
    settings.configure(
        DEBUG=True,
        ALLOWED_HOSTS=["*"],
        SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
        SECRET_KEY="of a test",
        ROOT_URLCONF=urls,
        STATIC_URL="static/",
        USE_TZ=True,
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{tempfile.mkdtemp()}/site.db"}
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.staticfiles",
        ],
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
    )
    package.setup()
    from django.contrib import admin
    from django.contrib.auth import get_user_model
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    def visits(request: Any) -> HttpResponse:
        request.session["visits"] = request.session.get("visits", 0) + 1
        return HttpResponse(f"visit {request.session['visits']} by {request.user}")

    async def scheme(request: Any) -> HttpResponse:
        await asyncio.sleep(0)
        return HttpResponse(request.scheme)

    urls.urlpatterns = [
        path("admin/", admin.site.urls),
        path("visits", visits),
        path("scheme", scheme),
        path("stream", lambda request: StreamingHttpResponse(f"line {x}\n" for x in range(1000))),
        path("work/def", lambda request: work(request.GET["folder"])),
        path("work/streamed", lambda request: StreamingHttpResponse(working(request.GET["folder"]))),
    ]
    call_command("migrate", verbosity=0)
    get_user_model().objects.create_superuser("ann", "ann@example.com", "secret")
    return StaticFilesHandler(get_wsgi_application())


@app.function(env={"TEST_PORT": str(PORT)}, max_containers=1)
@modal.concurrent(max_inputs=10)
@modal.web_server(PORT, startup_timeout=60)
def files() -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "hello.txt").write_text("hello from a file\n")
    os.chdir(folder)
    subprocess.Popen([sys.executable, "-m", "http.server", str(PORT), "--bind", "127.0.0.1"])
