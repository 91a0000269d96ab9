"""Container images built for real, by Docker, as a deployment has them built; no index is asked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _image_builds import Builds, build, build_all, building, user_module, wheel
from conftest import Live, until

import modal_nomad as modal
from modal_nomad.client import Client
from tests._docker import Docker

base = modal.Image.debian_slim("3.11")


@pytest.fixture(scope="module")
def builds(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    folder = tmp_path_factory.mktemp("builds")
    with building(docker, folder, python="modal-nomad-tests/interpreter:{python}") as found:
        yield found


def config(builds: Builds, reference: str) -> dict[str, object]:
    return dict(json.loads(builds.docker("image", "inspect", "--format", "{{json .Config}}", reference)))


def test_commands_see_what_was_set_before_them(builds: Builds) -> None:
    image = (
        base.env({"WORD": 'a "b" $c'})
        .workdir("/work/place")
        .run_commands('echo "$WORD" > said', ["pwd >> said", "echo $MORE >> said"], env={"MORE": "more"})
        .entrypoint(["/usr/bin/env", "A=1"])
        .cmd(["python", "-V"])
    )
    reference = build(image)
    assert reference.startswith("localhost/modal-nomad:")
    assert builds.cat(reference, "/work/place/said") == 'a "b" $c\n/work/place\nmore'
    found = config(builds, reference)
    assert (found["Entrypoint"], found["Cmd"]) == (["/usr/bin/env", "A=1"], ["python", "-V"])
    assert found["WorkingDir"] == "/work/place" and "MORE" not in str(found["Env"])


def test_another_shell(builds: Builds) -> None:
    image = base.shell(["/bin/bash", "-euc"]).run_commands("echo ${BASH_VERSION%%.*} > /version")
    assert int(builds.cat(build(image), "/version")) >= 4


def test_packages_of_debian(builds: Builds, tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN/control").write_text(
        "Package: mn-tool\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    (package / "opt").mkdir()
    (package / "opt/mn-tool").write_text("installed")
    repository = tmp_path / "repository"
    repository.mkdir()
    deb = repository / "mn-tool.deb"
    command = ["dpkg-deb", "--build", "--root-owner-group", package, deb]
    subprocess.run(command, check=True, capture_output=True)
    listed = (package / "DEBIAN/control").read_text()
    size, digest = deb.stat().st_size, hashlib.sha256(deb.read_bytes()).hexdigest()
    (repository / "Packages").write_text(f"{listed}Filename: ./mn-tool.deb\nSize: {size}\nSHA256: {digest}\n")
    image = (
        base.add_local_dir(repository, "/repository", copy=True)
        .run_commands("echo 'deb [trusted=yes] file:/repository ./' > /etc/apt/sources.list")
        .apt_install("mn-tool")
    )
    assert builds.cat(build(image), "/opt/mn-tool") == "installed"


def test_packages_of_python(builds: Builds, tmp_path: Path) -> None:
    wheel(tmp_path, "mn_one", "ANSWER = 1\n")
    wheel(tmp_path, "mn_two", "ANSWER = 2\n")
    (tmp_path / "requirements.txt").write_text("mn-two\n")
    files = modal.FilePatternMatcher("**/*.txt")
    image = (
        base.add_local_dir(tmp_path, "/wheels", copy=True, ignore=files)
        .shell(["/bin/sh", "-c"])
        .env({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"})
        .pip_install("mn-one")
        .pip_install_from_requirements(str(tmp_path / "requirements.txt"))
    )
    program = "import mn_one, mn_two; print(mn_one.ANSWER + mn_two.ANSWER)"
    assert builds.run(build(image), "python", "-c", program) == "3"


def test_lines_of_a_dockerfile(builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/deep").mkdir(parents=True)
    for name in ("kept.txt", "left.log", "deep/kept.txt"):
        (tmp_path / "data" / name).write_text(name)
    (tmp_path / ".dockerignore").write_text("**/*.log\n")
    (tmp_path / "elsewhere").write_text("given")
    image = base.dockerfile_commands(
        "COPY data /data",
        ["COPY named.txt /", "RUN cat /named.txt > /seen"],
        context_files={"named.txt": str(tmp_path / "elsewhere")},
    )
    reference = build(image)
    assert (
        builds.run(reference, "sh", "-c", "cd /data; find . -type f | sort") == "./deep/kept.txt\n./kept.txt"
    )
    assert builds.cat(reference, "/seen") == "given"
    # Other contents are another image, and the same ones are not.
    assert build(image) == reference
    (tmp_path / "data/kept.txt").write_text("changed")
    assert builds.cat(build(image), "/data/kept.txt") == "changed"


def test_a_whole_dockerfile(builds: Builds, docker: Docker, tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(
        f"ARG word=nothing\nFROM {docker.image} AS first\nARG word\nRUN echo $word > /first\n"
        f"FROM {docker.image}\nCOPY --from=first /first /\nCOPY a.txt \\\n  /a.txt\n"
    )
    (tmp_path / "a.txt").write_text("a")
    image = modal.Image.from_dockerfile(path, context_dir=tmp_path, build_args={"word": "said"})
    reference = build(image.run_commands("cat /first /a.txt > /both"))
    assert builds.cat(reference, "/both") == "said\na"


def test_python_is_added_to_an_image_that_has_none(builds: Builds, docker: Docker) -> None:
    made = "printf '#!/bin/sh\\necho added' > /python/bin/python3 && chmod +x /python/bin/python3"
    interpreter = f"FROM {docker.image}\nRUN mkdir -p /python/bin && {made}\n"
    docker("build", "--tag", "modal-nomad-tests/interpreter:3.12", "-", data=interpreter.encode())
    image = modal.Image.from_registry(
        docker.image, add_python="3.12", setup_dockerfile_commands=["RUN rm /usr/bin/python3"]
    )
    reference = build(image)
    assert builds.run(reference, "python") == builds.run(reference, "python3") == "added"


def test_secrets_are_seen_by_their_step_alone(builds: Builds) -> None:
    secret = modal.Secret.from_dict({"TOKEN": "hunter'2 $x"})
    image = (
        base.workdir("/made")
        .cmd(["true"])
        .run_commands('echo "${#TOKEN} $MORE" > length', secrets=[secret], env={"MORE": "more"})
        .run_commands("env > /variables")
    )
    reference = build(image)
    assert builds.cat(reference, "/made/length") == "11 more"
    assert "TOKEN" not in builds.cat(reference, "/variables")
    everything = builds.docker("image", "inspect", reference) + builds.docker(
        "history", "--no-trunc", reference
    )
    assert "hunter" not in everything and "hunter" not in " ".join(builds.asked())
    assert config(builds, reference)["Cmd"] == ["true"] and not config(builds, reference).get("Entrypoint")
    assert builds.run(reference, "sh", "-c", "test ! -s /run/modal-nomad-variables && echo gone") == "gone"


def test_private_repositories_are_reached_with_a_token_that_stays_out(builds: Builds, tmp_path: Path) -> None:
    wheel(tmp_path, "mn_private", "ANSWER = 7\n")
    # In place of git and of a host: says what address the token would go to, and has the package.
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/__init__.py").write_text("")
    (tmp_path / "pip/__main__.py").write_text(
        "import os, sys\nopen('/asked', 'w').write(repr((sys.argv[1:], os.environ['GIT_CONFIG_KEY_0'],"
        " os.environ['GIT_CONFIG_VALUE_0'], os.environ['GIT_SSL_CAINFO'])))\n"
    )
    image = (
        base.add_local_dir(tmp_path / "pip", "/root/fake/pip", copy=True)
        .env({"PYTHONPATH": "/root/fake"})
        .pip_install_private_repos(
            "github.com/ecorp/private@1.0",
            git_user="someone",
            secrets=[modal.Secret.from_dict({"GITHUB_TOKEN": "t0ken"})],
            env={"GIT_SSL_CAINFO": "/etc/own authority.pem"},
        )
    )
    asked = builds.cat(build(image), "/asked")
    assert "git+https://github.com/ecorp/private@1.0" in asked
    assert "'url.https://someone:t0ken@github.com/.insteadOf', 'https://github.com/'" in asked
    assert "'/etc/own authority.pem'" in asked
    with pytest.raises(modal.exception.ImageBuildError, match="a Secret of this step needs GITLAB_TOKEN"):
        build(
            base.pip_install_private_repos(
                "gitlab.com/a/b", git_user="a", secrets=[modal.Secret.from_dict({"OTHER": "x"})]
            )
        )


def test_micromamba_poetry_and_uv_are_given_what_was_asked(builds: Builds, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\necho "$0 $*" >> /said\nls >> /said\n')
    tool.chmod(0o755)
    (tmp_path / "spec.yml").write_text("dependencies: [a]")
    (tmp_path / "pyproject.toml").write_text("[tool.poetry]\n")
    (tmp_path / "poetry.lock").write_text("")
    (tmp_path / "uv.lock").write_text("version = 1")
    wheel(tmp_path, "poetry", "")
    wheel(tmp_path, "uv", "import os, sys; print(sys.argv, os.listdir('/.uv'), file=open('/said', 'a'))")
    image = (
        base.add_local_file(str(tool), "/usr/local/bin/micromamba", copy=True)
        .add_local_file(str(tool), "/usr/local/bin/poetry", copy=True)
        .add_local_dir(tmp_path, "/wheels", copy=True, ignore=["*", "!*.whl"])
        .env({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"})
        .micromamba_install("numpy>=2", spec_file=str(tmp_path / "spec.yml"), channels=["conda-forge"])
        .poetry_install_from_file(
            str(tmp_path / "pyproject.toml"), poetry_version="1.0", with_=["test"], without=["docs", "dev"]
        )
        .uv_sync(tmp_path, uv_version="1.0", groups=["serving"])
    )
    said = builds.cat(build(image), "/said")
    assert "micromamba install -n base -y -c conda-forge -f /.modal-nomad/spec.yml numpy>=2" in said
    assert "poetry install --no-root --no-interaction --with test --without docs,dev" in said
    assert "poetry.lock\npyproject.toml" in said
    assert "'sync', '--project', '/.uv', '--python', '/usr/bin/python', '--no-install-workspace'" in said
    assert "'--frozen', '--group', 'serving'] ['" in said and "'uv.lock'" in said


def test_a_step_that_fails_shows_its_last_lines(builds: Builds) -> None:
    image = base.run_commands("echo before").run_commands("echo almost; echo and now; exit 3")
    wanted = r"(?s)^image step 2 \(run echo almost; echo and now; exit 3\) failed:\n.*and now\n.*3"
    with pytest.raises(modal.exception.ImageBuildError, match=wanted) as caught:
        build(image)
    assert caught.value.image_id.startswith("im-")
    # What docker says of itself tells nobody why.
    assert not any(word in str(caught.value) for word in ("---> ", "FROM", "build context"))
    # What was built before it is not built again.
    builds.asked()
    with pytest.raises(modal.exception.ImageBuildError):
        build(image)
    assert sum(line.startswith("build ") for line in builds.asked()) == 1


def buildkit() -> str:
    """Return a docker program that builds with BuildKit; skips where there is none."""
    for program in (shutil.which("docker") or "", "/usr/bin/docker"):
        command = [program, "build", "--help"]
        if program and os.path.exists(program):
            done = subprocess.run(command, env={**os.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True)
            if done.returncode == 0:
                return program
    pytest.skip("no docker program with BuildKit")


def test_builds_by_buildkit(docker: Docker, tmp_path: Path) -> None:
    client = f"env DOCKER_BUILDKIT=1 {buildkit()}"
    image = (
        base.run_commands("echo one > /one")
        .add_local_file(__file__, "/copied", copy=True)
        .dockerfile_commands("RUN --mount=type=cache,target=/cache touch /cache/x && ls /cache > /kept")
        .run_commands("echo ${#TOKEN} > /two", secrets=[modal.Secret.from_dict({"TOKEN": "hunter2"})])
    )
    with building(docker, tmp_path, client=client) as builds:
        reference = build(image)
        assert builds.run(reference, "cat", "/one", "/kept", "/two") == "one\nx\n7"
        wanted = r"(?s)^image step 5 \(run echo almost; exit 3\) failed:\n.*almost\n.*3"
        with pytest.raises(modal.exception.ImageBuildError, match=wanted) as caught:
            build(image.run_commands("echo almost; exit 3"))
    assert not any(x in str(caught.value) for x in ("sha256:", "[internal]", "CACHED", "DONE"))


def test_an_image_that_is_known_asks_docker_nothing(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("copied")
    image = base.add_local_dir(tmp_path, "/copied", copy=True).run_commands("cat /copied/file")
    reference = build(image)
    assert any(line.startswith("build ") for line in builds.asked())
    # Nor is the server asked what it has of the files.
    asked: list[str] = []
    real = Client._request

    async def request(client: Client, method: str, args: Any) -> Any:
        asked.append(method)
        return await real(client, method, args)

    monkeypatch.setattr(Client, "_request", request)
    assert build(image) == reference
    assert builds.asked() == [] and asked.count("image.known") == 1
    assert not {"blob.missing", "image.ensure"} & set(asked)
    (tmp_path / "file").write_text("changed")
    assert build(image) != reference and "blob.missing" in asked


def test_an_image_is_built_anew_when_asked_to(builds: Builds) -> None:
    image = base.run_commands("echo once").run_commands("cat /proc/sys/kernel/random/uuid > /drawn")
    first = builds.cat(build(image), "/drawn")
    again = base.run_commands("echo once").run_commands(
        "cat /proc/sys/kernel/random/uuid > /drawn", force_build=True
    )
    builds.asked()
    assert builds.cat(build(again), "/drawn") != first
    assert sum(line.startswith("build ") for line in builds.asked()) == 1


def test_two_who_want_one_image_have_it_built_once(builds: Builds) -> None:
    image = base.run_commands("echo only once", "sleep 1")
    found: list[str] = []
    builds.asked()
    threads = [threading.Thread(target=lambda: found.append(build(image))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 2
    assert sum(line.startswith("build ") for line in builds.asked()) == 1


_ENDLESS = """
import modal_nomad as modal

