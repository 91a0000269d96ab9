"""Secrets: where they come from, who has them, who wins, and that a value is found nowhere else."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pickle
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad.secret import Secret
from tests._postgresql import contents

ON_BOTH_STORES = True

ODD = {
    "PLAIN": "value",
    "LINES": "first\nsecond\r\n\n",
    "QUOTES": 'it\'s "quoted" `so` \\ ${HOME} {{ .x }} <&>',
    "SPACES": "  two  ",
    "EMPTY": "",
    "UNICODE": "päss wörd 🔑 \u2028",
    "odd key.with-dashes": "x",
    "päss": "y",
}


def reader() -> Callable[..., dict[str, str | None]]:
    """Return a function that tells what a container has of variables."""

    def environ(*names: str) -> dict[str, str | None]:
        import os

        return {name: os.environ.get(name) for name in names}

    return environ


@pytest.fixture
def stored(live: Live) -> Iterator[None]:
    Secret.objects.create("odd", ODD)
    yield
    Secret.objects.delete("odd", allow_missing=True)


def ask(app: modal.App, *names: str, **options: object) -> dict[str, str | None]:
    function = app.function(serialized=True, **options)(reader())
    with app.run():
        return function.remote(*names)


def test_a_stored_secret_survives_whole(stored: None) -> None:
    assert ask(modal.App("odd"), *ODD, secrets=[Secret.from_name("odd")]) == ODD


def test_the_later_secret_wins_after_the_apps_own_and_env_over_both(live: Live) -> None:
    app = modal.App("order", secrets=[Secret.from_dict({"A": "app", "B": "app", "C": "app", "D": None})])
    image = modal.Image.debian_slim().env({"A": "image", "E": "image"})
    found = ask(
        app,
        *"ABCDE",
        image=image,
        env={"C": "env"},
        secrets=[Secret.from_dict({"B": "one", "C": "one"}), Secret.from_dict({"B": "two"})],
    )
    assert found == {"A": "app", "B": "two", "C": "env", "D": None, "E": "image"}


def test_values_of_the_program_from_its_environment_and_from_dotenv(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MN_LOCAL", "from here")
    (live.folder / ".env-dev").write_text("A=1\nB='two words'\nexport C=${MN_LOCAL}\n")
    inner = live.folder / "deep" / "er"
    inner.mkdir(parents=True)
    found = ask(
        modal.App("sources"),
        "MN_LOCAL",
        *"ABC",
        secrets=[
            Secret.from_local_environ(["MN_LOCAL"]),
            Secret.from_dotenv(inner / "script.py", filename=".env-dev"),
        ],
    )
    assert found == {"MN_LOCAL": "from here", "A": "1", "B": "two words", "C": "from here"}


def test_a_dotenv_file_is_looked_for_when_the_app_is_published(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(live.folder)
    secret = Secret.from_dotenv()
    with pytest.raises(FileNotFoundError, match=r"there is no \.env"):
        ask(modal.App("late"), "A", secrets=[secret])
    (live.folder / ".env").write_text("A=late")
    assert ask(modal.App("late"), "A", secrets=[secret]) == {"A": "late"}


def test_classes_and_their_variants_have_secrets(live: Live) -> None:
    app = modal.App("classes", secrets=[Secret.from_dict({"A": "app"})])

    @app.cls(serialized=True, secrets=[Secret.from_dict({"B": "class"})])
    class Box:
        @modal.enter()
        def enter(self) -> None:
            import os

            self.seen = {name: os.environ.get(name) for name in "AB"}

        @modal.method()
        def read(self) -> dict[str, str | None]:
            return self.seen

    with app.run():
        assert Box().read.remote() == {"A": "app", "B": "class"}
        other = Box.with_options(secrets=[Secret.from_dict({"B": "one"})])
        assert other().read.remote() == {"A": None, "B": "one"}
        # Successive calls do not add up.
        assert other.with_options(secrets=[Secret.from_dict({"A": "two"})])().read.remote() == {
            "A": "two",
            "B": None,
        }


def test_a_missing_secret_or_key_is_said_before_anything_starts(stored: None) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="no Secret 'absent' in environment 'main'"):
        ask(modal.App("missing"), "A", secrets=[Secret.from_name("absent")])
    with pytest.raises(modal.exception.InvalidError, match="'odd' has no NOT_THERE"):
        ask(modal.App("missing"), "A", secrets=[Secret.from_name("odd", required_keys=["NOT_THERE"])])
    with pytest.raises(modal.exception.NotFoundError, match="in environment 'elsewhere'"):
        Secret.from_name("odd", environment_name="elsewhere").hydrate()
    with pytest.raises(modal.exception.InvalidError, match="needs a Vault"):
        ask(modal.App("missing"), "A", secrets=[Secret.from_vault("database/creds/x")])
    assert Secret.from_name("odd", required_keys=list(ODD)).hydrate().object_id.startswith("st-")


def test_a_secret_deleted_after_the_deployment_fails_the_call(own: Live) -> None:
    Secret.objects.create("soon", {"A": "1"})
    app = modal.App("soon-gone")
    function = app.function(serialized=True, secrets=[Secret.from_name("soon")])(reader())
    with app.run():
        Secret.objects.delete("soon")
        with pytest.raises(modal.exception.NotFoundError, match="no Secret 'soon'"):
            function.remote("A")


def test_objects(live: Live) -> None:
    Secret.objects.create("one", {"A": "1", "B": None})
    try:
        with pytest.raises(modal.exception.AlreadyExistsError, match="'one'"):
            Secret.objects.create("one", {"A": "2"})
        Secret.objects.create("one", {"A": "2"}, allow_existing=True)
        Secret.from_name("one").update({"C": "3"})
        assert ask(modal.App("objects"), *"ABC", secrets=[Secret.from_name("one")]) == {
            "A": "1",
            "B": None,
            "C": "3",
        }
        [listed] = [x for x in Secret.objects.list() if x.name == "one"]
        assert listed.object_id == Secret.from_name("one").hydrate().object_id and listed.is_hydrated
        info = listed.info()
        assert info.name == "one" and info.created_at.timestamp() > 1.7e9
        before, after = (info.created_at + datetime.timedelta(seconds=x) for x in (-1, 1))
        assert "one" not in [x.name for x in Secret.objects.list(created_before=before)]
        assert "one" in [x.name for x in Secret.objects.list(created_before=after.isoformat())]
        assert Secret.objects.list(max_objects=0) == []
        assert [x.name for x in Secret.objects.list(environment_name="elsewhere")] == []
    finally:
        Secret.objects.delete("one")
    with pytest.raises(modal.exception.NotFoundError, match="'one'"):
        Secret.objects.delete("one")
    Secret.objects.delete("one", allow_missing=True)
    with pytest.raises(modal.exception.NotFoundError):
        Secret.from_name("one").update({"A": "1"})


def test_an_environment_ends_with_its_secrets_and_keeps_its_name_while_it_has_any(live: Live) -> None:
    live.request("environment.create", name="short-lived")
    Secret.objects.create("inside", {"A": "1"}, environment_name="short-lived")
    found = ask(
        modal.App("inside"), "A", secrets=[Secret.from_name("inside", environment_name="short-lived")]
    )
    assert found == {"A": "1"}
    with pytest.raises(modal.exception.InvalidError, match="while it has Secrets"):
        live.request("environment.update", name="short-lived", new_name="other-name")
    live.request("environment.delete", name="short-lived")
    with pytest.raises(modal.exception.NotFoundError):
        Secret.from_name("inside", environment_name="short-lived").hydrate()


def test_a_secret_is_passed_on_without_its_values(stored: None) -> None:
    secret = Secret.from_dict({"A": "hunter-marker"})
    assert b"hunter-marker" not in pickle.dumps(secret)
    with pytest.raises(modal.exception.InvalidError, match="without its values"):
        pickle.loads(pickle.dumps(secret))._values()
    app = modal.App("handed")

    @app.function(serialized=True)
    def id_of(one: Secret) -> str:
        return str(one.hydrate().object_id)

    named = Secret.from_name("odd")
    with app.run():
        assert id_of.remote(named) == named.hydrate().object_id


def test_a_secret_cannot_take_the_place_of_the_containers_own_variables(live: Live) -> None:
    with pytest.raises(modal.exception.InvalidError, match="container's own"):
        Secret.from_dict({"MODAL_TASK_ID": "ta-x"})
    with pytest.raises(modal.exception.InvalidError, match="container's own"):
        live.request("secret.create", name="bad", env={"MODAL_TASK_ID": "ta-x"})


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"A": 5}, "value of A must be a string"),
        ({"A=B": "hunter-marker"}, "without '='"),
        ({"A": "hunter-marker\0"}, "zero bytes"),
        ({"A": "x" * (600 << 10)}, "can hold 512 KiB"),
        ([], "object of strings"),
    ],
)
def test_bad_values_are_refused_by_the_server_without_showing_them(
    live: Live, env: object, words: str
) -> None:
    with pytest.raises(modal.exception.InvalidError, match=words) as caught:
        live.request("secret.create", name="bad", env=env)
    assert "hunter-marker" not in str(caught.value)
    assert "bad" not in [x.name for x in Secret.objects.list()]


@pytest.mark.parametrize("name", ["../up", "..", "a/b", "", "x" * 200])
def test_a_name_cannot_leave_its_environment(live: Live, name: str) -> None:
    with pytest.raises(modal.exception.InvalidError):
        live.request("secret.create", name=name, env={"A": "1"})
    with pytest.raises(modal.exception.InvalidError):
        live.request("secret.list", environment="../../x")


def test_program_values_live_and_end_with_their_app(own: Live) -> None:
    app = modal.App("ends", secrets=[Secret.from_dict({"A": "1"})])
    function = app.function(serialized=True)(reader())

    def kept() -> int:
        import asyncio

        from modal_nomad.dispatcher.secrets import FileSecretStore

        return len(asyncio.run(FileSecretStore(own.home).ephemerals()))

    with app.run():
        assert function.remote("A") == {"A": "1"} and kept() == 1
    until(lambda: kept() == 0, what="the end of the App's Secret")
    app.deploy(name="stays")
    app.deploy(name="stays")
    assert kept() == 1
    own.kill()
    assert modal.Function.from_name("stays", "environ").remote("A") == {"A": "1"}
    again = modal.App("again", secrets=[Secret.from_dict({"A": "2"})])
    again.function(serialized=True)(reader())
    again.deploy(name="stays")
    until(lambda: kept() == 1, what="the removal of what the deployment before had")
    assert modal.Function.from_name("stays", "environ").remote("A") == {"A": "2"}
    assert own.cli("app", "stop", "stays").returncode == 0
    until(lambda: kept() == 0, what="the end of the App's Secret")


def test_redeploying_equal_values_keeps_the_version(own: Live) -> None:
    app = modal.App("equal", secrets=[Secret.from_dict({"A": "1"})])
    function = app.function(serialized=True)(reader())
    keys = []
    for _ in range(2):
        app.deploy()
        found = own.request("function.describe", function_id=function.object_id)
        keys.append(json.dumps(found["spec"]["secrets"]))
    assert keys[0] == keys[1] and "ephemeral" in keys[0]


def everything_in(home: Path) -> bytes:
    """All that a home holds, databases and their logs included; what is compressed is unpacked."""
    parts = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    configured = home / "local.toml"
    if configured.exists():
        rows = contents(configured.read_text().split('"')[1])
        assert rows
        # As Python shows bytes: what is looked for has plain letters alone.
        return b"\0".join([*parts, repr(rows).encode()])
    with contextlib.closing(sqlite3.connect(f"file:{home}/store.db?mode=ro", uri=True)) as database:
        parts += [line.encode() for line in database.iterdump()]
    return b"\0".join(parts)


def test_a_value_is_found_nowhere(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, second, third = (f"hunter-{os.urandom(8).hex()}" for _ in range(3))
    monkeypatch.setenv("MN_MARKER", second)
    # All that any part of it can say.
    monkeypatch.setenv("MODAL_LOGLEVEL", "DEBUG")
    Secret.objects.create("plain", {"A": marker})
    Secret.from_name("plain").update({"C": third})
    file = own.write(
        "app.py",
        """
        import os
        import modal

        app = modal.App("hidden", secrets=[modal.Secret.from_name("plain", required_keys=["A"])])

        @app.function(secrets=[modal.Secret.from_local_environ(["MN_MARKER"])])
        def lengths():
            return [len(os.environ[x]) for x in ("A", "C", "MN_MARKER")], os.getpid(), os.getppid()

        @app.function()
        def fail():
            raise RuntimeError("no luck")

        @app.local_entrypoint()
        def main():
            print(lengths.remote())
            try:
                fail.remote()
            except RuntimeError:
                print("failed")
        """,
    )
    ran = own.cli("run", str(file))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "[23, 23, 23]" in ran.stdout and "failed" in ran.stdout
    deployed = own.cli("deploy", str(file))
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    planned = own.cli("deploy", "--plan", str(file))
    listed = own.cli("secret", "list", "--json")
    rendered = own.cli("render", "--server-url", "http://127.0.0.1:1", str(file))
    assert rendered.returncode == 1 and "a job holds none" in rendered.stderr
    refused = own.cli("secret", "create", "plain", f"A={marker}")
    assert refused.returncode == 1 and "already" in refused.stderr
    with pytest.raises(modal.exception.NotFoundError):
        ask(modal.App("refused"), "A", secrets=[Secret.from_name("absent"), Secret.from_dict({"A": marker})])

    # The container of the deployed one still runs: what other users' processes could see of it.
    _, pid, warm = modal.Function.from_name("hidden", "lengths").remote()
    seen = b"".join(
        Path(f"/proc/{process}/{part}").read_bytes()
        for process in (pid, warm)
        for part in ("cmdline", "environ")
    )
    shown = "".join(x.stdout + x.stderr for x in (ran, deployed, planned, listed, rendered, refused))
    haystack = everything_in(own.home) + shown.encode() + seen
    for value in (marker, second, third):
        assert value.encode() not in haystack
    for name in ("secrets.enc", "secrets.key"):
        assert stat.S_IMODE((own.home / name).stat().st_mode) == 0o600


def test_the_file_without_its_key_is_an_error_that_says_what_to_do(own: Live) -> None:
    assert own.cli("secret", "create", "locked", "A=1").returncode == 0
    assert own.cli("local", "stop").returncode == 0
    (own.home / "secrets.key").write_bytes(os.urandom(32))
    done = own.cli("secret", "list")
    assert done.returncode == 1 and "cannot be decrypted: put back the secrets.key" in done.stderr
    assert "Traceback" not in done.stderr


# --- the command line -------------------------------------------------------------------------------


def test_the_command_line(live: Live) -> None:
    (live.folder / "a.env").write_text("A=1\nB=2\n")
    (live.folder / "b.json").write_text('{"B": "two", "C": "three"}')
    words = ["--from-dotenv", str(live.folder / "a.env"), "--from-json", str(live.folder / "b.json")]
    made = live.cli("secret", "create", "from-cli", "D=x=y z", *words)
    assert made.returncode == 0, made.stderr
    assert "from-cli" in made.stdout and "x=y z" not in made.stdout
    try:
        assert ask(modal.App("cli"), *"ABCD", secrets=[Secret.from_name("from-cli")]) == {
            "A": "1",
            "B": "two",
            "C": "three",
            "D": "x=y z",
        }
        [row] = [
            x for x in json.loads(live.cli("secret", "list", "--json").stdout) if x["Name"] == "from-cli"
        ]
        assert set(row) == {"Name", "Created at", "Created by", "Environment", "Secret ID"}
        again = live.cli("secret", "create", "from-cli", "A=9")
        assert again.returncode == 1 and "--force" in again.stderr and "Traceback" not in again.stderr
        assert live.cli("secret", "create", "from-cli", "A=9", "--force").returncode == 0
        assert ask(modal.App("cli"), *"AB", secrets=[Secret.from_name("from-cli")]) == {"A": "9", "B": None}
    finally:
        gone = live.cli("secret", "delete", "from-cli", "--yes")
    assert gone.returncode == 0
    gone = live.cli("secret", "delete", "from-cli", "--yes")
    assert gone.returncode == 1 and "no Secret 'from-cli'" in gone.stderr
    assert live.cli("secret", "delete", "from-cli", "--yes", "--allow-missing").returncode == 0


def test_wrong_command_lines_are_usage_errors_that_show_no_value(live: Live) -> None:
    bad = live.folder / "bad.json"
    bad.write_text('{"A": 1}')
    for words in (["x"], ["x", "hunter-marker"], ["x", "=hunter-marker"], ["x", "--from-json", str(bad)]):
        done = live.cli("secret", "create", *words)
        assert done.returncode == 2, done.stderr
        assert "hunter-marker" not in done.stderr


def test_a_dash_opens_the_editor(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = live.write("editor.sh", '#!/bin/sh\nprintf \'line one\\nline "two"\\n# a note\\n\' > "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    made = live.cli("secret", "create", "edited", "A=-")
    assert made.returncode == 0, made.stderr
    try:
        found = ask(modal.App("edited"), "A", secrets=[Secret.from_name("edited")])
        assert found == {"A": 'line one\nline "two"'}
    finally:
        Secret.objects.delete("edited")
