"""Volumes through FUSE: contents come when they are read, and nothing hangs when something breaks."""

from __future__ import annotations

import io
import os
import signal
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _fuse import why_not, why_not_mounted
from conftest import Live, alive, until

import modal_nomad as modal
from modal_nomad.worker.fuse.mounting import helper

CHUNK = 4 << 20
FUSE = {"MODAL_VOLUME_FUSE": "1"}
FILLED = {"MODAL_VOLUME_FUSE": "0"}

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"FUSE cannot be used here: {why_not()}")
private = pytest.mark.skipif(bool(why_not_mounted()), reason=f"nothing can be mounted: {why_not_mounted()}")


@pytest.fixture
def volume(live: Live) -> Iterator[modal.Volume]:
    with modal.Volume.ephemeral() as made:
        yield made


def upload(volume: modal.Volume, files: dict[str, bytes], force: bool = False) -> None:
    with volume.batch_upload(force=force) as batch:
        for name, data in files.items():
            batch.put_file(io.BytesIO(data), name)


def content(volume: modal.Volume, path: str) -> bytes:
    return b"".join(volume.read_file(path))


def runner() -> Callable[..., Any]:
    """Return a function that runs a few lines in a container, and returns what they leave in ``result``."""

    def run(code: str, **given: Any) -> Any:
        import os

        names: dict[str, Any] = {"os": os, **given}
        exec(code, names)
        return names.get("result")

    return run


def test_a_container_starts_before_all_names_are_here_and_files_wait_for_them(volume: modal.Volume) -> None:
    count = 5100
    upload(volume, {f"{n % 5}/{n}": b"%d" % n for n in range(count)})
    app = modal.App("many-names")
    run = app.function(serialized=True, volumes={"/vol": volume}, env=FUSE)(runner())
    with app.run():
        code = """
            result = sum(len(files) for _, _, files in os.walk("/vol")), open("/vol/4/5099").read()
            with open("/vol/new", "w") as file:
                file.write("mine")
        """
        assert run.remote(textwrap.dedent(code)) == (count, str(count - 1))
    until(lambda: any(entry.path == "new" for entry in volume.listdir("/")))
    assert content(volume, "new") == b"mine"


def test_only_what_is_read_is_fetched(volume: modal.Volume, live: Live) -> None:
    wanted, other = os.urandom(CHUNK + 10), os.urandom(4 * CHUNK + 10)
    upload(volume, {"wanted": wanted, "other": other, "small": b"1"})
    cache = live.folder / "chunks"
    env: dict[str, str | None] = {
        **FUSE,
        "MODAL_VOLUME_CACHE_DIR": str(cache),
        "MODAL_VOLUME_CACHE_MIB": "100",
    }
    app = modal.App("lazy")
    runs = app.function(serialized=True, env=env, volumes={"/mn-data": volume})(runner())

    def fetched() -> int:
        return sum(path.is_file() for path in cache.rglob("*"))

    with app.run():
        sizes = "result = {x.name: x.stat().st_size for x in os.scandir('/mn-data')}"
        assert runs.remote(sizes) == {"wanted": len(wanted), "other": len(other), "small": 1}
        assert fetched() == 0
        assert runs.remote("result = open('/mn-data/wanted', 'rb').read()") == wanted
        assert fetched() == 2
        # Renamed and changed, it is not fetched; appended to, its last chunk alone is.
        runs.remote(
            """
os.rename('/mn-data/other', '/mn-data/renamed')
os.chmod('/mn-data/renamed', 0o600)
with open('/mn-data/renamed', 'ab') as file: file.write(b'more')
volume.commit()
""",
            volume=volume,
        )
        assert fetched() == 3
        assert content(volume, "renamed") == other + b"more"
        assert sorted(entry.path for entry in volume.listdir("/")) == ["renamed", "small", "wanted"]


