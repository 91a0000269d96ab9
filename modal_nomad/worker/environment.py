"""Python environments of images, built on the node with uv (or venv and pip), one per content key.

An environment is a virtual environment without the system's packages. It is built where it will
stand, since virtual environments cannot be moved; a marker file says that it is complete, and a file
lock that one process at a time builds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from modal_nomad.exception import ImageBuildError
from modal_nomad.wire.spec import ImageLayer, ImageSpec, sync_words

Log = Callable[[str], None]
Fetch = Callable[[str], bytes]
Root = Union[str, "os.PathLike[str]"]
_MARKER = ".complete"
_LAST_LINES = 15
# Flags of pip that change nothing of what is installed, and that uv refuses.
_PIP_ONLY = frozenset(
    (
        "--no-clean",
        "--no-input",
        "--disable-pip-version-check",
        "--no-warn-script-location",
        "--prefer-binary",
    )
)
# How uv and pip say that it is not the package but the way to it that is missing.
_UNREACHABLE = re.compile(
    r"dns error|connect error|error trying to connect|client error \(Connect\)|connection broken"
    r"|name resolution|network is unreachable|timed out|connection (refused|reset)|ProxyError",
    re.IGNORECASE,
)


def image_spec(image: Union[ImageSpec, Mapping[str, Any]]) -> ImageSpec:
    """Return the part of an image that decides its environment, from a spec or its JSON object."""
    if not isinstance(image, ImageSpec):
        image = ImageSpec.from_dict(image)
    return ImageSpec(python=image.python, layers=image.layers)


def needs_build(image: Union[ImageSpec, Mapping[str, Any]]) -> bool:
    """Say whether an image needs more than the interpreter that runs this."""
    spec = image_spec(image)
    return bool(spec.layers) or not _running(spec.python)


def interpreter_command(
    image: Union[ImageSpec, Mapping[str, Any]],
    root: Root,
    *,
    log: Optional[Log] = None,
    fetch: Optional[Fetch] = None,
) -> List[str]:
    """Return the command of an image's interpreter, built first where needed.

    The flags keep the node's packages and settings out: ``-I`` ignores the user's site directory and
    ``PYTHON*`` variables, ``-S`` the system's packages where there is no environment of our own.
    """
    if needs_build(image):
        return [str(ensure(image, root, log=log, fetch=fetch)), "-I"]
    return [_base_python(), "-I", "-S"]


def built(image: Union[ImageSpec, Mapping[str, Any]], root: Root) -> Optional[Path]:
    """Return the interpreter of an image's environment if it is complete, else None."""
    directory = Path(root).absolute() / image_spec(image).environment_key
    return directory / "bin" / "python" if (directory / _MARKER).exists() else None


def ensure(
    image: Union[ImageSpec, Mapping[str, Any]],
    root: Root,
    *,
    log: Optional[Log] = None,
    fetch: Optional[Fetch] = None,
) -> Path:
    """Return the interpreter of an image's environment, building it if it is not there.

    Args:
        image: an ImageSpec, or the JSON object ``{"python", "layers"}``.
        root: directory of all environments of this node.
        log: gets the builder's output, line by line.
        fetch: returns a blob's bytes by its SHA-256; needed by images that have local files.

    Raises:
        ImageBuildError: a step failed, or this node cannot do it; the text names the remedy.
    """
    spec = image_spec(image)
    ready = built(spec, root)
    if ready is not None:
        return ready
    return _ensure(spec, root, log or (lambda line: None), fetch)


def _ensure(spec: ImageSpec, root: Root, log: Log, fetch: Optional[Fetch]) -> Path:
    for layer in spec.layers:
        if layer.needs_container:
            raise ImageBuildError(
                f"the image step {layer.kind!r} needs a container runtime: run the Function with the docker "
                "driver, or leave the step out and install what it gives on the node"
            )
    directory = Path(root).absolute() / spec.environment_key
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.with_name(directory.name + ".lock")):
            ready = built(spec, root)
            if ready is None:
                # No marker: the remains of a build that was killed.
                shutil.rmtree(directory, ignore_errors=True)
                try:
                    _build(spec, directory, log, fetch)
                except BaseException:
                    shutil.rmtree(directory, ignore_errors=True)
                    raise
                (directory / _MARKER).touch()
    except OSError as exc:
        raise ImageBuildError(
            f"cannot build an environment in {root}: {exc.strerror or exc}; make it writable, or set "
            "MODAL_ENVIRONMENTS_DIR"
        ) from exc
    return directory / "bin" / "python"