secrets = [modal.Secret.from_dict({{"TOKEN": "x"}})] if {secret} else []
image = modal.Image.debian_slim("3.11").run_commands("echo {word}; sleep 1000003", secrets=secrets)
app = modal.App("endless", image=image)
app.function(serialized=True, name="f")(lambda: 1)
"""


@pytest.mark.parametrize("secret", [False, True])
def test_a_build_that_nobody_waits_for_is_ended(builds: Builds, tmp_path: Path, secret: bool) -> None:
    """It is a container of docker's builder, or one that has the values of Secrets."""
    path = tmp_path / "endless.py"
    path.write_text(_ENDLESS.format(secret=secret, word=f"endless {secret}"))

    def running() -> bool:
        return "sleep 1000003" in builds.docker("ps", "--all", "--no-trunc", "--format", "{{.Command}}")

    clients = [builds.live.start("-m", "modal_nomad", "deploy", str(path)) for _ in range(2)]
    said = [(until(client.stdout.readline), client)[1] for client in clients if client.stdout]
    until(running, what="the build's container")
    for client in said:
        assert running() and client.poll() is None
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=100)
    until(lambda: not running(), what="the end of the build's container")


def test_two_images_of_one_app(builds: Builds) -> None:
    one, two = build_all(base.run_commands("echo 1 > /n"), base.run_commands("echo 2 > /n"))
    assert (builds.cat(one, "/n"), builds.cat(two, "/n")) == ("1", "2")


