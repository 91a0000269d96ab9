"""Functions as steps of an Image: real Functions, whose changes to the file system are the layer."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _image_builds import Builds, build, build_all, building, user_module
from conftest import until

import modal_nomad as modal
from tests._docker import Docker

base = modal.Image.debian_slim("3.11")
_MADE = """
import os
import shutil
import time
from pathlib import Path

import modal_nomad as modal

SIZE = 3

def made(path, *, word):
    assert os.environ["MORE"] == "more" and not modal.is_local()
    Path(path).write_text(f"{word * SIZE} {len(os.environ['TOKEN'])}")
    print("the function was here")

def fetched(kept, name):
    here = Path("/data/given").read_text()
    Path("/data/answer").write_text(here + "!")
    kept.commit()
    Path("/shared/left").write_text("for all")
    words = modal.Dict.from_name(name)
    words["limit"] = Path("/sys/fs/cgroup/memory.max").read_text() if V2 else words["asked"]
    Path("/model").write_text(here)

V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()

def changes():
    assert os.getuid() == 0
    Path("/old/gone").unlink()
    shutil.rmtree("/old/folder")
    Path("/old/link").unlink()
    Path("/old/link").mkdir()
    Path("/old/kept").write_text("changed")
    Path("/old/mode").chmod(0o4750)
    os.chown("/old/owner", 5, 6)
    made = Path("/made/ünd")
    made.mkdir(parents=True)
    (made / "file").write_bytes(bytes(range(256)) * 40000)
    os.link(made / "file", made / "hard")
    os.symlink("../nowhere", made / "soft")
    with open(made / "sparse", "wb") as file:
        file.seek(50_000_000)
        file.write(b"end")

def nothing():
    pass

def held(name):
    words = modal.Dict.from_name(name)
    run = words.get("runs", 0) + 1
    Path(f"/run-{run}").write_text("")
    words["container"] = os.environ["MODAL_TASK_ID"]
    words["runs"] = run
    if run == 1:
        time.sleep(3600)

def counted(name):
    modal.Queue.from_name(name).put(1)
    Path("/counted").write_text("once")

def sleeps():
    time.sleep(3600)

async def fails():
    print("almost")
    raise ValueError("no model today")
"""


@pytest.fixture(scope="module")
def builds(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    folder = tmp_path_factory.mktemp("run-function")
    with building(docker, folder) as found:
        yield found


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the user's that an image without this test's packages can import."""
    with user_module(tmp_path, monkeypatch, "mn_steps", _MADE) as found:
        yield found


def test_a_function_makes_a_layer(
    builds: Builds, made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = modal.Secret.from_dict({"TOKEN": "hunter2"})

    def image(word: str) -> modal.Image:
        return base.env({"MORE": "more"}).run_function(
            made.made, args=["/model"], kwargs={"word": word}, secrets=[secret]
        )

    with modal.enable_output():
        reference = build(image("ab"))
    assert "\nthe function was here\n" in capsys.readouterr().out
    assert builds.cat(reference, "/model") == "ababab 7"
    assert builds.run(reference, "sh", "-c", "find /run/modal-nomad* -type f | wc -l") == "0"
    assert "hunter2" not in builds.docker("history", "--no-trunc", reference)
    builds.asked()
    assert build(image("ab")) == reference and builds.asked() == []
    # Other arguments, and another value of a global that the source names.
    assert builds.cat(build(image("x")), "/model") == "xxx 7"
    monkeypatch.setattr(made, "SIZE", 2)
    assert build(image("ab")) != reference


def test_a_function_that_fails_says_how(builds: Builds, made: Any) -> None:
    wanted = r"^image step 1 \(run function fails\) failed:(.|\n)*ValueError: no model today"
    with pytest.raises(modal.exception.ImageBuildError, match=wanted):
        build(base.run_function(made.fails))


def test_a_function_has_what_functions_have(builds: Builds, made: Any) -> None:
    kept = modal.Volume.from_name("mn-of-a-build", create_if_missing=True)
    shared = modal.NetworkFileSystem.from_name("mn-shared-with-a-build", create_if_missing=True)
    words = modal.Dict.from_name("mn-words-of-a-build", create_if_missing=True)
    words["asked"] = str(200 << 20)
    with kept.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(b"weights"), "given")
    image = base.run_function(
        made.fetched,
        args=[kept, "mn-words-of-a-build"],
        volumes={"/data": kept},
        network_file_systems={"/shared": shared},
        cpu=(0.5, 1),
        memory=(64, 200),
    )
    reference = build(image)
    assert b"".join(kept.read_file("answer")) == b"weights!"
    assert b"".join(shared.read_file("left")) == b"for all"
    assert words["limit"].strip() == str(200 << 20)
    # What was shown there is no part of the image.
    assert builds.run(reference, "sh", "-c", "cat /model; ls -d /d* /s* /l*") == (
        "weights/dev\n/lib\n/lib64\n/sbin\n/srv\n/sys"
    )