def find_uv() -> Optional[str]:
    """Return the path of uv: the installed package's, else the one on PATH, else None."""
    try:
        import uv  # in no container's runtime, but in the SDK's own environment

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _running(version: Optional[str]) -> bool:
    if version is None:
        return True
    wanted = version.split(".")
    return [str(x) for x in sys.version_info[: len(wanted)]] == wanted


def _base_python() -> str:
    # The interpreter itself, not a virtual environment's link to it.
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _build(spec: ImageSpec, directory: Path, log: Log, fetch: Optional[Fetch]) -> None:
    uv = find_uv()
    python = _base_python() if _running(spec.python) else _pyenv_python(spec) or str(spec.python)
    if uv is not None:
        command = [uv, "venv", "--quiet", "--no-config", "--no-project", "--no-python-downloads"]
        _run([*command, "--python", python, str(directory)], log, _no_python(spec, uv=True))
    else:
        if not os.path.isabs(python):
            python = _python_on_path(spec)
        hint = "; install uv on the node (pip install uv), or the python3-venv package"
        _run([python, "-I", "-m", "venv", str(directory)], log, f"python -m venv failed{hint}")
    with tempfile.TemporaryDirectory(prefix="modal-image-") as name:
        scratch = Path(name)
        copied: Dict[str, Tuple[str, int]] = {}
        for number, layer in enumerate(spec.layers, 1):
            if layer.kind == "copy":
                copied.update(_fetch_files(layer, scratch, fetch))
                continue
            env = dict(layer.options.get("env") or {})
            if layer.kind == "uv_sync":
                what = f"image step {number} (uv sync)"
                command = _sync(layer, uv, directory, scratch / f"project-{number}", fetch, what)
                env["UV_PROJECT_ENVIRONMENT"] = str(directory)
            else:
                what = f"image step {number} (pip install {' '.join(layer.args) or 'of requirements'})"
                words = _requirements(layer, scratch, fetch)
                if not words:
                    continue
                command = [*_installer(uv, directory), *_options(layer, uv is not None), *words]
            if copied:
                command = _seeing(copied, command, scratch, directory.parent)
            _run(command, log, f"{what} failed", env)


def _fetch_files(layer: ImageLayer, scratch: Path, fetch: Optional[Fetch]) -> Dict[str, Tuple[str, int]]:
    """Bring the files of a copy step here; return by their place what each is and its mode."""
    found: Dict[str, Tuple[str, int]] = {}
    for place, blob, mode in json.loads(_fetched(layer, layer.options["manifest"], fetch)):
        path = scratch / blob
        if not path.exists():
            path.write_bytes(_fetched(layer, blob, fetch))
        found[place] = (blob, mode)
    return found


def _fetched(layer: ImageLayer, blob: str, fetch: Optional[Fetch]) -> bytes:
    if fetch is None:
        raise ImageBuildError("the image needs local files, and nothing here can fetch them")
    try:
        return fetch(blob)
    except (OSError, KeyError, ValueError) as error:
        step = " ".join((layer.kind, *layer.args))
        raise ImageBuildError(
            f"the files of the image step {step} cannot be fetched ({error!r}); publish the app again"
        ) from error


def _seeing(
    copied: Mapping[str, Tuple[str, int]], command: Sequence[str], scratch: Path, root: Path
) -> List[str]:
    """Return a command that runs another one where it sees the copied files at their places."""
    plan = scratch / "plan.json"
    files = [[place, blob, mode] for place, (blob, mode) in copied.items()]
    plan.write_text(json.dumps({"files": files, "keep": [str(scratch), str(root)], "command": list(command)}))
    program = Path(__file__).with_name("_with_files.py")
    return [_base_python(), "-I", "-S", str(program), str(plan)]


