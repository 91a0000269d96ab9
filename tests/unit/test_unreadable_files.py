"""What cannot be read of a local directory is told before anything is sent, and never left out unsaid."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import modal_nomad as modal
from modal_nomad._automount import _package_files
from modal_nomad._volume_upload import VolumeUpload
from modal_nomad.exception import InvalidError
from modal_nomad.network_file_system import _files

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    # Somebody else has to find the way to it, which they do not to pytest's own folders.
    made = Path(tempfile.mkdtemp(prefix="mn-", dir="/tmp"))
    made.chmod(0o755)
    (made / "seen.txt").write_text("seen")
    yield made
    shutil.rmtree(made)


@contextlib.contextmanager
def plain_user() -> Iterator[None]:
    """Be somebody whom permissions hold back."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def locked(path: Path, *, directory: bool) -> Path:
    if directory:
        path.mkdir()
        (path / "inside").write_text("x")
    else:
        path.write_text("x")
    path.chmod(0)
    return path


@pytest.fixture(params=[True, False], ids=["directory", "file"])
def hidden(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    path = locked(folder / "hidden", directory=request.param)
    yield path
    path.chmod(0o700)


def resolve(folder: Path, ignore: list[str]) -> list[str]:
    image = modal.Image.debian_slim().add_local_dir(folder, "/x", ignore=ignore)
    return [file.path for file in image._resolve()[0].files]


def test_an_image_names_what_cannot_be_read(folder: Path, hidden: Path) -> None:
    with plain_user():
        with pytest.raises(InvalidError, match=r"hidden' cannot be read \(Permission denied\).*ignore="):
            resolve(folder, [])
        assert resolve(folder, ["hidden"]) == ["/x/seen.txt"]


def test_a_volume_names_what_cannot_be_read(folder: Path, hidden: Path) -> None:
    sent = []

    async def send(work: object) -> None:
        sent.append(work)
        # It is never asked: nothing goes before all was read.
        work(SimpleNamespace(missing=None, put_chunk=None), "vo-1")  # type: ignore[operator]

    refused = pytest.raises(InvalidError, match=r"hidden' cannot be read \(Permission denied\)")
    with plain_user(), refused, VolumeUpload(send, False) as batch:
        batch.put_directory(folder, "/")
    # An open directory may yet have files that are not.
    assert len(sent) == hidden.is_file()


def test_a_network_file_system_names_what_cannot_be_read(folder: Path) -> None:
    hidden = locked(folder / "hidden", directory=True)
    with plain_user(), pytest.raises(InvalidError, match=r"hidden' cannot be read \(Permission denied\)"):
        list(_files(folder))
    hidden.chmod(0o700)
    os.mkfifo(hidden / "pipe")
    with pytest.raises(InvalidError, match="pipe' is no file"):
        list(_files(folder))


def test_a_package_has_no_modules_where_nobody_may_look(folder: Path) -> None:
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    hidden = locked(package / "data", directory=True)
    with plain_user():
        assert list(_package_files("package", str(package / "__init__.py"))) == ["package/__init__.py"]
    hidden.chmod(0o700)


def test_what_has_no_content_is_left_out_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "elsewhere").symlink_to("/tmp")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "listening"))
        with caplog.at_level(logging.WARNING, "modal_nomad"):
            assert resolve(folder, []) == ["/x/seen.txt"]
    told = [record.getMessage() for record in caplog.records]
    assert sorted(text.split(" ")[0].rpartition("/")[2] for text in told) == [
        "dangling",
        "elsewhere",
        "listening",
        "pipe",
    ]
    assert all("ignore=" in text for text in told)
    caplog.clear()
    assert resolve(folder, ["*", "!seen.txt"]) == ["/x/seen.txt"]
    assert not caplog.records