def random_work() -> Callable[..., Any]:
    """Return a function that does the same at random in a Volume and in a directory, and compares."""

    def differences(seed: int, steps: int, top: str, volume: Any) -> Any:
        import os
        import random
        import shutil
        import stat
        import tempfile

        chance = random.Random(seed)
        names = ["a", "b", "c", "\u00e4\n", "x y"]
        chunk = 4 << 20
        sizes = [0, 3, 9000, chunk - 3, chunk, chunk + 1, 2 * chunk + 5]

        def look(base: str) -> Any:
            found: dict[str, Any] = {}
            for folder, folders, files in os.walk(base):
                for name in folders + files:
                    path = os.path.join(folder, name)
                    status = os.lstat(path)
                    data: Any = None
                    if stat.S_ISLNK(status.st_mode):
                        data = os.readlink(path)
                    elif stat.S_ISREG(status.st_mode):
                        with open(path, "rb") as file:
                            data = file.read()
                    found[os.path.relpath(path, base)] = (status.st_mode, data)
            return found

        def step() -> Callable[[str], Any]:
            first, second = ("/".join(chance.choices(names, k=chance.randint(1, 3))) for _ in "12")
            data, size = chance.randbytes(chance.choice([0, 5, 8192, 8193, 70000])), chance.choice(sizes)
            mode, kind = chance.choice([0o600, 0o644, 0o755]), chance.randrange(12)

            def work(base: str) -> Any:
                one, two = os.path.join(base, first), os.path.join(base, second)
                if kind < 2:
                    with open(one, "wb") as file:
                        file.write(data)
                elif kind == 2:
                    with open(one, "r+b") as file:
                        file.seek(size)
                        file.write(data)
                        file.seek(max(0, size - 10))
                        return file.read(100)
                elif kind == 3:
                    with open(one, "ab") as file:
                        file.write(data)
                elif kind == 4:
                    os.truncate(one, size)
                elif kind < 7:
                    os.mkdir(one, mode | 0o700)
                elif kind == 7:
                    os.unlink(one) if not os.path.isdir(one) or os.path.islink(one) else os.rmdir(one)
                elif kind == 8:
                    os.rename(one, two)
                elif kind == 9:
                    os.symlink(second, one)
                elif kind == 10:
                    os.link(one, two, follow_symlinks=False)
                else:
                    shutil.copyfile(one, two)
                return None

            return work

        def outcome(work: Callable[[str], Any], base: str) -> Any:
            try:
                return work(base)
            except OSError as error:
                return error.errno

        with tempfile.TemporaryDirectory() as mirror:
            for number in range(steps):
                work = step()
                here, there = outcome(work, top), outcome(work, mirror)
                if here != there:
                    return f"step {number}: {here!r} and not {there!r}"
                if chance.random() < 0.03:
                    volume.commit() if chance.random() < 0.7 else volume.reload()
            here, there = look(top), look(mirror)
            wrong = [path for path in {*here, *there} if here.get(path) != there.get(path)]
            volume.commit()
            return wrong or here

    return differences


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_is_what_a_directory_would_be(volume: modal.Volume, seed: int) -> None:
    app = modal.App("random")
    mounts: dict[str, Any] = {"/mn-data": volume}
    compares = app.function(serialized=True, name="a", env={**FUSE}, volumes=mounts)(random_work())
    # Other containers have the same tree, whichever way they have it.
    looks = [
        app.function(serialized=True, name=name, env=env, volumes=mounts)(random_work())
        for name, env in (("b", dict[str, "str | None"](FUSE)), ("c", dict[str, "str | None"](FILLED)))
    ]
    with app.run():
        found = compares.remote(seed, 250, "/mn-data", volume)
        assert isinstance(found, dict), found
        for look in looks:
            assert not isinstance(look.remote(0, 0, "/mn-data", volume), str)
        files = {path for path, (_, data) in found.items() if isinstance(data, bytes)}
        assert {x.path for x in volume.iterdir("/") if x.type.name == "FILE"} == files
        assert all(content(volume, path) == found[path][1] for path in files)


def test_what_was_changed_in_a_mapped_file_is_committed(volume: modal.Volume) -> None:
    upload(volume, {"mapped": b"." * 10000})
    app = modal.App("maps")
    runs = app.function(serialized=True, env={**FUSE}, volumes={"/mn-data": volume})(runner())
    with app.run():
        runs.remote(
            """
import mmap
file = open('/mn-data/mapped', 'r+b')
mapped = mmap.mmap(file.fileno(), 0)
mapped[5000:5004] = b'here'
more = []
for number in range(25):
    file = open(f'/mn-data/new{number}', 'w+b')
    file.truncate(1 << 20)
    more.append(mmap.mmap(file.fileno(), 0))
    more[-1][500000] = 33
volume.commit()
""",
            volume=volume,
        )
        assert content(volume, "mapped") == b"." * 5000 + b"here" + b"." * 4996
        assert all(content(volume, f"new{number}")[500000] == 33 for number in range(25))