def test_a_function_that_takes_too_long_is_ended(builds: Builds, made: Any) -> None:
    wanted = r"^image step 1 \(run function sleeps\) failed:(.|\n)*ran longer than its timeout of 1 s"
    with pytest.raises(modal.exception.ImageBuildError, match=wanted):
        build(base.run_function(made.sleeps, timeout=1))


def test_all_that_a_function_changes_is_kept(builds: Builds, made: Any) -> None:
    before = base.run_commands(
        "mkdir -p /old/folder/deep && cd /old && touch gone folder/deep/x kept mode owner && ln -s kept link"
    ).dockerfile_commands('ENTRYPOINT ["/usr/bin/env"]', 'CMD ["true"]', "USER 65534")
    reference = build(before.run_function(made.changes))
    assert builds.run(reference, "sh", "-c", "cat /old/kept; ls /old; ls -A /made/ünd") == (
        "changedkept\nlink\nmode\nowner\nfile\nhard\nsoft\nsparse"
    )
    listed = builds.run(
        reference, "find", "/old", "/made", "-mindepth", "1", "-printf", "%p %y %m %U %G %n %s %l\n"
    )
    found = {path: rest.strip() for path, _, rest in (line.partition(" ") for line in listed.splitlines())}
    assert found["/old/link"].startswith("d ") and found["/old/mode"].startswith("f 4750 0 0 ")
    assert " 5 6 " in found["/old/owner"]
    assert found["/made/ünd/file"] == found["/made/ünd/hard"] == "f 644 0 0 2 10240000"
    assert found["/made/ünd/soft"] == "l 777 0 0 1 10 ../nowhere"
    assert found["/made/ünd/sparse"] == "f 644 0 0 1 50000003"
    assert builds.docker(
        "image", "inspect", "--format", "{{.Config.Entrypoint}} {{.Config.Cmd}}", reference
    ) == ("[/usr/bin/env] [true]")


def test_a_function_that_changes_nothing(builds: Builds, made: Any) -> None:
    assert builds.run(build(base.run_function(made.nothing)), "echo", "there") == "there"


def test_two_images_that_share_a_step_have_it_run_once(builds: Builds, made: Any) -> None:
    name = "mn-runs-of-a-step"
    queue = modal.Queue.from_name(name, create_if_missing=True)
    assert queue.len() == 0
    shared = base.run_function(made.counted, args=[name])
    one, two = build_all(shared.run_commands("echo 1 > /n"), shared.run_commands("echo 2 > /n"))
    assert (builds.cat(one, "/n"), builds.cat(two, "/n")) == ("1", "2")
    assert builds.cat(two, "/counted") == "once" and queue.len() == 1


def test_an_image_that_is_gone_is_made_of_what_was_kept(builds: Builds, made: Any) -> None:
    name = "mn-runs-of-another-step"
    queue = modal.Queue.from_name(name, create_if_missing=True)
    assert queue.len() == 0
    stepped = base.run_function(made.counted, args=[name])
    builds.docker("image", "rm", "--force", build(stepped))
    assert builds.cat(build(stepped.run_commands("echo more > /more")), "/counted") == "once"
    assert queue.len() == 1


def _killed_container(builds: Builds, words: modal.Dict) -> None:
    builds.docker("kill", f"modal-nomad-{words['container']}")


def _killed_dispatcher(builds: Builds, words: modal.Dict) -> None:
    builds.live.kill()


@pytest.mark.parametrize("fault", [_killed_container, _killed_dispatcher])
def test_a_step_that_is_lost_runs_again(
    builds: Builds, made: Any, fault: Callable[[Builds, modal.Dict], None]
) -> None:
    words = modal.Dict.from_name(f"mn{fault.__name__.replace('_', '-')}", create_if_missing=True)
    found: list[str] = []
    image = base.run_function(made.held, args=[words._name])
    thread = threading.Thread(target=lambda: found.append(build(image)))
    thread.start()
    until(lambda: words.get("runs") == 1, what="the first run")
    fault(builds, words)
    thread.join(200)
    (reference,) = found
    # What the lost one had changed is gone with it.
    assert builds.run(reference, "sh", "-c", "ls -d /run-*") == "/run-2"


_ENDLESS = """
import modal_nomad as modal

def endless(name):
    import os
    import time

    modal.Dict.from_name(name)["container"] = os.environ["MODAL_TASK_ID"]
    time.sleep(3600)

image = modal.Image.debian_slim("3.11").run_function(endless, args=["{name}"])
app = modal.App("endless", image=image)
app.function(serialized=True, name="f")(lambda: 1)
"""


def test_a_step_that_nobody_waits_for_is_ended(builds: Builds, tmp_path: Path) -> None:
    words = modal.Dict.from_name("mn-endless-step", create_if_missing=True)
    path = tmp_path / "endless.py"
    path.write_text(_ENDLESS.format(name=words._name))
    client = builds.live.start("-m", "modal_nomad", "deploy", str(path))
    until(lambda: words.get("container"), what="the step's container")
    name = f"modal-nomad-{words['container']}"

    def running() -> bool:
        return name in builds.docker("ps", "--format", "{{.Names}}")

    assert running()
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=100)
    until(lambda: not running(), what="the end of the step's container")
