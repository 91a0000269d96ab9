"""What an operator, and the version of the image builder, decide about every image."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

TAG_LENGTH = 32
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9._-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)*")


class Versions(NamedTuple):
    """What one version of the image builder stands for."""

    debian: str
    micromamba: str
    poetry: str
    uv: str


BUILDERS: Mapping[str, Versions] = {
    "2024.04": Versions("bookworm", "1.5.8", "1.7.1", "0.4.30"),
    "2024.10": Versions("bookworm", "1.5.10", "1.8.4", "0.5.31"),
    "2025.06": Versions("bookworm", "2.1.1", "2.1.3", "0.7.22"),
}
"""By version: an image that was built once stays what it is for as long as its version is asked for."""
DEFAULT_BUILDER = "2025.06"


@dataclass(frozen=True)
class ImageSettings:
    """Where images come from and go to.

    Attributes:
        version: of the image builder; one of ``BUILDERS``.
        repository: where layers are tagged: ``registry:port/name``, or a name on this machine alone.
        debian_slim: the image that ``debian_slim`` starts from, with ``{python}`` for the version.
        micromamba: the image that ``micromamba`` starts from.
        python: the image that has an interpreter for ``add_python`` under ``/python``, with ``{python}``
            for the version; empty lets uv fetch one.
    """

    version: str = DEFAULT_BUILDER
    repository: str = "localhost/modal-nomad"
    debian_slim: str = ""
    micromamba: str = ""
    python: str = ""

    def __post_init__(self) -> None:
        if self.version not in BUILDERS:
            raise ValueError(
                f"the image builder has no version {self.version!r}: use one of {', '.join(BUILDERS)}"
            )
        if not _REPOSITORY.fullmatch(self.repository):
            raise ValueError(f"repository is {self.repository!r}: give registry:port/name, in small letters")

    @property
    def poetry(self) -> str:
        """The version of Poetry."""
        return BUILDERS[self.version].poetry

    @property
    def uv(self) -> str:
        """The version of uv."""
        return BUILDERS[self.version].uv

    def debian_slim_image(self, python: str) -> str:
        """Return the image of a small Debian with this Python."""
        if self.debian_slim:
            return self.debian_slim.replace("{python}", python)
        return f"python:{python}-slim-{BUILDERS[self.version].debian}"

    @property
    def micromamba_image(self) -> str:
        """The image of a small Debian with micromamba."""
        return self.micromamba or f"mambaorg/micromamba:{BUILDERS[self.version].micromamba}"

    def python_stage(self, python: str) -> tuple[list[str], str]:
        """Return the build stage ``modal_python`` that has an interpreter, and where it has it."""
        if self.python:
            return [f"FROM {self.python.replace('{python}', python)} AS modal_python"], "/python"
        versions = BUILDERS[self.version]
        return [
            f"FROM {self.debian_slim_image('3.12')} AS modal_python",
            f"RUN python -m pip install --no-cache-dir uv=={versions.uv}"
            f" && python -m uv python install --install-dir /pythons {python}"
            " && mv /pythons/cpython-* /python",
        ], "/python"

    def tag(self, key: str) -> str:
        """Return what the image of a layer is called."""
        return f"{self.repository}:{key[:TAG_LENGTH]}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageSettings:
        """Read the JSON object of settings; unknown fields are ignored. Raises ValueError."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in names and value})