def test_names_that_no_commit_takes_are_refused_at_once(volume: modal.Volume) -> None:
    app = modal.App("long-names")
    runs = app.function(serialized=True, env={**FUSE}, volumes={"/mn-data": volume})(runner())
    with app.run():
        refused, moment = runs.remote(
            """
import errno
os.chdir('/mn-data')
open('file', 'w').close()
refused = []
def refuses(work, *given):
    try:
        work(*given)
    except OSError as error:
        refused.append(errno.errorcode[error.errno])
for work in (os.mkdir, os.stat, os.listdir, os.mkfifo):
    refuses(work, 'n' * 256)
for work in (os.rename, os.link, os.symlink):
    refuses(work, 'file', 'n' * 256)
os.makedirs('/'.join(['d' * 199] * 19 + ['f']))
refuses(os.mkdir, '/'.join(['d' * 199] * 19 + ['d' * 201]))
os.mkdir('m' * 199)
refuses(os.rename, 'd' * 199, 'm' * 199 + '/' + 'd' * 199)
os.utime('file', (4e11, 4e11))
volume.commit()
result = refused, os.stat('file').st_mtime_ns
os.chdir('/')
""",
            volume=volume,
        )
        assert refused == ["ENAMETOOLONG"] * 9
        # What an entry cannot say is as near as can be.
        assert moment == (1 << 63) - 1
        assert {x.path[:4] for x in volume.iterdir("/", recursive=False)} == {"file", "dddd", "mmmm"}


def test_when_the_serving_process_dies_files_fail_and_do_not_hang(volume: modal.Volume) -> None:
    upload(volume, {"a": os.urandom(CHUNK)})
    app = modal.App("dies")
    runs = app.function(serialized=True, env={**FUSE}, volumes={"/mn-data": volume})(runner())
    with app.run():
        found = runs.remote(
            """
import signal
import textwrap
file = open('/mn-data/a', 'rb')
for name in os.listdir('/proc'):
    try:
        serves = name.isdigit() and open(f'/proc/{name}/comm').read() == 'modal-volume\\n'
        if serves and os.getpgid(int(name)) == os.getpgrp():
            os.kill(int(name), signal.SIGKILL)
    except OSError:
        pass
result = []
for use in (lambda: file.read(), lambda: os.stat('/mn-data/b'), lambda: open('/mn-data/c', 'w'),
            lambda: volume.commit(), lambda: volume.reload()):
    try:
        use()
        result.append('nothing')
    except Exception as error:
        result.append(type(error).__name__)
""",
            volume=volume,
        )
        assert found[:3] == ["OSError"] * 3 and "nothing" not in found


PROGRAM = """
import os, sys, threading
from modal_nomad.wire.volumes.client import Listing
from modal_nomad.wire.volumes.entries import CHUNK_BYTES, DIRECTORY, FILE, Entry
from modal_nomad.worker._mounts import enter_private_namespace
from modal_nomad.worker.fuse import mounting, process

folder, wait = sys.argv[1], float(sys.argv[2])

class Client:
    '''A dispatcher that is away while there is a file of that name.'''

    longest = 4095

    def with_timeout(self, timeout):
        return self

    def pin(self, volume_id, pin_id):
        return 1

    def unpin(self, volume_id, pin_id):
        open(folder + "/unpinned", "w").close()

    def directories(self, volume_id, pin_id, paths, rows, after, name):
        if paths != [""]:
            self.answer()
            return [Listing(paths[0], [Entry(paths[0] + "/below", FILE)], True)], None
        names = ("1" * 64, "2" * 64)
        file = Entry("file", FILE, 2 * CHUNK_BYTES, 1, 0o644, names)
        return [Listing("", [Entry("d", DIRECTORY, mode=0o755), file], True)], None

    def answer(self):
        if os.path.exists(folder + "/away"):
            open(folder + "/asked", "w").close()
            raise ConnectionError("nobody answers")

    def get_chunk_once(self, sha):
        self.answer()
        return sha[:1].encode() * CHUNK_BYTES

os.makedirs(folder + "/state/tree")
where = folder + "/shown"
os.mkdir(where)
service = process.Service(folder + "/state", where, "vo-1", Client(), 3600.0, wait, False)
if len(sys.argv) > 3:
    where = folder + "/state/tree"
    descriptor = mounting.mount_by_helper(sys.argv[3], where, False)
    service.unmount = sys.argv[3]
else:
    enter_private_namespace()
    descriptor = mounting.open_device()
    mounting.mount(descriptor, where, False)
control = process.serve(service, descriptor)
served = process.Served(service, control, lambda text: print("said:", text, flush=True))
served.fill()
print("filled", flush=True)

def read():
    try:
        with open(where + "/file", "rb") as file:
            file.seek(CHUNK_BYTES - 2)
            print("read:", os.read(file.fileno(), 4), flush=True)
    except OSError as error:
        print("failed:", error.errno, flush=True)

def look():
    try:
        print("listed:", os.listdir(where + "/d"), flush=True)
    except OSError as error:
        print("failed:", error.errno, flush=True)

for line in sys.stdin:
    {"read": read, "look": look}[line.strip()]()
served.close()
print("closed", flush=True)
"""


