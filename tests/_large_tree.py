"""A directory with more files than it is worth to look at twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from modal_nomad._file_hashes import WORTH_KEEPING

MANY = WORTH_KEEPING + 1


def large_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make it, with a home of the test's own for what is kept of it."""
    monkeypatch.setenv("MODAL_NOMAD_HOME", str(tmp_path / "home"))
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(MANY):
        (folder / f"{number}.txt").write_text(f"{number:05}")
    return folder
