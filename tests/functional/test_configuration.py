"""Settings of the caller's side: what each changes, from the environment and from the file."""

from __future__ import annotations

import pytest
from conftest import Live, alive, until

APP = """
    import modal

    app = modal.App("configured")

    @app.function()
    def f():
        return 1

    @app.cls()
    class Slow:
        @modal.method()
        def pid(self):
            import os

            return os.getpid()

        @modal.exit()
        def bye(self):
            import os
            import time

            while not os.path.exists(os.environ.get("GATE", "/")):
                time.sleep(0.01)
            print("last words")

    @app.local_entrypoint()
    def main():
        print("answer", f.remote())

    @app.local_entrypoint()
    def leave():
        print("pid", Slow().pid.remote())
"""


@pytest.fixture
def script(live: Live) -> str:
    return str(live.write("configured.py", APP))


def test_loglevel(live: Live, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live.cli("run", f"{script}::main").stderr == ""
    monkeypatch.setenv("MODAL_LOGLEVEL", "debug")
    shown = live.cli("run", f"{script}::main").stderr
    assert "modal_nomad DEBUG connected to unix://" in shown and "uploaded" in shown
    monkeypatch.setenv("MODAL_LOGLEVEL", "loud")
    wrong = live.cli("run", f"{script}::main")
    assert wrong.returncode == 1 and "MODAL_LOGLEVEL is 'loud'" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def test_loglevel_of_a_dispatcher(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_LOGLEVEL", "loud")
    done = own.cli("dispatcher", "--home", str(own.home))
    assert done.returncode == 1 and "MODAL_LOGLEVEL is 'LOUD'; give DEBUG" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_shows_the_last_words_of_its_containers(live: Live, script: str) -> None:
    done = live.cli("run", f"{script}::leave")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "Slow | last words", done.stderr


def test_logs_timeout(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = live.folder / "gate"
    script = live.write("waits.py", APP.replace('os.environ.get("GATE", "/")', repr(str(gate))))
    live.write("modal.toml", "[default]\nlogs_timeout = 0.01\n")
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(live.folder / "modal.toml"))
    done = live.cli("run", f"{script}::leave")
    # The container still waits for the gate: nobody waited for it.
    assert done.returncode == 0 and "last words" not in done.stdout
    pid = int(done.stdout.split("pid ")[1].split()[0])
    assert alive(pid)
    gate.touch()
    until(lambda: not alive(pid), what="the container's end")


def test_traceback(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    script = live.write("raises.py", "import modal\n\napp = modal.App(3)\n")
    short = live.cli("run", str(script))
    assert short.returncode == 1 and short.stderr.count("\n") == 1
    live.write("modal.toml", "[default]\ntraceback = true\n")
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(live.folder / "modal.toml"))
    whole = live.cli("run", str(script))
    assert whole.returncode == 1 and "Traceback" in whole.stderr and "modal_nomad/app.py" in whole.stderr
    monkeypatch.setenv("MODAL_TRACEBACK", "0")
    assert live.cli("run", str(script)).stderr == short.stderr


def test_automount(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    live.write("beside.py", "VALUE = 7\n")
    script = live.write(
        "mounts.py",
        """
        import modal

        app = modal.App("mounts")

        @app.function()
        def f():
            import beside

            return beside.VALUE

        @app.local_entrypoint()
        def main():
            import beside

            print("value", f.remote())
        """,
    )
    first = live.cli("run", str(script))
    live.write("mounts.py", script.read_text().replace("import modal\n", "import modal\nimport beside\n", 1))
    assert "value 7" in live.cli("run", str(script)).stdout, first.stderr
    monkeypatch.setenv("MODAL_AUTOMOUNT", "0")
    without = live.cli("run", str(script))
    assert without.returncode == 1 and "No module named 'beside'" in without.stderr


def test_profile_and_path(live: Live, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = f"unix://{live.home}/daemon.sock"
    live.status()
    live.write(
        "other.toml",
        f'[here]\nserver_url = "{home}"\n\n[there]\nactive = true\nserver_url = "http://127.0.0.1:1"\n',
    )
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(live.folder / "other.toml"))
    refused = live.cli("run", f"{script}::main")
    assert refused.returncode == 1 and "127.0.0.1:1" in refused.stderr
    monkeypatch.setenv("MODAL_PROFILE", "here")
    assert "answer 1" in live.cli("run", f"{script}::main").stdout
