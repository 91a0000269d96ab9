"""Volumes in containers of the embedded engine: seen at their paths, committed, reloaded."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from _fuse import why_not
from conftest import Live, until

import modal_nomad as modal
from modal_nomad.exception import ExecutionError, InvalidError, NotFoundError

pytestmark = pytest.mark.usefixtures("live")

LARGE = os.urandom(9 << 20)


@pytest.fixture(params=["fuse", "filled"])
def env(request: pytest.FixtureRequest) -> dict[str, str | None]:
    """Return what makes a container take one of both ways to show a Volume."""
    if request.param == "filled":
        return {"MODAL_VOLUME_FUSE": "0"}
    if why_not():
        pytest.skip(f"FUSE cannot be used here: {why_not()}")
    return {"MODAL_VOLUME_FUSE": "1"}


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


def paths(volume: modal.Volume, path: str = "/") -> list[str]:
    return sorted(entry.path for entry in volume.iterdir(path))


def runner() -> Callable[..., Any]:
    """Return a function that runs a few lines in a container, and returns what they leave in ``result``."""

    # Inside another one: then it travels as itself, without this module.
    def run(code: str, **given: Any) -> Any:
        import os
        from pathlib import Path

        names: dict[str, Any] = {"Path": Path, "os": os, **given}
        exec(code, names)
        return names.get("result")

    return run


def test_a_container_writes_and_another_reads(volume: modal.Volume, env: dict[str, str | None]) -> None:
    upload(volume, {"seed/large": LARGE, "seed/small": b"small"})
    app = modal.App("files")

    @app.function(serialized=True, env=env, volumes={"/mn-data/deep": volume})
    def read() -> tuple[int, bytes, list[str], bool]:
        import os
        from pathlib import Path

        top = Path("/mn-data/deep")
        names = sorted(str(p.relative_to(top)) for p in top.rglob("*"))
        served = any(
            line.split()[4] == str(top) and " fuse" in line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )
        as_asked = served == (os.environ["MODAL_VOLUME_FUSE"] == "1") or os.path.islink(top)
        return (top / "seed/large").stat().st_size, (top / "seed/small").read_bytes(), names, as_asked

    @app.function(serialized=True, env=env, volumes={"/mn-data": volume}, single_use_containers=True)
    def write(name: str, data: bytes, fails: bool = False) -> None:
        from pathlib import Path

        Path("/mn-data", name).parent.mkdir(parents=True, exist_ok=True)
        Path("/mn-data", name).write_bytes(data)
        if fails:
            raise ValueError("on purpose")
        volume.commit()

    with app.run():
        assert read.remote() == (len(LARGE), b"small", ["seed", "seed/large", "seed/small"], True)
        write.remote("made/by/one", LARGE[:5000000])
        assert content(volume, "made/by/one") == LARGE[:5000000]
    assert not os.path.exists("/mn-data")


def test_changes_are_committed_when_a_container_ends_also_after_an_exception(
    volume: modal.Volume, env: dict[str, str | None]
) -> None:
    app = modal.App("ends")
    runs = app.function(serialized=True, env=env, volumes={"/mn-data": volume}, single_use_containers=True)(
        runner()
    )
    with app.run():
        runs.remote("Path('/mn-data/a').write_bytes(b'1')")
        with pytest.raises(ValueError, match="on purpose"):
            runs.remote("Path('/mn-data/b').write_bytes(b'2'); raise ValueError('on purpose')")
        until(lambda: paths(volume) == ["a", "b"], what="both commits")


def test_changes_are_committed_while_a_container_lives(
    volume: modal.Volume, env: dict[str, str | None]
) -> None:
    app = modal.App("lives")
    runs = app.function(serialized=True, env=env, volumes={"/mn-data": volume})(runner())
    with app.run():
        runs.remote("Path('/mn-data/a').write_bytes(b'1')")
        until(lambda: paths(volume) == ["a"], what="the background commit")


def test_reload(volume: modal.Volume, env: dict[str, str | None]) -> None:
    upload(volume, {"a": b"old", "d/gone": b"1", "kept": LARGE})
    app = modal.App("reloads")
    runs = app.function(serialized=True, env=env, volumes={"/mn-data": volume})(runner())
    names = "result = sorted(str(p.relative_to('/mn-data')) for p in Path('/mn-data').rglob('*'))"
    with app.run():
        before = runs.remote("result = os.stat('/mn-data/kept').st_ino, os.getpid()")
        upload(volume, {"a": b"new", "e/more": b"2"}, force=True)
        volume.remove_file("d", recursive=True)
        assert runs.remote("result = Path('/mn-data/a').read_bytes()") == b"old"
        runs.remote("Path('/mn-data/own').write_bytes(b'3'); volume.reload()", volume=volume)
        assert runs.remote(names) == ["a", "e", "e/more", "kept", "own"]
        assert runs.remote("result = Path('/mn-data/a').read_bytes()") == b"new"
        assert runs.remote("result = os.stat('/mn-data/kept').st_ino, os.getpid()") == before
        assert content(volume, "own") == b"3"
        with pytest.raises(RuntimeError, match="/mn-data/a is open"):
            runs.remote("with open('/mn-data/a'): volume.reload()", volume=volume)
        with pytest.raises(RuntimeError, match="cwd is inside volume"):
            runs.remote(
                """
