"""The tests as files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def test_no_two_test_files_have_one_name() -> None:
    # Their folders are no packages: pytest takes the second of a name for the first, and collects nothing.
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("*.py"))
    assert {name for name, count in names.items() if count > 1} <= {"__init__.py", "conftest.py"}