def test_the_build_is_seen_as_it_goes(builds: Builds, capsys: pytest.CaptureFixture[str]) -> None:
    image = base.run_commands("echo a word of the build")
    with modal.enable_output():
        build(image)
        build(image)
    said = capsys.readouterr().out
    assert said.count("Building image im-") == said.count("Built image im-") == 1
    assert said.index("=> image step 1") < said.index("\na word of the build\n") < said.index("Built image")


def test_no_container_runtime_at_all(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    wanted = r"^image step 1 \(apt install git\) needs a container runtime: install docker, podman or buildah"
    with pytest.raises(modal.exception.ImageBuildError, match=wanted):
        build(modal.Image.debian_slim().apt_install("git"))


_MADE = """
import os
from pathlib import Path

def answer():
    import mn_one
    # Not an environment that each container makes for itself.
    return mn_one.ANSWER, "MODAL_IMAGE" in os.environ

def read():
    return Path("/kept").read_text()
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the user's that an image without this test's packages can import."""
    with user_module(tmp_path, monkeypatch, "mn_made", _MADE) as found:
        yield found


def test_an_image_that_somebody_removed_is_built_anew(
    builds: Builds, made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    image = base.run_commands("echo kept > /kept")
    reference = build(image)
    builds.docker("image", "rm", "--force", reference)
    app = modal.App("removed", image=image)
    read = app.function()(made.read)
    with modal.enable_output(), app.run():
        assert read.remote() == "kept\n"
    assert f"the image {reference} is gone, and is built anew" in capsys.readouterr().out


def test_packages_of_a_plain_image_are_built_where_everything_is_a_container(
    docker: Docker, made: Any, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "mn_one", "ANSWER = 1\n")
    image = (
        base.add_local_dir(wheels, "/wheels", copy=True)
        .env({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"})
        .pip_install("mn-one")
    )
    with building(docker, tmp_path, render={"driver": "docker", "default_image": docker.image}) as builds:
        app = modal.App("plain", image=image)
        answer = app.function()(made.answer)
        with app.run():
            assert answer.remote() == (1, False)
        assert any(line.startswith("build ") for line in builds.asked())
        with app.run():
            assert answer.remote() == (1, False)
        assert builds.asked() == []
