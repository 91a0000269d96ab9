"""Volumes when something breaks: the dispatcher is killed, chunks are collected, a Volume is gone."""

from __future__ import annotations

import io
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, age, until

import modal_nomad as modal
from modal_nomad.exception import ConnectionError, NotFoundError


def test_a_dispatcher_killed_amid_commits_tears_none(own: Live) -> None:
    volume = modal.Volume.from_name("killed", create_if_missing=True)
    volume.hydrate()
    done: set[int] = set()
    failed: set[int] = set()
    half = threading.Semaphore(0)

    def upload(number: int) -> None:
        try:
            with volume.batch_upload(force=True) as batch:
                for file in range(20):
                    data = b"%d" % number + b"." * (file * 1000)
                    batch.put_file(io.BytesIO(data), f"{number}/{file}")
                    batch.put_file(io.BytesIO(data), f"shared/{file}")
            done.add(number)
        except ConnectionError:
            failed.add(number)
        half.release()

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        half.acquire()
    own.kill()
    for thread in threads:
        thread.join()
    assert done | failed == set(range(24)) and len(done) >= 6
    found = [entry.path for entry in volume.iterdir("/") if entry.type.name == "FILE"]
    for number in range(24):
        mine = [x for x in found if x.startswith(f"{number}/")]
        assert len(mine) in ((20,) if number in done else (0, 20)), "a torn commit"
    # All of the shared files are one commit's.
    writers = {b"".join(volume.read_file(f"shared/{x}")).split(b".")[0] for x in range(20)}
    assert len(writers) == 1
    for file in (0, 5, 19):
        number = min(done)
        expected = b"%d" % number + b"." * (file * 1000)
        assert b"".join(volume.read_file(f"{number}/{file}")) == expected


def test_chunks_stay_while_a_volume_names_them(own: Live, serve: Callable[..., Any]) -> None:
    serve(garbage_age=3600.0, garbage_interval=0.3)

    def blobs() -> set[str]:
        return {path.name for path in (own.home / "state" / "blobs").glob("??/??/*")}

    before = blobs()
    kept, dropped = os.urandom(5 << 20), os.urandom(5 << 20)
    volume = modal.Volume.from_name("collected", create_if_missing=True)
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(kept), "kept")
        batch.put_file(io.BytesIO(dropped), "dropped")
    assert len(blobs() - before) == 4
    volume.remove_file("dropped")
    age(own.home / "state")
    until(lambda: len(blobs() - before) == 2, what="the end of the removed file's chunks")
    assert b"".join(volume.read_file("kept")) == kept
    modal.Volume.delete("collected")
    age(own.home / "state")
    until(lambda: not blobs() - before, what="the end of the Volume's chunks")


def test_a_failed_commit_does_not_fail_the_container(own: Live) -> None:
    volume = modal.Volume.from_name("vanishes", create_if_missing=True)
    app = modal.App("vanishing")

    def write(number: int, commit: bool = False) -> int:
        with open("/mn-data/file", "w") as file:
            file.write(str(number))
        if commit:
            volume.commit()
        return number

    writes = app.function(serialized=True, volumes={"/mn-data": volume}, max_containers=1)(write)
    with app.run():
        assert writes.remote(1, commit=True) == 1
        modal.Volume.delete("vanishes")
        with pytest.raises(NotFoundError):
            writes.remote(2, commit=True)
        assert writes.remote(3) == 3
    until(lambda: not own.status()["containers"], what="the container's end")


def test_what_is_committed_outlives_dispatcher_and_containers(own: Live) -> None:
    volume = modal.Volume.from_name("outlives", create_if_missing=True)
    app = modal.App("outliving")

    def write(name: str) -> list[str]:
        import os

        with open(f"/mn-data/{name}", "w") as file:
            file.write(name)
        volume.commit()
        return sorted(os.listdir("/mn-data"))

    writes = app.function(serialized=True, volumes={"/mn-data": volume})(write)
    with app.run():
        assert writes.remote("a") == ["a"]
        own.kill()
        assert writes.remote("b") == ["a", "b"]
        assert [x.path for x in volume.listdir("/")] == ["a", "b"]


def test_a_killed_upload_leaves_nothing(own: Live, tmp_path: Path) -> None:
    modal.Volume.from_name("partial", create_if_missing=True).hydrate()
    script = own.write(
        "upload.py",
        """
        import io, os, sys
        import modal_nomad as modal

        class Dies(io.RawIOBase):
            def read(self, size=-1):
                os.kill(os.getpid(), 9)

        with modal.Volume.from_name("partial").batch_upload() as batch:
            batch.put_file(io.BytesIO(os.urandom(1 << 20)), "first")
            batch.put_file(Dies(), "second")
        """,
    )
    process = own.start(str(script))
    process.communicate(timeout=100)
    assert process.returncode == -9
    assert modal.Volume.from_name("partial").listdir("/") == []


def test_a_dispatcher_killed_amid_a_commit_of_many_files(own: Live) -> None:
    """It is killed when the commit is decided, and carries on with it when it is back."""
    volume = modal.Volume.from_name("many", create_if_missing=True)
    volume.hydrate()
    count = 3000
    uploaded = threading.Event()

    def upload() -> None:
        try:
            with volume.batch_upload() as batch:
                for number in range(count):
                    batch.put_file(io.BytesIO(b"%d" % number), f"{number % 10}/{number}")
        except ConnectionError:
            # It was not told; that the commit has happened is known all the same.
            pass
        finally:
            uploaded.set()

    store = sqlite3.connect(f"file:{own.home}/store.db?mode=ro", uri=True, isolation_level=None)
    thread = threading.Thread(target=upload)
    thread.start()
    decided = "SELECT count(*) FROM volume_stages WHERE commit_id != ''"
    until(lambda: uploaded.is_set() or store.execute(decided).fetchone()[0], 250)
    own.kill()
    store.close()
    # Whoever looks now waits for the rest of it.
    assert sum(entry.type.name == "FILE" for entry in volume.iterdir("/")) == count
    thread.join()
    assert b"".join(volume.read_file("7/2997")) == b"2997"
