"""What a build says when something that it needs is not there; no tool is run."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from modal_nomad.exception import ImageBuildError
from modal_nomad.worker.image_builder import build
from modal_nomad.worker.image_builder.tools import Tool


class Nothing(Tool):
    """Has no image and builds none."""

    name = "nothing"

    def image_id(self, tag: str) -> str:
        return ""


def run(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    monkeypatch.setitem(build.TOOLS, "nothing", Nothing)
    layer = {"key": "k", "step": "image step 1 (add local files at /data)", "tag": "t", "manifest": "0" * 64}
    plan: dict[str, Any] = {"tool": "nothing", "layers": [{**layer, "dockerfile": "FROM a\n"}]}

    def fetch(sha: str) -> bytes:
        raise fault

    build.Build(plan, lambda event: None, fetch).run()


def test_files_that_the_dispatcher_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = r"^image step 1 \(add local files at /data\) failed:\n.* run or deploy the App again"
    with pytest.raises(ImageBuildError, match=wanted):
        run(monkeypatch, KeyError("0" * 64))


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageBuildError, match=r"failed:\nno space is left in .* make some there"):
        run(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
