"""Apps as wholes: scripts, the command line, deployments, logs, images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad.client import Client

DEPLOYED = """
    import modal

    app = modal.App("deployed")

    @app.function()
    def double(x):
        print("doubling", x)
        return 2 * x
"""


@pytest.fixture
def deployed(live: Live) -> Iterator[Path]:
    path = live.write("deployed.py", DEPLOYED)
    done = live.cli("deploy", str(path))
    assert done.returncode == 0, done.stderr
    yield path
    live.cli("app", "stop", "deployed")


def test_a_script_with_its_own_modules(live: Live) -> None:
    (live.folder / "helpers").mkdir()
    live.write("helpers/__init__.py", "from .deep import add\n")
    live.write("helpers/deep.py", "def add(a, b):\n    return a + b\n")
    script = live.write(
        "script.py",
        """
        from dataclasses import dataclass

        import modal_nomad as modal
        from helpers import add

        app = modal.App()

        @dataclass
        class Point:
            x: int

        @app.function()
        def f(a, b):
            return add(a, b)

        @app.function()
        def g(point):
            return Point(point.x + 1)

        if __name__ == "__main__":
            with app.run():
                print("sum", f.remote(1, 2), list(f.starmap([(3, 4), (5, 6)])))
                print("same class", g.remote(Point(1)) == Point(2))
        """,
    )
    out = live.python(script)
    assert "sum 3 [7, 11]" in out and "same class True" in out


def test_a_session_without_a_file(live: Live) -> None:
    code = """
import modal_nomad as modal
app = modal.App()
factor = 3
@app.function()
def f(x):
    return x * factor
g = app.function(serialized=True)(lambda x: x + factor)
with app.run():
    print(f.remote(2), list(f.map(range(3))), g.remote(1))