os.chdir('/mn-data/e')
try:
    volume.reload()
finally:
    os.chdir('/')
""",
                volume=volume,
            )
        runs.remote("volume.reload()", volume=volume)


def test_the_last_writer_of_each_file_wins(volume: modal.Volume, env: dict[str, str | None]) -> None:
    upload(volume, {"shared": b"0", "d/one": b"0"})
    app = modal.App("writers")
    one = app.function(serialized=True, name="one", env=env, volumes={"/mn-data": volume})(runner())
    two = app.function(serialized=True, name="two", env=env, volumes={"/mn-other": volume})(runner())
    with app.run():
        one.remote("result = 0")
        two.remote("result = 0")
        one.remote(
            "import shutil; Path('/mn-data/shared').write_bytes(b'1'); Path('/mn-data/x').touch();"
            "shutil.rmtree('/mn-data/d'); volume.commit()",
            volume=volume,
        )
        two.remote(
            "Path('/mn-other/shared').write_bytes(b'2'); Path('/mn-other/d/two').write_bytes(b'2');"
            "volume.commit()",
            volume=volume,
        )
        assert paths(volume) == ["d", "d/two", "shared", "x"]
        assert content(volume, "shared") == b"2"


def test_read_only(volume: modal.Volume, env: dict[str, str | None]) -> None:
    upload(volume, {"a": b"1"})
    app = modal.App("reads")
    runs = app.function(serialized=True, env=env, volumes={"/mn-data": volume.read_only()})(runner())
    with app.run():
        assert runs.remote("result = Path('/mn-data/a').read_bytes()") == b"1"
        with pytest.raises(OSError, match="Read-only"):
            runs.remote("Path('/mn-data/b').touch()")
        with pytest.raises(InvalidError, match="reading only"):
            runs.remote("volume.commit()", volume=volume)
        upload(volume, {"b": b"2"})
        runs.remote("volume.reload()", volume=volume)
        assert runs.remote("result = Path('/mn-data/b').read_bytes()") == b"2"


def test_one_directory_of_it(volume: modal.Volume, env: dict[str, str | None]) -> None:
    upload(volume, {"a": b"1", "sub/one": b"1", "sub/deep/er/two": b"2", "subway/c": b"3"})
    app = modal.App("part")
    part = volume.with_mount_options(sub_path="/sub/deep/")
    new = volume.with_mount_options(sub_path="new/part")
    runs, makes, looks, file = (
        app.function(serialized=True, name=name, env=env, volumes={"/mn-data": mount})(runner())
        for name, mount in (
            ("a", part),
            ("b", new),
            ("c", part.with_mount_options(read_only=True)),
            ("d", volume.with_mount_options(sub_path="a/b")),
        )
    )
    look = "result = sorted(str(x) for x in Path('/mn-data').rglob('*'))"
    with app.run():
        assert runs.remote(look) == ["/mn-data/er", "/mn-data/er/two"]
        # What others do beside it is not seen; below it is.
        upload(volume, {"sub/d": b"4", "sub/deep/e": b"5", "sub/deep/er/f": bytes(9000)})
        runs.remote("volume.reload()", volume=part)
        assert runs.remote("result = Path('/mn-data/e').read_bytes()") == b"5"
        code = "Path('/mn-data/er/two').unlink(); Path('/mn-data/g').write_bytes(b'g' * 9000)"
        runs.remote(code + "; volume.commit()", volume=part)
        assert runs.remote(look) == [f"/mn-data/{x}" for x in ("e", "er", "er/f", "g")]
        assert paths(volume, "sub") == [
            f"sub/{x}" for x in ("d", "deep", "deep/e", "deep/er", "deep/er/f", "deep/g", "one")
        ]
        assert content(volume, "sub/deep/g") == b"g" * 9000 and content(volume, "a") == b"1"
        makes.remote("Path('/mn-data/x').touch(); volume.commit()", volume=new)
        assert paths(volume, "new") == ["new/part", "new/part/x"]
        with pytest.raises(OSError, match="Read-only"):
            looks.remote("Path('/mn-data/x').touch()")
        with pytest.raises(ExecutionError, match="a is no directory of the Volume"):
            file.remote("")
        volume.remove_file("sub/deep", recursive=True)
        runs.remote("volume.reload()", volume=part)
        assert runs.remote(look) == []


def test_odd_names_links_and_what_is_no_file(
    volume: modal.Volume, live: Live, env: dict[str, str | None]
) -> None:
    outside = live.folder / "outside"
    outside.write_bytes(b"untouched")
    app = modal.App("odd")
    runs = app.function(
        serialized=True, name="a", env=env, volumes={"/mn-data": volume}, single_use_containers=True
    )(runner())
    with app.run():
        runs.remote(
            """
