"""The same builds by podman and buildah, which need no daemon."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from _container_app import APP, seen
from _image_builds import build
from conftest import Live, new_home, until

import modal_nomad as modal
from tests._docker import Docker
from tests.conftest import NO_IMAGE_TOOLS

_BASE = "localhost/modal-nomad-tests/debian:1"


@pytest.fixture(scope="module")
def storage(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give both programs images of their own, with a Debian among them."""
    if any(shutil.which(x) is None for x in ("podman", "buildah")):
        pytest.skip(NO_IMAGE_TOOLS)
    folder = tmp_path_factory.mktemp("storage")
    settings = folder / "storage.conf"
    settings.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", str(settings))
        container = docker("create", docker.image, "true")
        try:
            command = ["docker", "--host", docker.host, "export", container]
            imported = ["podman", "import", "--quiet", "-", _BASE]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as exported:
                subprocess.run(imported, stdin=exported.stdout, check=True, capture_output=True)
            assert exported.returncode == 0
        finally:
            docker("rm", container)
        yield
        subprocess.run(["podman", "rmi", "--all", "--force"], check=False, capture_output=True)
        # Mounted over itself by the driver, or pytest could not remove it.
        subprocess.run(["umount", "--lazy", f"{folder}/images/overlay"], check=False, capture_output=True)


def test_everything_works_in_an_image_by_podman(
    storage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No daemon of its own is there: the dispatcher has Podman serve a socket, and ends it."""
    if Path("/run/podman/podman.sock").exists():
        pytest.skip("this machine's own Podman is served, whose images are others")
    for name in ("DOCKER_HOST", "CONTAINER_HOST", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    with new_home() as home:
        (home / "local.toml").write_text('[render]\ncontainer_driver = "podman"\n')
        live = Live(home, tmp_path)
        (tmp_path / "data.txt").write_text("of the caller")
        limits = seen(live.python(live.write("app.py", APP.format(image=_BASE))))
        assert limits["memory"] == [str(300 << 20)] and limits["shown"] is False
        script = live.write("alone.py", ALONE.format(image=_BASE))
        assert live.python(script) == "['lo']\n"
        until(lambda: not _containers(), what="the containers' removal")


ALONE = """
import modal_nomad as modal

app = modal.App("alone")

@app.function(image=modal.Image.from_registry({image!r}), block_network=True)
def alone():
    import socket

    return [name for _, name in socket.if_nameindex()]

if __name__ == "__main__":
    with app.run():
        print(alone.remote())
"""


def _containers() -> list[str]:
    return subprocess.check_output(["podman", "ps", "--all", "--quiet"], text=True).split()


@pytest.mark.parametrize("tool", ["podman", "buildah"])
def test_a_build_without_a_daemon(storage: None, tool: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("copied")
    image = (
        modal.Image.debian_slim("3.11")
        .add_local_file(tmp_path / "file", "/place/", copy=True)
        .cmd(["kept"])
        .shell(["/bin/bash", "-euc"])
        .run_commands("cat /place/file > /seen && echo ${#TOKEN} $BASH_VERSION >> /seen", secrets=[_secret()])
    )
    with new_home() as home:
        (home / "local.toml").write_text(
            f'[images]\nbuilder = "{tool}"\nnetwork = "none"\ndebian_slim = "{_BASE}"\n'
        )
        reference = build(image)
        failing = image.run_commands("echo no; exit 3")
        with pytest.raises(
            modal.exception.ImageBuildError, match=r"step 3 \(run echo no; exit 3\)(.|\n)*no\n"
        ):
            build(failing)
    found = json.loads(subprocess.check_output(["podman", "image", "inspect", reference]))[0]
    assert reference in found["RepoTags"] and found["Config"]["Cmd"] == ["kept"]
    assert "hunter2" not in json.dumps(found)
    place = subprocess.check_output(["podman", "image", "mount", reference], text=True).strip()
    try:
        seen = Path(place, "seen").read_text()
        kept = Path(place, "run/modal-nomad-variables")
        assert seen.startswith("copied7 5.") and not (kept.exists() and kept.read_text())
    finally:
        subprocess.run(["podman", "image", "unmount", reference], check=True, capture_output=True)


def _secret() -> modal.Secret:
    return modal.Secret.from_dict({"TOKEN": "hunter2"})
