"""What ``serve`` takes for a change."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from modal_nomad.cli._watched import Watched, shown, stamp


def test_what_counts_as_a_change(tmp_path: Path) -> None:
    program, page = tmp_path / "p" / "main.py", tmp_path / "pages" / "index.html"
    for file in (program, page):
        file.parent.mkdir()
        file.write_text("1")
    watched = Watched([str(program)], [str(page)])
    assert watched.changed() == []
    program.write_text("22")
    assert watched.changed() == [str(program)]
    assert watched.changed() == []
    # A new file in its place, of the same length and time.
    times = os.stat(page)
    other = tmp_path / "new"
    other.write_text("1")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, page)
    assert watched.changed() == [str(page)]
    # Beside what containers are to have, a new file counts; beside a program, not.
    (page.parent / "new.html").touch()
    (program.parent / "new.py").touch()
    assert watched.changed() == [f"{page.parent}{os.sep}"]
    (page.parent / ".index.html.swp").touch()
    (page.parent / "__pycache__").mkdir()
    assert watched.changed() == []
    program.unlink()
    assert watched.changed() == [str(program)]


def test_what_could_not_be_imported_may_come(tmp_path: Path) -> None:
    program = tmp_path / "main.py"
    program.write_text("import other")
    watched = Watched([str(program)], source_folders=True)
    (tmp_path / "notes.txt").touch()
    assert watched.changed() == []
    (tmp_path / "other.py").touch()
    assert watched.changed() == [f"{tmp_path}{os.sep}"]


def test_what_changed_since_it_was_read_is_not_missed(tmp_path: Path) -> None:
    program, other = tmp_path / "main.py", tmp_path / "other.py"
    for file in (program, other):
        file.write_text("1")
    read = {str(x): stamp(str(x)) for x in (program, other)}
    other.write_text("22")
    watched = Watched([str(program)], read=read)
    assert watched.changed() == [str(other)]
    assert watched.changed() == []


def test_waiting(tmp_path: Path) -> None:
    program = tmp_path / "main.py"
    program.write_text("1")
    watched = Watched([str(program)])
    assert watched.wait(0.01) == []
    # What changed before it waited was not missed.
    program.write_text("22")
    assert watched.wait(60) == [str(program)]
    thread = threading.Timer(0.05, program.write_text, ["333"])
    thread.start()
    assert watched.wait(60) == [str(program)]
    thread.join()


def test_lines_for_the_terminal(tmp_path: Path) -> None:
    here = os.path.abspath("a.py")
    assert shown([here]) == "a.py"
    assert shown(["/x/1", "/x/2", "/x/3", "/x/4"]) == "/x/1, /x/2, /x/3 and 1 more"