for name in (b'new\\nline', b'not-utf8-\\xff', b' '):
    with open(b'/mn-data/' + name, 'wb') as file: file.write(name)
os.symlink(outside, '/mn-data/link')
os.symlink(os.path.dirname(outside), '/mn-data/folder')
os.mkfifo('/mn-data/pipe')
os.mkdir('/mn-data/empty')
os.chmod('/mn-data/ ', 0o750)
volume.commit()
""",
            outside=str(outside),
            volume=volume,
        )
        assert {os.fsencode(p) for p in paths(volume)} == {
            b"new\nline",
            b"not-utf8-\xff",
            b" ",
            b"link",
            b"folder",
            b"empty",
        }
        # What was a link becomes a directory and a file: nothing is written through the link.
        volume.remove_file("folder")
        volume.remove_file("link")
        upload(volume, {"folder/outside": b"inside", "link": b"inside"})
        found = runs.remote(
            """
result = [os.stat('/mn-data/ ').st_mode & 0o777, sorted(os.listdir(b'/mn-data')),
          Path('/mn-data/folder/outside').read_bytes(), Path('/mn-data/link').read_bytes()]
"""
        )
        assert found[0] == 0o750 and found[2:] == [b"inside", b"inside"]
        assert found[1] == sorted([b"new\nline", b"not-utf8-\xff", b" ", b"link", b"folder", b"empty"])
    assert outside.read_bytes() == b"untouched"


def test_a_container_that_has_a_link_follows_none_when_it_reloads(
    volume: modal.Volume, live: Live, env: dict[str, str | None]
) -> None:
    app = modal.App("follows")
    runs = app.function(serialized=True, env=env, volumes={"/mn-data": volume})(runner())
    with app.run():
        runs.remote(
            "os.symlink(outside, '/mn-data/folder'); volume.commit()",
            outside=str(live.folder),
            volume=volume,
        )
        volume.remove_file("folder")
        upload(volume, {"folder/escaped": b"x"})
        runs.remote("volume.reload()", volume=volume)
        assert runs.remote("result = Path('/mn-data/folder/escaped').read_bytes()") == b"x"
    assert not (live.folder / "escaped").exists()


def test_several_volumes_of_apps_functions_and_classes(volume: modal.Volume) -> None:
    with modal.Volume.ephemeral() as other, modal.Volume.ephemeral() as third:
        upload(other, {"of": b"app"})
        upload(volume, {"of": b"function"})
        upload(third, {"of": b"options"})
        app = modal.App("several", volumes={"/mn-app": other})
        runs = app.function(serialized=True, volumes={"/mn-own": volume})(runner())

        @app.cls(serialized=True, volumes={"/mn-own": volume})
        class Reader:
            @modal.enter()
            def begin(self) -> None:
                from pathlib import Path

                self.found = Path("/mn-own/of").read_bytes()

            @modal.method()
            def read(self) -> bytes:
                return self.found

        both = "result = [Path(p, 'of').read_bytes() for p in ('/mn-app', '/mn-own') if os.path.exists(p)]"
        with app.run():
            assert runs.remote(both) == [b"app", b"function"]
            assert Reader().read.remote() == b"function"
            changed = runs.with_options(volumes={"/mn-own": third})
            assert changed.remote(both) == [b"options"]


def test_by_name_in_a_deployed_app(live: Live) -> None:
    volume = modal.Volume.from_name("for-deployed", create_if_missing=True)
    app = modal.App("deployed-files")
    app.function(serialized=True, volumes={"/mn-data": volume})(runner())
    app.deploy()
    try:
        found = modal.Function.from_name("deployed-files", "run")
        code = "import modal_nomad; Path('/mn-data/a').write_bytes(b'1');" + (
            "modal_nomad.Volume.from_name('for-deployed').commit()"
        )
        found.remote(code)
        assert content(volume, "a") == b"1"
    finally:
        live.request("app.stop", app_id=app.app_id)
        modal.Volume.delete("for-deployed")
    missing = modal.App("missing")
    missing.function(serialized=True, volumes={"/mn-data": modal.Volume.from_name("never-made")})(runner())
    with pytest.raises(NotFoundError, match="never-made"), missing.run():
        pass


def test_mount_paths(volume: modal.Volume) -> None:
    app = modal.App("paths")
    for path in ("/", "/root", "/tmp", "/tmp/", "data", "/a/../b", "//data", "/a\0b", ""):
        with pytest.raises(InvalidError, match="Volume"):
            app.function(serialized=True, volumes={path: volume})
    app.function(serialized=True, volumes={"/root/foo": volume})
    app.function(serialized=True, volumes={"/tmp/xyz": volume})
    with pytest.raises(InvalidError, match="/a and at /b"):
        app.function(serialized=True, volumes={"/a": volume, "/b": modal.Volume.from_id(volume.object_id)})
    with pytest.raises(InvalidError, match=r"modal\.Volume"):
        app.function(serialized=True, volumes={"/a": "a-name"})  # type: ignore[dict-item]
    for wrong in ("../out", "a/../../b", "n" * 256, "\ud800"):
        with pytest.raises(InvalidError, match="sub_path"):
            volume.with_mount_options(sub_path=wrong)
    same = volume.with_mount_options(sub_path="a"), volume.with_mount_options(sub_path="b")
    with pytest.raises(InvalidError, match="/a and at /b"):
        app.function(serialized=True, volumes={"/a": same[0], "/b": same[1]})
    with pytest.raises(InvalidError, match="not mounted here"):
        volume.commit()
    with pytest.raises(InvalidError, match="not mounted here"):
        volume.reload()