def start(live: Live, *arguments: str) -> Any:
    script = live.write("program.py", PROGRAM)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
    environment = {**clean, "MODAL_SERVER_URL": "unix:///none"}
    return live.start(str(script), str(live.folder), *arguments, stdin=-1, env=environment)


def serving(live: Live) -> list[int]:
    """Find the processes that serve a Volume of this test."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text() == "modal-volume\n":
                words = (entry / "cmdline").read_bytes()
                if os.fsencode(live.folder) in words and alive(int(entry.name)):
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


def lines_to(process: Any, begin: str) -> list[str]:
    """Read lines up to one that begins so."""
    found: list[str] = []
    for line in process.stdout:
        found.append(line.rstrip())
        if line.startswith(begin):
            return found
    raise AssertionError(f"it ended without {begin!r}: {found} {process.stderr.read()}")


@private
def test_a_read_waits_for_a_dispatcher_that_is_away(live: Live) -> None:
    (live.folder / "away").touch()
    with start(live, "60") as process:
        lines_to(process, "filled")
        process.stdin.write("read\n")
        process.stdin.flush()
        until(lambda: (live.folder / "asked").exists(), 60, what="the first attempt")
        (live.folder / "away").unlink()
        assert lines_to(process, "read:") == ["read: b'1122'"]
        process.stdin.close()
        assert lines_to(process, "closed") == ["closed"]
    assert process.returncode == 0 and (live.folder / "unpinned").exists()
    until(lambda: not serving(live), what="the end of the serving process")


@private
def test_who_looks_into_a_directory_waits_for_a_dispatcher_that_is_away(live: Live) -> None:
    (live.folder / "away").touch()
    with start(live, "60") as process:
        lines_to(process, "filled")
        process.stdin.write("look\n")
        process.stdin.flush()
        until(lambda: (live.folder / "asked").exists(), 60, what="the first attempt")
        (live.folder / "away").unlink()
        assert lines_to(process, "listed:") == ["listed: ['below']"]
        process.kill()


@private
def test_after_the_stated_time_a_look_into_a_directory_fails(live: Live) -> None:
    (live.folder / "away").touch()
    with start(live, "0.1") as process:
        lines_to(process, "filled")
        process.stdin.write("look\n")
        process.stdin.flush()
        found = sorted(process.stdout.readline().rstrip() for _ in range(2))
        assert found[0] == "failed: 5" and "the dispatcher did not give them for 0.1 s" in found[1]
        process.kill()


@private
def test_after_the_stated_time_a_read_fails_with_a_line_that_says_why(live: Live) -> None:
    (live.folder / "away").touch()
    with start(live, "0.1") as process:
        lines_to(process, "filled")
        process.stdin.write("read\n")
        process.stdin.flush()
        # In either order: they come from two processes.
        found = sorted(process.stdout.readline().rstrip() for _ in range(2))
        assert found[0] == "failed: 5"
        assert "the dispatcher did not give its content for 0.1 s" in found[1]
        process.kill()


@private
def test_who_waits_for_contents_can_be_killed_and_who_serves_ends(live: Live) -> None:
    (live.folder / "away").touch()
    with start(live, "3600") as process:
        lines_to(process, "filled")
        assert len(serving(live)) == 1
        process.stdin.write("read\n")
        process.stdin.flush()
        until(lambda: (live.folder / "asked").exists(), 60, what="the first attempt")
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    until(lambda: not serving(live), 60, what="the end of the serving process")


@pytest.mark.skipif(not helper(), reason="fusermount3 is not installed (Debian: fuse3)")
@pytest.mark.parametrize("ends", ["close", "kill"])
def test_a_program_mounts_for_who_may_not(live: Live, ends: str) -> None:
    def mounted() -> bool:
        return str(live.folder / "state/tree") in Path("/proc/self/mountinfo").read_text()

    with start(live, "60", helper()) as process:
        lines_to(process, "filled")
        assert mounted()
        process.stdin.write("read\n")
        process.stdin.flush()
        assert lines_to(process, "read:") == ["read: b'1122'"]
        if ends == "close":
            process.stdin.close()
            lines_to(process, "closed")
        else:
            process.kill()
    until(lambda: not mounted(), 60, what="the end of the mount")
