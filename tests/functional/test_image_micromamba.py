"""Conda packages by a real micromamba, from a channel made here: no index is asked."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from _image_builds import PYTHON, Builds, build, building

import modal_nomad as modal
from tests._docker import Docker
from tests.conftest import NO_MICROMAMBA

_BASE = "modal-nomad-tests/micromamba:1"
# As an operator does who has a mirror of conda-forge.
_CONDARC = "channel_alias: file:///channels\n"


def package(channel: Path, name: str, version: str, files: Mapping[str, str]) -> None:
    """Add a package of programs to a channel."""
    folder = channel / "linux-64"
    folder.mkdir(parents=True, exist_ok=True)
    (channel / "noarch").mkdir(exist_ok=True)
    index = {
        "name": name,
        "version": version,
        "build": "0",
        "build_number": 0,
        "depends": [],
        "arch": "x86_64",
        "platform": "linux",
        "subdir": "linux-64",
    }
    paths = [
        {
            "_path": x,
            "path_type": "hardlink",
            "sha256": hashlib.sha256(y.encode()).hexdigest(),
            "size_in_bytes": len(y.encode()),
        }
        for x, y in files.items()
    ]
    content = {
        **files,
        "info/index.json": json.dumps(index),
        "info/files": "\n".join([*files, ""]),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}),
    }
    place = folder / f"{name}-{version}-0.tar.bz2"
    with tarfile.open(place, "w:bz2") as archive:
        for path, text in content.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
    data = place.read_bytes()
    known = {
        **index,
        "size": len(data),
        "md5": hashlib.md5(data).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    for subdir in ("linux-64", "noarch"):
        listed = channel / subdir / "repodata.json"
        repodata = json.loads(listed.read_text()) if listed.exists() else {"packages": {}}
        if subdir == "linux-64":
            repodata["packages"][place.name] = known
        listed.write_text(json.dumps({"info": {"subdir": subdir}, "packages": repodata["packages"]}))


def micromamba_image(docker: Docker, program: str, folder: Path) -> None:
    """Make an image of a micromamba of this machine, and of two channels."""
    context = folder / "context"
    (context / "lib").mkdir(parents=True)
    shutil.copy(program, context / "micromamba.real")
    needed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    for word in needed.split():
        # What the C library brings is the image's own.
        if word.startswith("/") and not word.startswith(("/lib64/ld", "/lib/x86_64-linux-gnu/libc.so")):
            shutil.copy(word, context / "lib")
    (context / "micromamba").write_text(
        '#!/bin/sh\nLD_LIBRARY_PATH=/opt/micromamba/lib exec /opt/micromamba/micromamba.real "$@"\n'
    )
    (context / "micromamba").chmod(0o755)
    (context / "condarc").write_text(_CONDARC)
    python = '#!/bin/sh\nexec /usr/bin/python3 "$@"\n'
    forge, mine = context / "channels/conda-forge", context / "channels/mine"
    package(forge, "python", "3.11.9", {"bin/python": python, "bin/python3": python})
    package(forge, "pip", "24.0", {"bin/pip": "#!/bin/sh\n"})
    for version in ("1.0", "2.5"):
        package(mine, "mn-tool", version, {"bin/mn-tool": f"#!/bin/sh\necho tool {version}\n"})
    package(mine, "mn-listed", "3.0", {"bin/mn-listed": "#!/bin/sh\necho listed\n"})
    lines = [
        f"FROM {PYTHON}",
        "COPY channels /channels",
        "COPY condarc /root/.condarc",
        "COPY micromamba.real lib /opt/micromamba/",
        "COPY lib /opt/micromamba/lib",
        "COPY micromamba /usr/local/bin/micromamba",
    ]
    (context / "Dockerfile").write_text("\n".join([*lines, ""]))
    docker("build", "--network=none", "--tag", _BASE, str(context))


@pytest.fixture(scope="module")
def builds(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    program = shutil.which("micromamba")
    if program is None:
        pytest.skip(NO_MICROMAMBA)
    folder = tmp_path_factory.mktemp("builds")
    with building(docker, folder, micromamba=_BASE) as found:
        micromamba_image(docker, program, folder)
        yield found


def test_packages_of_conda(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "spec.yml").write_text("name: base\nchannels: [mine]\ndependencies: [mn-listed=3]\n")
    image = modal.Image.micromamba("3.11").micromamba_install(
        "mn-tool<2", spec_file=str(tmp_path / "spec.yml"), channels=["mine"]
    )
    reference = build(
        image.run_commands("mn-tool > /said && mn-listed >> /said && command -v python >> /said")
    )
    assert builds.cat(reference, "/said") == "tool 1.0\nlisted\n/opt/conda/bin/python"
    newer = build(modal.Image.micromamba("3.11").micromamba_install("mn-tool", channels=["mine"]))
    assert builds.run(newer, "mn-tool") == "tool 2.5"
    with pytest.raises(
        modal.exception.ImageBuildError, match=r"^image step 2 \(micromamba install mn-none\)"
    ):
        build(modal.Image.micromamba("3.11").micromamba_install("mn-none", channels=["mine"]))
