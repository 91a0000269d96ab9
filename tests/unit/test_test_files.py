"""The tests as files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def test_no_two_test_files_have_one_name() -> None:
    # Where folders are no packages pytest takes the second of a name for the first, and collects nothing.
    files = Path(__file__).parents[1].rglob("*.py")
    names = Counter(path.name for path in files if not (path.parent / "__init__.py").exists())
    assert {name for name, count in names.items() if count > 1} <= {"conftest.py"}
