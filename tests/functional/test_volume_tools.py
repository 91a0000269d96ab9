"""What programs of every day do with files, on a Volume: it works, or they get the errno that they expect."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from typing import Any

import pytest
from _fuse import why_not
from conftest import Live, until

import modal_nomad as modal

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"FUSE cannot be used here: {why_not()}")

HEAD = """
import ctypes, errno, fcntl, mmap, os, sqlite3, subprocess, sys, tempfile
from pathlib import Path

vol, aside = Path("/vol"), Path(tempfile.mkdtemp())
result = {}

def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout

def code_of(work):
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
"""

GIT = """
origin = aside / "origin"
run("git", "init", "-q", str(origin))
git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(origin)]
for number in range(30):
    (origin / f"file-{number}").write_text("line\\n" * number)
run(*git, "add", ".")
run(*git, "commit", "-qm", "one")
run("git", "clone", "-q", str(origin), "/vol/clone")
git[-1] = "/vol/clone"
(vol / "clone/new").write_text("new")
run(*git, "add", ".")
run(*git, "commit", "-qm", "two")
run(*git, "gc", "-q")
run(*git, "checkout", "-q", "-b", "other", "HEAD~1")
run(*git, "fsck", "--strict")
result["git"] = run(*git, "status", "--porcelain"), run(*git, "rev-list", "--all", "--count").strip()
"""

TREES = """
tree = aside / "tree"
(tree / "empty").mkdir(parents=True)
(tree / "one").write_text("1")
os.link(tree / "one", tree / "two")
(tree / "link").symlink_to("one")
(tree / "one").chmod(0o751)
os.utime(tree / "one", (10**9, 10**9))
run("tar", "-C", str(aside), "-cf", str(aside / "t.tar"), "tree")
run("tar", "-C", "/vol", "-xpf", str(aside / "t.tar"))
same = os.path.samefile("/vol/tree/one", "/vol/tree/two")
found = os.stat("/vol/tree/one")
result["tar"] = same, oct(found.st_mode), found.st_mtime, os.readlink("/vol/tree/link")
run("cp", "-a", "--sparse=always", str(tree), "/vol/copied")
run("cp", "-a", "/vol/tree", str(aside / "back"))
"""

RSYNC = """
run("rsync", "-aH", str(tree) + "/", "/vol/synced")
run("rsync", "-aX", str(tree) + "/", "/vol/synced")
result["rsync"] = run("rsync", "-aHni", str(tree) + "/", "/vol/synced")
"""

DATABASES = """
writer = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], timeout=100)\\n"
writer += "for number in range(20):\\n    with db: db.execute('insert into t values (zeroblob(5000))')"
for mode in ("delete", "wal"):
    path = f"/vol/{mode}.db"
    db = sqlite3.connect(path, timeout=100)
    assert db.execute(f"pragma journal_mode = {mode}").fetchone() == (mode,)
    db.execute("create table t (a)")
    db.commit()
    writers = [subprocess.Popen([sys.executable, "-c", writer, path]) for _ in range(2)]
    assert [x.wait(200) for x in writers] == [0, 0]
    counted = db.execute("select count(*) from t").fetchone()
    result[mode] = counted + db.execute("pragma integrity_check").fetchone()
    db.close()
"""

HABITS = """
# An editor saves: the old file aside, a new one, the old one away.
(vol / "text").write_text("old")
os.rename("/vol/text", "/vol/text~")
(vol / "text").write_text("new")
os.unlink("/vol/text~")
# A cache of models: what is loaded under another name, then links to it.
blobs, snapshot = vol / "hub/blobs", vol / "hub/snapshots/1"
blobs.mkdir(parents=True)
snapshot.mkdir(parents=True)
(blobs / "x.incomplete").write_bytes(b"m" * (9 << 20))
os.replace(blobs / "x.incomplete", blobs / "x")
(snapshot / "model").symlink_to("../../blobs/x")
result["hub"] = len((snapshot / "model").read_bytes())
(vol / "program").write_text("#!/bin/sh\\necho ran")
os.chmod("/vol/program", 0o755)
result["program"] = run("/vol/program").strip(), os.access("/vol/text", os.X_OK)
with tempfile.TemporaryFile(dir="/vol") as unnamed:
    unnamed.write(b"x")

file = os.open("/vol/large", os.O_RDWR | os.O_CREAT)
os.write(file, b"x" * (9 << 20))
allocate = ctypes.CDLL(None, use_errno=True).fallocate

