"""Which container runtime this machine has: Docker's socket, Podman's, or a Podman to be served here."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from modal_nomad.engines.base import EngineError


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    Attributes:
        name: ``Docker`` or ``Podman``.
        socket: path of its Unix socket.
        command: what serves that socket, where nothing does yet.
    """

    name: str
    socket: str
    command: tuple[str, ...] = ()


def find_runtime(driver: str, home: pathlib.Path, environ: Mapping[str, str] = os.environ) -> Runtime:
    """Return the runtime for a driver; one that runs Docker's images will do for Docker.

    Args:
        driver: ``docker`` or ``podman``.
        home: where the socket of a Podman goes that is served here.
        environ: ``DOCKER_HOST`` and ``CONTAINER_HOST`` name other sockets.

    Raises:
        EngineError: there is none; the text names the remedy.
    """
    if sys.platform != "linux":
        raise EngineError(
            "container images run on this machine only where it has Linux: send the app to a Nomad cluster"
            " (MODAL_SERVER_URL), or use an Image of pip_install and add_local_... steps"
        )
    kinds = ((_docker, "Docker"), (_podman, "Podman")) if driver == "docker" else ((_podman, "Podman"),)
    for sockets, name in kinds:
        for path in sockets(environ):
            if _usable(path):
                return Runtime(name, path)
    podman = shutil.which("podman", path=environ.get("PATH"))
    if podman is not None:
        path = str(home / "podman.sock")
        return Runtime("Podman", path, (podman, "system", "service", "--time=0", f"unix://{path}"))
    wanted = "Docker or Podman" if driver == "docker" else "Podman"
    raise EngineError(
        f"driver {driver!r} needs a container runtime that this user may use, and there is none here: install"
        f" or start {wanted} (DOCKER_HOST names another socket), or send the app to a Nomad cluster"
        " (MODAL_SERVER_URL)"
    )


def _docker(environ: Mapping[str, str]) -> Iterator[str]:
    named = environ.get("DOCKER_HOST") or _context(environ)
    if named:
        if not named.startswith("unix://"):
            raise EngineError(
                f"the Docker at {named} is not on this machine, so that its containers could not reach this"
                " dispatcher: set DOCKER_HOST to a unix:// socket"
            )
        yield named[len("unix://") :]
        return
    yield "/var/run/docker.sock"
    if environ.get("XDG_RUNTIME_DIR"):
        yield os.path.join(environ["XDG_RUNTIME_DIR"], "docker.sock")


def _context(environ: Mapping[str, str]) -> str:
    """Return the address of Docker's current context, empty for the default one."""
    name = environ.get("DOCKER_CONTEXT") or str(_config(environ).get("currentContext") or "")
    if name in ("", "default"):
        return ""
    digest = hashlib.sha256(name.encode()).hexdigest()
    path = _config_directory(environ) / "contexts" / "meta" / digest / "meta.json"
    try:
        return str(json.loads(path.read_text())["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _podman(environ: Mapping[str, str]) -> Iterator[str]:
    named = environ.get("CONTAINER_HOST", "")
    if named.startswith("unix://"):
        yield named[len("unix://") :]
    if environ.get("XDG_RUNTIME_DIR"):
        yield os.path.join(environ["XDG_RUNTIME_DIR"], "podman", "podman.sock")
    yield "/run/podman/podman.sock"


def _usable(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) and os.access(path, os.R_OK | os.W_OK)
    except OSError:
        return False


def _config_directory(environ: Mapping[str, str]) -> pathlib.Path:
    return pathlib.Path(environ.get("DOCKER_CONFIG") or pathlib.Path.home() / ".docker")


def _config(environ: Mapping[str, str]) -> Mapping[str, object]:
    try:
        found = json.loads((_config_directory(environ) / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def registry_credentials(reference: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what ``docker login`` has kept for an image's registry; nothing where it kept nothing."""
    first = reference.partition("/")[0]
    named = "/" in reference and ("." in first or ":" in first or first == "localhost")
    server = first if named else "https://index.docker.io/v1/"
    auths = _config(environ).get("auths")
    entry = auths.get(server) or auths.get(f"https://{server}") if isinstance(auths, dict) else None
    if not isinstance(entry, dict):
        return {}
    if entry.get("identitytoken"):
        return {"identitytoken": str(entry["identitytoken"]), "serveraddress": server}
    try:
        user, _, password = base64.b64decode(entry.get("auth") or "").decode().partition(":")
    except ValueError:
        return {}
    return {"username": user, "password": password, "serveraddress": server} if user else {}