"""
    done = live._finish(live.start("-c", code))
    assert done.stdout.split("\n")[0] == "6 [0, 3, 6] 4", done.stderr


def test_run_passes_flags_and_streams_logs(live: Live) -> None:
    script = live.write(
        "flags.py",
        """
        import sys
        from datetime import datetime
        from typing import Literal, Optional

        import modal

        app = modal.App("flags")

        @app.function()
        def loud(word):
            print("out of the container", word)
            print("err of the container", file=sys.stderr)
            return word.upper()

        @app.local_entrypoint()
        def main(word: str, times: int = 1, day: Optional[datetime] = None, how: Literal["a", "b"] = "a",
                 strong: bool = False):
            \"\"\"Shout a word.\"\"\"
            print(loud.remote(word) * times, day and day.year, how, strong)
        """,
    )
    done = live.cli("run", str(script), "--word", "hey", "--times", "2", "--day", "2020-02-03", "--strong")
    assert done.returncode == 0, done.stderr
    everything = done.stdout + done.stderr
    assert "HEYHEY 2020 a True" in done.stdout
    assert "out of the container hey" in everything and "err of the container" in everything
    quiet = live.cli("run", "-q", str(script), "--word", "hey")
    assert quiet.stdout == "HEY None a False\n"
    shown = live.cli("run", str(script), "--help").stdout
    assert "Shout a word." in shown and "--times" in shown
    remote = live.cli("run", f"{script}::loud", "--word", "hey")
    assert remote.returncode == 0 and "out of the container hey" in remote.stdout + remote.stderr


def test_a_deployed_function_is_found_by_name_from_another_process(live: Live, deployed: Path) -> None:
    other = live.write(
        "other.py",
        """
        import modal_nomad as modal

        double = modal.Function.from_name("deployed", "double")
        print(double.remote(4), list(double.map(range(3))), modal.App.lookup("deployed").app_id)
        """,
    )
    assert live.python(other).startswith("8 [0, 2, 4] ap-")


def test_redeploying_keeps_ids_and_takes_the_new_code(live: Live, deployed: Path) -> None:
    double = modal.Function.from_name("deployed", "double")
    assert double.remote(4) == 8
    first = double.object_id
    live.write("deployed.py", DEPLOYED.replace("2 * x", "20 * x"))
    assert live.cli("deploy", str(deployed), "--tag", "v2").returncode == 0
    assert modal.Function.from_name("deployed", "double").hydrate().object_id == first
    assert double.remote(4) == 80
    history = live.cli("app", "history", "deployed").stdout
    assert "v2" in history and len(history.splitlines()) == 3


def test_a_deployment_drops_what_is_gone_and_another_name_is_another_app(live: Live, deployed: Path) -> None:
    app_id = modal.App.lookup("deployed").app_id
    live.write("deployed.py", DEPLOYED.replace("def double", "def twice"))
    assert live.cli("deploy", str(deployed)).returncode == 0
    assert modal.App.lookup("deployed").app_id == app_id
    assert modal.Function.from_name("deployed", "twice").remote(4) == 8
    with pytest.raises(modal.exception.NotFoundError, match="double"):
        modal.Function.from_name("deployed", "double").hydrate()
    assert live.cli("deploy", str(deployed), "--name", "deployed-too").returncode == 0
    assert modal.App.lookup("deployed-too").app_id != app_id
    assert live.cli("app", "stop", "deployed-too").returncode == 0


def test_lookup_makes_a_deployed_app_when_asked(live: Live) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="made-by-lookup"):
        modal.App.lookup("made-by-lookup")
    made = modal.App.lookup("made-by-lookup", create_if_missing=True)
    assert modal.App.lookup("made-by-lookup").app_id == made.app_id
    listed = {entry["app_id"]: entry["state"] for entry in live.request("app.list")["apps"]}
    assert listed[made.app_id] == "deployed"
    live.request("app.stop", app_id=made.app_id)


def test_an_unchanged_deployment_uploads_nothing(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    (live.folder / "data").mkdir()
    live.write("data/file.txt", "data")
    sent: list[bytes] = []
    put = Client._put_blobs

    async def counting(self: Client, contents: list[bytes]) -> list[str]:
        sent.extend(contents)
        return await put(self, contents)

    monkeypatch.setattr(Client, "_put_blobs", counting)

    def deploy() -> str:
        image = modal.Image.debian_slim().add_local_dir(str(live.folder / "data"), "/tmp/unused-data")
        app = modal.App("unchanged", image=image)

        @app.function(serialized=True, name="f")
        def f() -> int:
            return 1

        app.deploy()
        return str(app.app_id)

    first = deploy()
    assert sent
    sent.clear()
    assert deploy() == first
    assert sent == []
    live.request("app.stop", app_id=first)


def test_app_logs_show_what_was_logged_before(live: Live, deployed: Path) -> None:
    assert modal.Function.from_name("deployed", "double").remote(77) == 154
    until(lambda: "doubling 77" in live.cli("app", "logs", "deployed").stdout, what="the line in the logs")


def test_app_list_and_stop(live: Live, deployed: Path) -> None:
    assert "deployed" in live.cli("app", "list").stdout
    assert live.cli("app", "stop", "deployed").returncode == 0
    done = live.cli("app", "logs", "never-deployed")
    assert done.returncode == 1
    with pytest.raises(modal.exception.NotFoundError):
        modal.Function.from_name("deployed", "double").remote(1)


def test_the_local_group_governs_the_dispatcher(own: Live) -> None:
    assert "not running" in own.cli("local", "status").stdout
    pid = own.status()["pid"]
    assert str(pid) in own.cli("local", "status").stdout
    assert "listening" in own.cli("local", "logs").stdout
    from conftest import _close_clients

    _close_clients()
    assert own.cli("local", "stop").returncode == 0
    assert "not running" in own.cli("local", "status").stdout
    assert own.cli("local", "reset", "--yes").returncode == 0
    assert not (own.home / "store.db").exists()


def test_modules_run_as_scripts_are_checked_by_their_exit_code(live: Live) -> None:
    script = live.write(
        "fails.py",
        """
        import modal

        app = modal.App("fails")

        @app.function()
        def f():
            raise ValueError("from the container")

        @app.local_entrypoint()
        def main():
            f.remote()
        """,
    )
    done: subprocess.CompletedProcess[str] = live.cli("run", str(script))
    assert done.returncode == 1
    assert "ValueError: from the container" in done.stderr
    assert "modal_nomad/" not in done.stderr.replace(str(live.folder), "")


def test_render_takes_the_settings_of_the_configured_dispatcher(
    own: Live, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(advertise="http://10.1.2.3:8520")
    own.write("app.py", DEPLOYED)
    (job,) = json.loads(own.cli("render", "app.py").stdout)
    assert "10.1.2.3:8520" in json.dumps(job)
    other = own.cli("render", "app.py", "--namespace", "team", "--datacenters", "a,b", "--hcl").stdout
    assert 'namespace   = "team"' in other and 'datacenters = ["a", "b"]' in other
    monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:1")
    refused = own.cli("render", "app.py")
    assert refused.returncode == 1 and "--server-url" in refused.stderr
    own.write(
        "built.py",
        DEPLOYED.replace("modal.App(", "modal.App(image=modal.Image.debian_slim().apt_install('git'), name="),
    )
    rendered = own.cli(
        "render", "built.py", "--server-url", "http://d:1", "--image-repository", "r.example/x"
    )
    assert '"image": "r.example/x:' in rendered.stdout
