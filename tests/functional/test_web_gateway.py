"""The gateway where things go wrong: late answers, lost containers, new versions, too many at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import Live, alive, until

import modal_nomad as modal
from tests._web_urls import at

LIMIT = 90.0


def gate_app(name: str, word: str = "open", max_inputs: int = 20, **options: Any) -> modal.App:
    """An App whose requests to ``/wait`` are answered when a file appears."""
    app = modal.App(name)

    @app.function(serialized=True, name="web", **options)
    @modal.concurrent(max_inputs=max_inputs)
    @modal.asgi_app()
    def web() -> Any:
        import asyncio
        import os
        import time
        from pathlib import Path

        def appeared(file: Path) -> None:
            while not file.exists():
                time.sleep(0.01)

        def note(file: Path) -> None:
            file.touch()

        def die_once(file: Path) -> None:
            if not file.exists():
                file.touch()
                os._exit(9)

        async def served(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                return
            name, _, begun = scope["query_string"].decode().partition("&")
            file = Path(name)
            if begun.startswith("/"):
                note(Path(begun))
            if scope["path"].endswith("/wait"):
                await asyncio.to_thread(appeared, file)
            if scope["path"].endswith("/once"):
                die_once(file)
            body = f"{word} {os.getpid()}".encode()
            fields = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": fields})
            await send({"type": "http.response.body", "body": body})

        return served

    return app


def address(app: modal.App) -> str:
    return at(app["web"].get_web_url())


@pytest.fixture
def stopped(live: Live) -> Iterator[list[modal.App]]:
    apps: list[modal.App] = []
    yield apps
    for app in apps:
        live.request("app.stop", app_id=app.app_id)


def test_a_request_that_was_not_begun_is_tried_elsewhere(live: Live, stopped: list[modal.App]) -> None:
    app = gate_app("elsewhere").deploy()
    stopped.append(app)
    base, file = address(app), live.folder / "died"
    # The container dies of the first one, before it said anything: the next container answers it.
    answer = httpx.get(f"{base}/once?{file}", timeout=LIMIT)
    assert answer.status_code == 200 and file.exists()
    other = live.folder / "died-too"
    # What may have been done already is not done again.
    assert httpx.post(f"{base}/once?{other}", timeout=LIMIT).status_code == 502
    assert httpx.post(f"{base}/once?{other}", timeout=LIMIT).status_code == 200


def test_a_new_version_fails_no_request(live: Live, stopped: list[modal.App]) -> None:
    app = gate_app("rolling", "old").deploy()
    stopped.append(app)
    base = address(app)
    assert httpx.get(f"{base}/", timeout=LIMIT).text.startswith("old ")
    seen: list[str] = []
    failed: list[Any] = []
    new = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=LIMIT) as client:
            while not new.is_set():
                try:
                    answer = client.post(f"{base}/")
                    answer.raise_for_status()
                    seen.append(answer.text.split()[0])
                    if seen[-1] == "new":
                        new.set()
                except httpx.HTTPError as error:
                    failed.append(error)
                    return

    with httpx.Client(timeout=LIMIT) as client:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        file = live.folder / "go-on"
        held: list[httpx.Response] = []
        slow = threading.Thread(target=lambda: held.append(client.post(f"{base}/wait?{file}")))
        for thread in (*threads, slow):
            thread.start()
        gate_app("rolling", "new").deploy()
        for thread in threads:
            thread.join(LIMIT)
        # What the old container had begun, it ends.
        file.touch()
        slow.join(LIMIT)
    assert not failed and "old" in seen and "new" in seen
    assert [x.text.split()[0] for x in held] in (["old"], ["new"])


def test_a_container_that_is_told_to_end_answers_first(live: Live, stopped: list[modal.App]) -> None:
    app = gate_app("ending").deploy()
    stopped.append(app)
    base, file = address(app), live.folder / "go-on"
    pid = int(httpx.get(f"{base}/", timeout=LIMIT).text.split()[1])
    held: list[str] = []
    begun = live.folder / "begun"
    slow = threading.Thread(
        target=lambda: held.append(httpx.post(f"{base}/wait?{file}&{begun}", timeout=LIMIT).text)
    )
    slow.start()
    until(begun.exists, LIMIT)
    os.kill(pid, signal.SIGTERM)
    # Out of rotation: others are answered by another container while this one ends what it has.
    until(lambda: httpx.get(f"{base}/", timeout=LIMIT).text != f"open {pid}", LIMIT)
    file.touch()
    slow.join(LIMIT)
    assert held == [f"open {pid}"]
    until(lambda: not alive(pid), LIMIT)


def test_a_late_answer_is_had_at_another_address(serve: Any, own: Live) -> None:
    serve(**{"web.listen": "http://127.0.0.1:0", "web.answer_seconds": 1})
    app = gate_app("late", max_containers=1, timeout=600).deploy()
    base, file = address(app), own.folder / "ready"
    with httpx.Client(timeout=LIMIT, base_url=base.rpartition("/")[0]) as client:
        first = client.post(f"/late-web/wait?{file}", content=b"body")
        assert first.status_code == 303
        where = first.headers["location"]
        assert where.startswith(f"/late-web/wait?{file}&__modal_function_call_id=fc-")
        again = client.get(where)
        assert again.status_code == 303 and again.headers["location"] == where
        file.touch()
        # Followed until it is there, as a browser does.
        answer = client.get(where, follow_redirects=True)
        assert answer.status_code == 200 and answer.text.startswith("open ")
        assert client.get(where).status_code == 404
        strange = where.partition("fc-")[0] + "fc-" + "0" * 22
        assert client.get(strange).status_code == 404


async def test_more_than_may_wait_are_told_to_come_again(serve: Any, own: Live) -> None:
    serve(**{"web.listen": "http://127.0.0.1:0", "web.max_waiting": 2})
    app = modal.App("full")

    @app.function(serialized=True, name="web", max_containers=1)
    @modal.asgi_app()
    def web() -> Any:
        import asyncio

        async def served(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"begun", "more_body": True})
                await asyncio.Event().wait()

        return served

    await app.deploy.aio()
    url = urlsplit(str(await app["web"].get_web_url.aio()))
    base = f"http://127.0.0.1:{url.port}/full-web/"
    async with httpx.AsyncClient(timeout=LIMIT) as client, client.stream("GET", base) as running:
        assert running.status_code == 200
        waiting = [asyncio.create_task(client.get(base)) for _ in range(3)]
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        assert refused.result().status_code == 503 and refused.result().headers["retry-after"] == "1"
        for task in pending:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
