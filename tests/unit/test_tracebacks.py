"""A remote traceback reads as a local one: the caller's files, its lines, carets, and nothing of ours."""

from __future__ import annotations

import linecache
import runpy
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad import exception
from modal_nomad._bridge import blocking, blocking_gen
from modal_nomad.wire import serialization, tracebacks
from modal_nomad.wire.main_module import named_in
from modal_nomad.wire.serialization import pack_exception, unpack_exception


def _fail() -> None:
    {"é": 1}["é"] / (1 - 1)  # type: ignore[unused-ignore]


def _raised() -> BaseException:
    try:
        _fail()
    except ZeroDivisionError as error:
        return error
    raise AssertionError


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def test_a_traceback_arrives_as_it_was() -> None:
    error = _raised()
    assert _shown(unpack_exception(pack_exception(error))) == _shown(error)


def test_causes_keep_theirs() -> None:
    try:
        try:
            _fail()
        except ZeroDivisionError as error:
            raise KeyError("x") from error
    except KeyError as error:
        assert _shown(unpack_exception(pack_exception(error))) == _shown(error)


def test_the_callers_copy_of_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def work():\n    raise ValueError('no')\n"
    for side in ("here", "there"):
        (tmp_path / side / "traced_pkg").mkdir(parents=True)
        (tmp_path / side / "traced_pkg" / "__init__.py").write_text("")
        (tmp_path / side / "traced_pkg" / "steps.py").write_text(source)
    error = _raised_by(tmp_path / "there" / "traced_pkg" / "steps.py", "traced_pkg.steps")
    packed = pack_exception(error)
    there = _shown(unpack_exception(packed))
    assert str(tmp_path / "there") in there
    monkeypatch.syspath_prepend(tmp_path / "here")
    __import__("traced_pkg.steps")
    try:
        here = _shown(unpack_exception(packed))
        assert str(tmp_path / "here" / "traced_pkg" / "steps.py") in here and "there" not in here
        # A file that was changed since is not the one that failed.
        (tmp_path / "here" / "traced_pkg" / "steps.py").write_text("\n" + source)
        linecache.checkcache()
        assert str(tmp_path / "there") in _shown(unpack_exception(packed))
    finally:
        del sys.modules["traced_pkg.steps"], sys.modules["traced_pkg"]


def test_lines_of_a_file_that_is_not_here_are_shown(tmp_path: Path) -> None:
    gone = tmp_path / "gone.py"
    gone.write_text("\n\ndef work():\n    raise ValueError('no') # why\n")
    packed = pack_exception(_raised_by(gone, "gone"))
    gone.unlink()
    linecache.clearcache()
    assert f"File \"{gone}\", line 4, in work\n    raise ValueError('no') # why\n" in _shown(
        unpack_exception(packed)
    )


def _raised_by(file: Path, name: str) -> BaseException:
    names = runpy.run_path(str(file), run_name=name)
    try:
        names["work"]()
    except ValueError as error:
        assert error.__traceback__ is not None
        return error.with_traceback(error.__traceback__.tb_next)
    raise AssertionError


def test_code_without_a_file() -> None:
    try:
        exec(compile("def work():\n    raise ValueError('no')\nwork()", "<cell 3>", "exec"), {})
    except ValueError as error:
        shown = _shown(unpack_exception(pack_exception(error)))
    assert '  File "<cell 3>", line 2, in work\n' in shown


@given(
    st.integers(1, 100_000),
    st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 300), st.integers(0, 300))),
)
def test_any_place_can_be_rebuilt(line: int, extent: tuple[int, int, int] | None) -> None:
    place = None
    if extent is not None:
        more, left, width = extent
        place = [line + more, left, left + width]
    frame = {"file": "/far/x.py", "name": "f", "module": "x", "line": line, "place": place, "text": ""}
    tb = tracebacks.unpack([frame])
    assert tb is not None and tb.tb_next is None
    entry = traceback.extract_tb(tb)[0]
    assert (entry.filename, entry.name, entry.lineno) == ("/far/x.py", "f", line)


def test_frames_that_make_no_sense_lose_the_traceback_and_not_the_error() -> None:
    links = serialization.loads_value(pack_exception(_raised()))
    links[0]["frames"] = [
        {"file": "x\0.py", "name": "f", "module": "", "line": -3, "place": [1, 9, 2], "text": ""}
    ]
    error = unpack_exception(serialization.dumps(links))
    assert isinstance(error, ZeroDivisionError) and error.__traceback__ is None


class _Calls:
    @blocking
    async def call(self, error: BaseException) -> None:
        raise error.with_traceback(error.__traceback__)

    @blocking_gen
    async def items(self, error: BaseException):  # type: ignore[no-untyped-def]
        yield 1
        raise error


def _ours(error: BaseException) -> list[str]:
    return [f.name for f in traceback.extract_tb(error.__traceback__) if "/modal_nomad/" in f.filename]


def _calls(error: BaseException) -> list[str]:
    caught = []
    try:
        _Calls().call(error)
    except Exception as failure:
        caught = _ours(failure)
    return caught


def test_the_librarys_own_frames_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _calls(ValueError("the user's")) == ["__call__"]
    assert _calls(exception.NotFoundError("ours")) == ["__call__"]
    with pytest.raises(ValueError, match="x") as caught:
        list(_Calls().items(ValueError("x")))
    assert _ours(caught.value) == ["__next__"]
    monkeypatch.setenv("MODAL_TRACEBACK", "1")
    assert len(_calls(ValueError("the user's"))) > 1


def test_a_fault_of_the_library_keeps_its_frames() -> None:
    class Broken:
        @blocking
        async def call(self) -> None:
            named_in(self, None)  # type: ignore[arg-type]

    with pytest.raises(AttributeError) as caught:
        Broken().call()
    assert _ours(caught.value)[-1] == "named_in"


async def test_the_async_face_leaves_them_out_too() -> None:
    with pytest.raises(ValueError, match="x") as caught:
        await _Calls().call.aio(ValueError("x"))
    assert _ours(caught.value) == ["_awaitable"]
