"""``modal-nomad serve``: run an App's web endpoints and schedules for now, anew whenever a file is saved."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import typer

from modal_nomad.cli import _watched
from modal_nomad.cli._errors import CommandError
from modal_nomad.cli._serve_build import Built, Order
from modal_nomad.cli._terminal import style

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_POLL_SECONDS = 0.1
_PROGRAM = "from modal_nomad.cli._serve_build import main; main()"


@app.command(no_args_is_help=True)
def serve(
    reference: str = typer.Argument(
        ..., metavar="APP_REF", help="The App: FILE.py (its variable 'app') or FILE.py::VARIABLE."
    ),
    timeout: float = typer.Option(
        0.0, "--timeout", help="End after this many seconds; 0 means never.", min=0.0
    ),
    environment: str = typer.Option("", "--env", "-e", help="Environment to run in."),
    is_module: bool = typer.Option(False, "-m", help="The reference is a dotted module path."),
) -> None:
    """Serve an App while you work on it: each save of a file brings its new version."""
    from modal_nomad._output import enable_output

    deadline = time.monotonic() + timeout if timeout else None
    with enable_output():
        with (
            _Served(reference, is_module, environment or None) as served,
            contextlib.suppress(KeyboardInterrupt),
        ):
            _follow(served, deadline)
        _say("Stopped.")


def _follow(served: _Served, deadline: float | None) -> None:
    """Bring each new version, until the time is over."""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        changed = served.watched.wait(left)
        if changed:
            served.renew(changed)
        elif deadline is not None and time.monotonic() >= deadline:
            return


class _Served:
    """A running App and where its versions come from. A context: the App stops at its end.

    Args:
        reference: the App's.
        is_module: it is a dotted module path.
        environment: where the App runs; None is the configured one.

    Attributes:
        watched: what the version that was built last, or could not be, is made of.

    Raises:
        CommandError: there is no first version.
    """

    watched: _watched.Watched

    def __init__(self, reference: str, is_module: bool, environment: str | None) -> None:
        from modal_nomad.cli._client import connect
        from modal_nomad.runner import environment_of, new_suffix

        self._client = connect()
        self._reference, self._is_module = reference, is_module
        self._environment = environment_of(environment)
        self._suffix = new_suffix()
        self._app_id: str | None = None
        self._urls: dict[str, str] = {}
        self._functions: set[tuple[str, str]] = set()

    def __enter__(self) -> _Served:
        built, self.watched = self._build(None)
        if built.publication is None:
            raise CommandError(f"{self._reference} cannot be served; what is wrong with it stands above.")
        try:
            self._publish(built)
        except BaseException:
            self.__exit__()
            raise
        _say("Serving; saving a file brings its new version, Ctrl-C ends it.", "green")
        return self

    def renew(self, changed: list[str]) -> None:
        """Bring a new version; where there is none, the one before stays."""
        _say(f"{_watched.shown(changed)} changed.")
        begun = time.monotonic()
        built, self.watched = self._build(self.watched)
        if built.publication is not None:
            try:
                self._publish(built)
            except Exception as error:
                from modal_nomad.cli import _errors

                _errors.report(error)
            else:
                _say(f"Updated in {time.monotonic() - begun:.1f} s.", "green")
                return
        _say("Not updated: the version before is still served.", "yellow")

    def __exit__(self, *error: Any) -> None:
        from modal_nomad import _output
        from modal_nomad._bridge import io, run_blocking
        from modal_nomad.config import config
        from modal_nomad.exception import ClientClosed, ConnectionError

        app_id = self._app_id
        if app_id is None:
            return

        async def stop() -> None:
            # A client that is gone has taken the App along.
            with contextlib.suppress(ConnectionError, ClientClosed):
                await io(self._client._request("app.stop", {"app_id": app_id}))
                output = _output.current()
                if output is not None:
                    await io(output.drain(app_id, config["logs_timeout"]))

        run_blocking(stop())

    # --- versions ---------------------------------------------------------------------------------

    def _build(self, before: _watched.Watched | None) -> tuple[Built, _watched.Watched]:
        """Build until nothing changes meanwhile; gives what is to be watched from then on as well."""
        while True:
            with self._building() as (process, answer):
                while process.poll() is None and not (before is not None and before.changed()):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_POLL_SECONDS)
                if process.poll() is None:
                    continue
            built = answer()
            # Files whose folder is not there are of a module that makes itself up.
            failed = built.publication is None
            entry = [] if self._is_module else [os.path.abspath(self._reference.partition("::")[0])]
            sources = {os.path.abspath(x) for x in (*built.sources, *entry)}
            return built, _watched.Watched(sources, built.contents, built.read, source_folders=failed)

    @contextlib.contextmanager
    def _building(self) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
        order = Order(
            self._reference, self._is_module, self._environment, self._suffix, self._app_id, tuple(sys.path)
        )
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", _PROGRAM, json.dumps(asdict(order)), str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            # Ctrl-C is for this process.
            start_new_session=True,
        )
        os.close(writer)
        found: list[Built] = []
        threads = [
            threading.Thread(target=_receive, args=(reader, found), daemon=True),
            threading.Thread(target=_copy, args=(process.stdout,), daemon=True),
        ]
        for thread in threads:
            thread.start()

        def answer() -> Built:
            for thread in threads:
                thread.join()
            return found[0] if found else Built()

        try:
            yield process, answer
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _publish(self, built: Built) -> None:
        from modal_nomad import _output
        from modal_nomad._bridge import io, run_blocking
        from modal_nomad.runner import Publication, send

        async def body(publication: Publication) -> dict[str, Any]:
            return await io(send(self._client, publication))

        assert built.publication is not None
        for text in built.warnings:
            _say(f"Warning: {text}", "yellow")
        reply = run_blocking(body(built.publication))
        for text in reply.get("warnings", ()):
            _say(f"Warning: {text}", "yellow")
        output = _output.current()
        assert output is not None
        first = self._app_id is None
        self._app_id = reply["app_id"]
        functions = set(built.functions)
        for kind, name in built.functions:
            if (kind, name) not in self._functions:
                output.created(kind, name)
        for kind, name in sorted(self._functions - functions):
            _say(f"Removed {kind} {name}.")
        urls = dict(reply.get("web_urls", {}))
        for name, url in urls.items():
            if self._urls.get(name) != url:
                output.served(name, url)
        self._functions, self._urls = functions, urls
        if first:
            output.attach(self._client, reply["app_id"])


def _receive(descriptor: int, found: list[Built]) -> None:
    with open(descriptor, "rb") as file, contextlib.suppress(EOFError, pickle.UnpicklingError):
        found.append(pickle.load(file))


def _copy(stream: Any) -> None:
    """Show what a build writes, past the display that this process keeps."""
    with stream:
        for line in stream:
            sys.stdout.write(line.decode("utf-8", "replace"))
            sys.stdout.flush()


def _say(text: str, colour: str | None = None) -> None:
    if not sys.stdout.isatty():
        colour = None
    sys.stdout.write(style(text, colour) + "\n")
    sys.stdout.flush()