def fallocate(mode):
    if allocate(file, mode, ctypes.c_long(4 << 20), ctypes.c_long(6 << 20)):
        raise OSError(ctypes.get_errno(), "")

result["allocate"] = code_of(lambda: fallocate(0)), os.fstat(file).st_size == 10 << 20
result["punch"] = code_of(lambda: fallocate(3)), code_of(lambda: fallocate(16))
assert os.pread(file, 3, 5 << 20) == b"xxx"
pages = mmap.mmap(file, 8192)
pages[:4] = b"maps"
pages.flush()
assert os.pread(file, 4, 0) == b"maps"
direct = os.open("/vol/large", os.O_RDWR | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
assert os.preadv(direct, [block], 0) == 4096 and block[:4] == b"maps"
assert os.copy_file_range(file, os.open("/vol/part", os.O_WRONLY | os.O_CREAT), 1000, 0) == 1000

for name in ("flock", "lockf"):
    getattr(fcntl, name)(file, fcntl.LOCK_EX)
    other = f"import fcntl; fcntl.{name}(open('/vol/large', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    result[name] = "BlockingIOError" in done.stderr

rename = ctypes.CDLL(None, use_errno=True).renameat2

def renameat2(flags):
    if rename(-100, b"/vol/text", -100, b"/vol/program", flags):
        raise OSError(ctypes.get_errno(), "")

result["rename"] = code_of(lambda: renameat2(1)), code_of(lambda: renameat2(2))
assert (vol / "text").read_text() == "new"
result["attributes"] = [
    code_of(lambda: os.setxattr("/vol/text", "user.x", b"1")),
    code_of(lambda: os.getxattr("/vol/text", "user.x")),
    code_of(lambda: os.listxattr("/vol/text")),
]
result["tmpfile"] = code_of(lambda: os.open("/vol", os.O_TMPFILE | os.O_RDWR))
os.fsync(os.open("/vol", os.O_RDONLY))
"""

PYTEST = """
(vol / "tests").mkdir()
(vol / "tests/test_it.py").write_text("def test_it(tmp_path):\\n    (tmp_path / 'a').touch()\\n")
run(PYTHON, "-W", "ignore", "-m", "pytest", "-q", "/vol/tests", "--basetemp=/vol/base")
"""


def _paths(volume: modal.Volume) -> set[str]:
    return {entry.path for entry in volume.listdir("/", recursive=True)}


def test_programs_find_what_they_expect(live: Live) -> None:
    with modal.Volume.ephemeral() as volume:
        app = modal.App("tools")

        def work(code: str) -> Any:
            names: dict[str, Any] = {}
            exec(code, names)
            return names["result"]

        env = {"MODAL_VOLUME_FUSE": "1"}
        function = app.function(serialized=True, volumes={"/vol": volume}, env=env, timeout=1000)(work)
        parts = [HEAD, f"PYTHON = {sys.executable!r}\n", TREES, DATABASES, HABITS, PYTEST]
        parts += [part for tool, part in (("git", GIT), ("rsync", RSYNC)) if shutil.which(tool)]
        with app.run():
            found = function.remote("".join(map(textwrap.dedent, parts)))
        assert found.pop("git", ("", "2")) == ("", "2")
        assert found.pop("rsync", "") == ""
        assert found == {
            "tar": (True, "0o100751", 1e9, "one"),
            "delete": (40, "ok"),
            "wal": (40, "ok"),
            "hub": 9 << 20,
            "program": ("ran", False),
            "allocate": (None, True),
            # To those who ask for more the kernel says so, and they do without.
            "punch": ("ENOTSUP", "ENOTSUP"),
            "rename": ("EEXIST", "EINVAL"),
            "attributes": ["ENOTSUP"] * 3,
            "tmpfile": "ENOTSUP",
            "flock": True,
            "lockf": True,
        }
        # Nothing of it is lost when the container is gone, whose last commit comes after its App's end.
        wanted = {"tree/link", "copied/empty", "hub/blobs/x", "hub/snapshots/1/model", "text", "wal.db"}
        until(lambda: wanted <= (found := _paths(volume)) and "text~" not in found)
        assert b"".join(volume.read_file("hub/blobs/x")) == b"m" * (9 << 20)
        target = io.BytesIO()
        volume.read_file_into_fileobj("wal.db", target)
        assert target.getvalue().startswith(b"SQLite format 3")
