"""Control groups for tests: whether this machine lets them be made, and files that play the kernel's part."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest

from modal_nomad.engines._local_groups import ControlGroups
from modal_nomad.wire import cgroups


@functools.cache
def allowed() -> bool:
    """Make one, and take it away."""
    with tempfile.TemporaryDirectory() as folder:
        groups = ControlGroups(f"modal-nomad-{Path(folder).name}", Path(folder, "marker"))
        made = groups.make("probe", 64 << 20, 0.5)
        groups.clear()
    return made is not None


class Kernel:
    """A /proc and hierarchies below a directory."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.proc = folder / "proc/self"
        self.proc.mkdir(parents=True)
        monkeypatch.setattr(cgroups, "ROOT", str(folder / "proc"))

    def has(self, own: str, *mounts: str) -> None:
        (self.proc / "cgroup").write_text(own)
        lines = [f"{n} 1 0:{n} / {self.folder}/{mount}" for n, mount in enumerate(mounts)]
        (self.proc / "mountinfo").write_text("".join(f"{line}\n" for line in lines))

    def text(self, path: str) -> str:
        return (self.folder / path).read_text()

    def group(self, path: str, controllers: str) -> None:
        """A group of version 2 whose processes are elsewhere, or that gives nothing on: ``-``."""
        directory = self.folder / path
        directory.mkdir(parents=True, exist_ok=True)
        if controllers == "-":
            # Nothing can be written to it, as where a group has processes.
            (directory / "cgroup.subtree_control").mkdir()
        else:
            (directory / "cgroup.subtree_control").write_text(controllers)
