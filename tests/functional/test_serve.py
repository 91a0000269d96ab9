"""``modal-nomad serve``: each save brings a new version at the same URLs, and nothing fails meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import Live, until

from tests._web_urls import at

LIMIT = 90.0
PROGRAM = """
    import modal
    import words

    app = modal.App({name!r})

    @app.function()
    @modal.concurrent(max_inputs=10)
    @modal.asgi_app()
    def web():
        async def served(scope, receive, send):
            if scope["type"] == "http":
                body = words.WORD.encode()
                fields = [(b"content-length", b"%d" % len(body))]
                await send({{"type": "http.response.start", "status": 200, "headers": fields}})
                await send({{"type": "http.response.body", "body": body}})
        return served
"""


class Serving:
    """``modal-nomad serve`` and what it says."""

    def __init__(self, live: Live, *words: str) -> None:
        self.text = ""
        self.process = live.start("-m", "modal_nomad", "serve", *words, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line

    def wait_for(self, words: str, times: int = 1) -> None:
        until(lambda: self.text.count(words) >= times or self.process.poll() is not None, what=repr(words))
        assert self.text.count(words) >= times, self.text

    def base(self) -> str:
        """Where its one endpoint is, at an address that everything can resolve."""
        return at(self.text.split(" => ")[1].split()[0])

    def end(self) -> int:
        code = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        return code


@contextlib.contextmanager
def serving(live: Live, *words: str) -> Iterator[Serving]:
    made = Serving(live, *words)
    try:
        yield made
    finally:
        made.process.kill()
        made.end()
        assert made.process.stdout is not None
        made.process.stdout.close()


@contextlib.contextmanager
def load(url: str) -> Iterator[tuple[list[str], list[Any]]]:
    """Ask all the time; gives what was answered and what failed."""
    seen: list[str] = []
    failed: list[Any] = []
    enough = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=LIMIT) as client:
            while not enough.is_set():
                try:
                    answer = client.post(url)
                    answer.raise_for_status()
                    seen.append(answer.text)
                except httpx.HTTPError as error:
                    failed.append(error)
                    return

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen, failed
    finally:
        enough.set()
        for thread in threads:
            thread.join(LIMIT)


def apps(live: Live, name: str) -> dict[str, str]:
    found = live.request("app.list")["apps"]
    return {x["app_id"]: x["state"] for x in found if x["description"] == name}


def test_each_save_is_a_new_version(live: Live) -> None:
    words = live.write("words.py", "WORD = 'one'\n")
    program = live.write("saved.py", PROGRAM.format(name="saved"))
    with serving(live, str(program)) as served:
        served.wait_for("Serving")
        base = served.base()
        assert "saved-web-dev" in base
        with load(base) as (seen, failed):
            until(lambda: "one" in seen or failed)
            # As editors do: a new file in the place of the old one.
            new = live.write("words.new", "WORD = 'two'\n")
            os.replace(new, words)
            served.wait_for("words.py changed.")
            until(lambda: "two" in seen or failed)
            # What does not parse, and what cannot be imported, leaves what there is.
            words.write_text("WORD = (\n")
            served.wait_for("Not updated: the version before is still served.")
            words.write_text("import not_there_yet as more\nWORD = more.WORD\n")
            served.wait_for("Not updated: the version before is still served.", 2)
            count = len(seen)
            until(lambda: len(seen) > count or failed)
            assert seen[-1] == "two"
            # A file that was missing is looked for beside the others, and one that raised is no module.
            live.write("not_there_yet.py", "raise ValueError('too early')\n")
            served.wait_for("ValueError: too early")
            live.write("not_there_yet.py", "WORD = 'three'\n")
            until(lambda: "three" in seen or failed)
        assert not failed
        assert "SyntaxError" in served.text and "words.py" in served.text
        assert "No module named 'not_there_yet'" in served.text
        assert served.text.count(" => ") == 1
        assert list(apps(live, "saved").values()) == ["ephemeral"]
        with serving(live, str(program), "--timeout", "0.01") as again:
            assert again.end() == 0, again.text
        assert "Warning: web: 'saved-web-dev' leads to this App now, and to App saved again" in again.text
        assert httpx.get(base, timeout=LIMIT).text == "three"
        served.process.send_signal(signal.SIGINT)
        assert served.end() == 0
    assert served.text.endswith("Stopped.\n"), served.text
    assert list(apps(live, "saved").values()) == ["stopped", "stopped"]
    assert httpx.get(base, timeout=LIMIT).status_code == 404


def test_functions_come_and_go(live: Live) -> None:
    live.write("words.py", "WORD = 'one'\n")
    program = live.write("going.py", PROGRAM.format(name="going"))
    (live.folder / "assets").mkdir()
    (live.folder / "assets/one.txt").write_text("one")
    image = f"modal.Image.debian_slim().add_local_dir({str(live.folder / 'assets')!r}, '/assets')"
    program.write_text(
        program.read_text().replace("modal.App('going')", f"modal.App('going', image={image})")
    )
    text = program.read_text()
    assert "add_local_dir" in text
    with serving(live, str(program)) as served:
        served.wait_for("Serving")
        program.write_text(
            text + "\n\n@app.function()\n@modal.asgi_app()\ndef other():\n    return web.local()\n"
        )
        served.wait_for("Updated in")
        assert "Created function other." in served.text and "going-other-dev" in served.text
        other = served.base().replace("going-web", "going-other")
        assert httpx.get(other, timeout=LIMIT).text == "one"
        program.write_text(text)
        served.wait_for("Removed function other.")
        assert httpx.get(other, timeout=LIMIT).status_code == 404
        # What containers are to have besides code is looked at, too.
        (live.folder / "assets/one.txt").write_text("two")
        served.wait_for("one.txt changed.")
        served.wait_for("Updated in", 3)


def test_it_ends_after_its_time(live: Live) -> None:
    live.write("words.py", "WORD = 'one'\n")
    program = live.write("timed.py", PROGRAM.format(name="timed"))
    live.request("environment.create", name="served-there")
    try:
        with serving(live, str(program), "--timeout", "0.01", "--env", "served-there") as served:
            assert served.end() == 0, served.text
            assert "timed-web-served-there-dev" in served.text
        found = json.loads(live.cli("app", "list", "--env", "served-there", "--json").stdout)
        assert [(x["Description"], x["State"]) for x in found] == [("timed", "stopped")]
    finally:
        live.request("environment.delete", name="served-there")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (\n", "SyntaxError"),
        ("import modal\n", "has no App named 'app'"),
        ("import sys\nsys.exit(3)\n", "the file ended the program by itself (exit code 3)"),
    ],
)
def test_without_a_first_version_there_is_nothing_to_serve(live: Live, text: str, said: str) -> None:
    program = live.write("faulty.py", text)
    with serving(live, str(program)) as served:
        assert served.end() == 1, served.text
    assert said in served.text and "cannot be served" in served.text
