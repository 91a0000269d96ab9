"""A disk that is full: one clear error, nothing lost, nothing torn, and work goes on when there is space."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from tests._disks import filled, mounted

_MIB = 1 << 20


@contextlib.contextmanager
def small_disk(own: Live, folder: Path, mib: int) -> Iterator[None]:
    """Let a directory of a dispatcher be a disk of so many MiB, until the dispatcher has ended."""
    with mounted(folder, mib):
        try:
            yield
        finally:
            own.end()


def upload(volume: modal.Volume, name: str, data: bytes) -> None:
    with volume.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(data), name)


def content(volume: modal.Volume, name: str) -> bytes:
    return b"".join(volume.read_file(name))


def writer() -> Callable[..., str]:
    def write(volume: modal.Volume, size: int) -> str:
        """Write and commit; returns the error."""
        if size:
            with open("/mn-data/made", "wb") as file:
                file.write(b"".join(os.urandom(4096) for _ in range(size >> 12)))
        try:
            volume.commit()
        except OSError as error:
            return f"{error.errno} {error.strerror}"
        return ""

    return write


def test_the_disk_of_the_blobs(own: Live) -> None:
    disk = own.home / "blobs"
    with small_disk(own, disk, 24):
        volume = modal.Volume.from_name("full", create_if_missing=True)
        first = os.urandom(5 * _MIB)
        upload(volume, "first", first)
        app = modal.App("writes")
        write: Any = app.function(serialized=True, volumes={"/mn-data": volume})(writer())
        with app.run():
            with filled(disk):
                with pytest.raises(OSError, match=r"no space left for blobs in .*: free some") as caught:
                    upload(volume, "first", os.urandom(6 * _MIB))
                assert caught.value.errno == errno.ENOSPC
                found = write.remote(volume, 6 * _MIB)
                assert found.startswith(f"{errno.ENOSPC} no space left for blobs in ")
                # What is there is whole, and read.
                assert content(volume, "first") == first
            # What was written in the container is not lost, nor has it to be written again.
            assert write.remote(volume, 0) == ""
        assert len(content(volume, "made")) == 6 * _MIB and content(volume, "first") == first
        upload(volume, "second", b"2" * 100_000)
        assert content(volume, "second") == b"2" * 100_000


def _files(volume: modal.Volume) -> set[str]:
    return {x.path for x in volume.iterdir("/", recursive=True) if x.type is modal.volume.FileEntryType.FILE}


def test_the_disk_of_the_store(own: Live) -> None:
    with small_disk(own, own.home, 24):
        volume = modal.Volume.from_name("full", create_if_missing=True)
        values = modal.Dict.from_name("full", create_if_missing=True)
        values["before"] = 1
        jobs = modal.Queue.from_name("full", create_if_missing=True)
        put = [b"before"]
        jobs.put(put[0])
        upload(volume, "before", b"b" * 8000)
        with filled(own.home):
            done: list[int] = []
            with pytest.raises(OSError, match=r"no space left for the store .*: free some") as caught:
                # Some fit, where the store's file has something left.
                for number in range(5000):
                    upload(volume, f"d/{number}", bytes([number % 256]) * 8000)
                    done.append(number)
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(modal.exception.Error, match="no space left for the store"):
                for number in range(5000):
                    values[number] = os.urandom(8000)
            with pytest.raises(modal.exception.Error, match="no space left for the store"):
                for number in range(5000):
                    item = b"%d" % number * 2000
                    jobs.put(item, timeout=60)
                    put.append(item)
            assert values["before"] == 1 and content(volume, "before") == b"b" * 8000
            fitted = {f"d/{number}" for number in done}
            assert _files(volume) == {"before", *fitted}
        values["after"] = 2
        upload(volume, "after", b"a")
        # What was acknowledged outlives a kill.
        own.kill()
        assert values["before"] == 1 and values["after"] == 2 and content(volume, "after") == b"a"
        assert _files(volume) == {"before", "after", *fitted}
        assert jobs.get_many(10_000, block=False) == put
