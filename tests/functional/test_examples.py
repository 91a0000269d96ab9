"""The files in examples/ do what their first lines say."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from conftest import Live

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_hello(live: Live) -> None:
    done = live.cli("run", str(EXAMPLES / "hello.py"), "--count", "20")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "7 squared is 49" in lines and "the first 20 squares sum to 2470" in lines
    assert "square | squaring 19" in lines


def test_stdlib_census(live: Live) -> None:
    assert "--top" in live.cli("run", str(EXAMPLES / "stdlib_census.py"), "--help").stdout
    # All of it takes seconds on a quiet machine and more on others: a part of it is enough here.
    script = live.write(
        "part.py",
        f"""
        import sys

        sys.path.insert(0, {str(EXAMPLES)!r})
        import stdlib_census

        app, whole = stdlib_census.app, stdlib_census.modules
        stdlib_census.modules = lambda: [p for p in whole() if "/json/" in p and "/test/" not in p]
        """,
    )
    done = live.cli("run", "-q", str(script), "--top", "2")
    assert done.returncode == 0, done.stderr
    assert "json/encoder.py" in done.stdout and "_make_iterencode" in done.stdout
    count = len(list(Path(sysconfig.get_paths()["stdlib"], "json").glob("*.py")))
    assert f"{count} modules" in done.stdout and "0 do not parse" in done.stdout


def test_every_example_is_tried_here() -> None:
    tried = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tried