def _pyenv_python(spec: ImageSpec) -> Optional[str]:
    """Return pyenv's newest interpreter of a version; its shims on PATH run none but the chosen ones."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    wanted = str(spec.python).split(".")
    found = []
    try:
        pythons = list(versions.glob("*/bin/python"))
    except OSError:
        # Of another user, who does not show them.
        pythons = []
    for python in pythons:
        numbers = python.parent.parent.name.split(".")
        if numbers[: len(wanted)] == wanted and all(x.isdigit() for x in numbers):
            found.append(([int(x) for x in numbers], str(python)))
    return max(found)[1] if found else None


def _python_on_path(spec: ImageSpec) -> str:
    minor = ".".join(str(spec.python).split(".")[:2])
    found = _pyenv_python(spec) or shutil.which(f"python{minor}")
    if found is None:
        raise ImageBuildError(_no_python(spec, uv=False))
    return found


def _no_python(spec: ImageSpec, *, uv: bool) -> str:
    install = f"`uv python install {spec.python}`" if uv else f"install python{spec.python}"
    return (
        f"no usable Python {spec.python or 'interpreter'} on this machine: {install} there, or ask for "
        "another with Image.debian_slim(python_version=...)"
    )


def _sync(
    layer: ImageLayer, uv: Optional[str], directory: Path, project: Path, fetch: Optional[Fetch], what: str
) -> List[str]:
    """Lay out a uv project; return the command that installs what it locks, beside what is there already."""
    if uv is None:
        raise ImageBuildError(f"{what} needs uv on the node: install it there (pip install uv)")
    project.mkdir()
    for name, blob, _ in layer.options["files"]:
        (project / name).write_bytes(_fetched(layer, blob, fetch))
    command = [uv, "sync", "--project", str(project), "--python", str(directory / "bin" / "python")]
    command += ["--inexact", "--no-install-workspace", "--no-progress"]
    return [*command, *sync_words(layer.options)]


def _installer(uv: Optional[str], directory: Path) -> List[str]:
    python = str(directory / "bin" / "python")
    if uv is not None:
        return [uv, "pip", "install", "--no-config", "--no-progress", "--python", python]
    return [python, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]


def _options(layer: ImageLayer, uv: bool) -> List[str]:
    options = layer.options
    words: List[str] = []
    extra = shlex.split(str(options.get("extra_options") or ""))
    if uv:
        extra = [word for word in extra if word not in _PIP_ONLY]
    for name in ("index_url", "extra_index_url", "find_links"):
        value = options.get(name)
        values = [value] if isinstance(value, str) else list(value or ())
        for item in values:
            words += ["--" + name.replace("_", "-"), str(item)]
    if options.get("pre"):
        words += ["--prerelease", "allow"] if uv else ["--pre"]
    return words + extra


def _requirements(layer: ImageLayer, scratch: Path, fetch: Optional[Fetch]) -> List[str]:
    words = list(layer.args)
    blob = layer.options.get("requirements")
    if blob:
        path = scratch / "requirements.txt"
        path.write_bytes(_fetched(layer, blob, fetch))
        words += ["-r", str(path)]
    return words


def _run(command: Sequence[str], log: Log, what: str, variables: Optional[Mapping[str, str]] = None) -> None:
    # The container's own paths and interpreter settings must not leak into the build.
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    env.update(variables or {})
    try:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as exc:
        raise ImageBuildError(f"{what}: cannot run {command[0]}: {exc.strerror}") from exc
    lines: List[str] = []
    unreachable = False
    assert process.stdout is not None
    with process, process.stdout as output:
        for raw in output:
            line = raw.decode("utf-8", "replace").rstrip()
            log(line)
            unreachable = unreachable or _UNREACHABLE.search(line) is not None
            if line:
                lines = [*lines[1 - _LAST_LINES :], line]
    if process.returncode != 0:
        if unreachable:
            what += (
                "; the package index cannot be reached from this machine: check its network, or give "
                "index_url= or find_links=, then try again"
            )
        raise ImageBuildError(what + (":\n" + "\n".join(lines) if lines else ""))
