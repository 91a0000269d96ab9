"""The dispatcher's settings about images: who builds them, and where they go."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modal_nomad.render.image_settings import DEFAULT_BUILDER, ImageSettings

TOOLS = ("docker", "podman", "buildah")


@dataclass(frozen=True)
class BuildSettings:
    """What stands under ``[images]``.

    Attributes:
        builder: ``docker``, ``podman`` or ``buildah``; empty takes the first of them that is there.
        repository: where images are pushed to, as ``registry:port/name``; empty keeps them on this machine.
        username: for that registry.
        password_file: the file with its password.
        insecure: whether the registry may be without TLS.
        network: the network of build steps, such as ``host``; empty is the builder's own.
        job: the Nomad job that builds, on a cluster.
        version: of the image builder, for clients that ask for none.
        debian_slim: as ``render.image_settings.ImageSettings`` has it, like the others.
        micromamba: the same.
        python: the same.
    """

    builder: str = ""
    repository: str = ""
    username: str = ""
    password_file: str = field(default="", repr=False)
    insecure: bool = False
    network: str = ""
    job: str = "image-builder"
    version: str = DEFAULT_BUILDER
    debian_slim: str = ""
    micromamba: str = ""
    python: str = ""

    def __post_init__(self) -> None:
        if self.builder and self.builder not in TOOLS:
            raise ValueError(f"builder is {self.builder!r}: use one of {', '.join(TOOLS)}")
        if bool(self.username) != bool(self.password_file):
            raise ValueError("username and password_file belong together: give both or none")
        self.rendering("")

    def rendering(self, version: str) -> ImageSettings:
        """Return how Dockerfiles are rendered for a client that asks for this version of the builder."""
        names = {f.name for f in dataclasses.fields(ImageSettings)}
        given = {name: value for name, value in vars(self).items() if name in names and value}
        return ImageSettings(**{**given, "version": version or self.version})

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> BuildSettings:
        """Read a table of the configuration. Raises ValueError."""
        types = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        for name, value in table.items():
            if name not in types:
                raise ValueError(f"no setting {name!r}; known are {', '.join(sorted(types))}")
            if type(value) is not types[name]:
                raise ValueError(f"{name} must be a {types[name].__name__}")
        return cls(**table)
