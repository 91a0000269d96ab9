"""The sessions shown in pages of docs/, run on a real dispatcher."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Live

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md") if "```pycon" in path.read_text())


@pytest.mark.parametrize("page", PAGES)
def test_page(own: Live, page: str) -> None:
    blocks = re.findall(r"^```pycon\n(.*?)^```", (DOCS / page).read_text(), flags=re.M | re.S)
    names: dict[str, Any] = {}
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), names, page, page, 0)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)
    assert blocks


def test_pages_are_found() -> None:
    assert "dict-and-queue.md" in PAGES
