"""docker, podman and buildah behind one small contract: each is run as the program that it is."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from modal_nomad.exception import ImageBuildError

Log = Callable[[str], None]
LAST_LINES = 20
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What docker says of itself where its newer builder is not installed.
_NOISE = (
    "DEPRECATED: The legacy builder is deprecated",
    "Install the buildx component to build images",
    "https://docs.docker.com/go/buildx/",
    # They are, for the time of a build, in a folder of its own.
    "credentials are stored unencrypted",
    "Configure a credential helper",
    "https://docs.docker.com/go/credential-store/",
    "credential-stores",
    "Login Succeeded",
)


# What docker says between the lines of a step: nothing of it tells why one failed.
_BETWEEN = re.compile(
    r"Sending build context to Docker daemon| ---> |Step \d+/\d+ : FROM |Removing intermediate container "
    r"|#\d+ (?:DONE |CACHED|sha256:|\[internal\] |transferring |resolve |exporting |writing |naming |\.\.\.)"
    r"|#\d+ \[[^]]*\] FROM |------$"
)
# What runs may end by itself when its time is over, and say so.
_END_SECONDS = 10.0


class Tool:
    """A program that builds images.

    Args:
        name: ``docker``, ``podman`` or ``buildah``.
        log: gets its output, line by line.
        network: which network build steps have; empty is the program's default.
        insecure: whether the registry may be without TLS.
        folder: for what is only of this build: credentials of registries.
    """

    name = ""

    def __init__(self, log: Log, network: str, insecure: bool, folder: str) -> None:
        self._log = log
        self._network = ["--network", network] if network else []
        self._insecure = insecure
        self._folder = folder
        self._built: Dict[str, str] = {}

    def build(self, tag: str, dockerfile: str, context: str, args: Mapping[str, str], fresh: bool) -> None:
        """Build a Dockerfile. Raises ImageBuildError."""
        words = ["--file", dockerfile, *self._network]
        words += [word for key in args for word in ("--build-arg", f"{key}={args[key]}")]
        if fresh:
            words.append("--no-cache")
        self._build(tag, [*words, *self._build_words(), context])

    def run(
        self, tag: str, command: str, mounts: Mapping[str, str], *, gpu: bool = False, root: bool = False
    ) -> None:
        """Run a command in an image, and let what it changes be the image of that tag.

        Args:
            tag: the image.
            command: for the shell of the image.
            mounts: files that the command sees: place and path.
            gpu: whether it sees the machine's GPUs.
            root: whether it is run by root, whoever runs what else the image has.

        Raises:
            ImageBuildError: it failed.
        """
        user = self._user(tag) if root else ""
        lines = [f"FROM {tag}", f"RUN {command}"]
        if user:
            lines = [lines[0], "USER 0", lines[1], f"USER {user}"]
        empty = self._empty("\n".join([*lines, ""]))
        words = ["--file", f"{empty}/Dockerfile", "--no-cache", *self._network]
        words += _volumes(mounts)
        words += ["--device", "nvidia.com/gpu=all"] if gpu else []
        self._build(tag, [*words, *self._build_words(), empty])

    def _user(self, tag: str) -> str:
        """Return who runs what an image has; empty when it does not say."""
        raise NotImplementedError

    def _build(self, tag: str, words: Sequence[str]) -> None:
        place = os.path.join(self._folder, "image-id")
        self._run([self.name, "build", "--tag", tag, "--iidfile", place, *words])
        with open(place) as file:
            self._built[tag] = file.read().strip()

    def built(self, tag: str) -> str:
        """Return the id of an image that was built here; empty when it was not."""
        return self._built.get(tag) or self.image_id(tag)

    def _empty(self, dockerfile: str) -> str:
        """Return a build context with nothing but a Dockerfile."""
        empty = os.path.join(self._folder, "empty")
        os.makedirs(empty, exist_ok=True)
        with open(os.path.join(empty, "Dockerfile"), "w") as file:
            file.write(dockerfile)
        return empty

    def image_id(self, tag: str) -> str:
        """Return the id of an image on this machine; empty when there is none."""
        raise NotImplementedError

    def login(self, registry: str, username: str, password: str) -> None:
        """Use credentials for a registry from here on. Raises ImageBuildError."""
        words = [self.name, "login", "--username", username, "--password-stdin", *self._tls(), registry]
        self._run(words, stdin=password)

    def pull(self, tag: str) -> None:
        """Fetch an image. Raises ImageBuildError."""
        self._run([self.name, "pull", *self._tls(), tag])

    def push(self, tag: str) -> str:
        """Send an image to its registry; return its digest, ``sha256:…``. Raises ImageBuildError."""
        place = os.path.join(self._folder, "digest")
        self._run([self.name, "push", *self._tls(), "--digestfile", place, tag])
        with open(place) as file:
            return file.read().strip()

    def _tls(self) -> List[str]:
        return ["--tls-verify=false"] if self._insecure else []

    def _build_words(self) -> List[str]:
        # Docker's format has SHELL.
        return [*self._tls(), "--format", "docker"]

    def _environment(self) -> Dict[str, str]:
        return {**os.environ, "REGISTRY_AUTH_FILE": os.path.join(self._folder, "auth.json")}

    def _run(self, words: Sequence[str], stdin: Optional[str] = None) -> None:
        """Run a program. Raises ImageBuildError, with its last lines."""
        code, lines = self._stream(words, stdin)
        if code != 0:
            raise ImageBuildError("\n".join(lines[-LAST_LINES:]))

    def _stream(self, words: Sequence[str], stdin: Optional[str]) -> Tuple[int, List[str]]:
        process = subprocess.Popen(
            words,
            env=self._environment(),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lines: List[str] = []
        assert process.stdout is not None
        with process, _ended(process):
            if stdin is not None and process.stdin is not None:
                process.stdin.write(stdin.encode())
                process.stdin.close()
            for raw in process.stdout:
                # A progress bar's last state is what counts.
                line = _COLOURS.sub("", raw.decode("utf-8", "replace")).rstrip().rpartition("\r")[2]
                if not line or any(text in line for text in _NOISE):
                    continue
                self._log(line)
                if not _BETWEEN.match(line):
                    lines = [*lines[1 - LAST_LINES :], line]
        return process.returncode, lines

    def _ask(self, words: Sequence[str]) -> Optional[str]:
        done = subprocess.run(
            words,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return done.stdout.decode().strip() if done.returncode == 0 else None


class Docker(Tool):
    """docker: its daemon builds."""

    name = "docker"

    def run(
        self, tag: str, command: str, mounts: Mapping[str, str], *, gpu: bool = False, root: bool = False
    ) -> None:
        # Its builder mounts nothing: a container does it, and is kept.
        config = self._config(tag)
        container = f"modal-nomad-build-{os.getpid()}-{tag.rpartition(':')[2][:12]}"
        first, *rest = config.get("Shell") or ("/bin/sh", "-c")
        words = [self.name, "run", "--name", container, *self._network, "--entrypoint", first]
        words += _volumes(mounts)
        words += ["--gpus", "all"] if gpu else []
        words += ["--user", "0"] if root else []
        try:
            self._run([*words, tag, *rest, command])
            if self._ask([self.name, "commit", container, tag]) is None:
                raise ImageBuildError(f"{self.name} commit of {container} failed")
        finally:
            self._ask([self.name, "rm", "--force", "--volumes", container])
        # The container was run otherwise than the image's are, and a commit cannot take that back.
        back = [
            f"FROM {tag}",
            *(f"{x.upper()} {json.dumps(config.get(x) or [])}" for x in ("Entrypoint", "Cmd")),
            *([f"USER {config.get('User') or '0'}"] if root else []),
        ]
        empty = self._empty("\n".join([*back, ""]))
        self.build(tag, f"{empty}/Dockerfile", empty, {}, fresh=False)

    def _config(self, tag: str) -> Dict[str, Any]:
        found = self._ask([self.name, "image", "inspect", "--format", "{{json .Config}}", tag])
        return dict(json.loads(found)) if found else {}

    def image_id(self, tag: str) -> str:
        found = self._ask([self.name, "image", "inspect", "--format", "{{.Id}}", tag])
        return found or ""

    def push(self, tag: str) -> str:
        self._run([self.name, "push", tag])
        found = self._ask([self.name, "image", "inspect", "--format", "{{json .RepoDigests}}", tag])
        repository = tag.rpartition(":")[0]
        for place in json.loads(found or "[]"):
            name, _, digest = str(place).partition("@")
            if name == repository:
                return digest
        raise ImageBuildError(f"docker pushed {tag} and knows no digest of it")

    def _tls(self) -> List[str]:
        # Its daemon is told by its own configuration.
        return []

    def _build_words(self) -> List[str]:
        return []

    def _environment(self) -> Dict[str, str]:
        # Credentials of this build alone; plug-ins of the client, such as its newer builder, stay.
        mine = os.path.join(self._folder, "docker")
        if not os.path.isdir(mine):
            os.mkdir(mine, 0o700)
            theirs = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
            with contextlib.suppress(OSError):
                shutil.copy(os.path.join(theirs, "config.json"), mine)
            for name in ("cli-plugins", "contexts"):
                with contextlib.suppress(OSError):
                    os.symlink(os.path.join(theirs, name), os.path.join(mine, name))
        return {**os.environ, "DOCKER_CONFIG": mine}


class Podman(Tool):
    """podman: builds as buildah does, which is part of it."""

    name = "podman"

    def image_id(self, tag: str) -> str:
        found = self._ask([self.name, "image", "inspect", "--format", "{{.Id}}", tag])
        return f"sha256:{found}" if found else ""

    def _user(self, tag: str) -> str:
        return self._ask([self.name, "image", "inspect", "--format", "{{.User}}", tag]) or ""


class Buildah(Tool):
    """buildah: builds, and runs nothing else."""

    name = "buildah"

    def image_id(self, tag: str) -> str:
        found = self._ask([self.name, "inspect", "--type", "image", "--format", "{{.FromImageID}}", tag])
        return f"sha256:{found}" if found else ""

    def _user(self, tag: str) -> str:
        words = [self.name, "inspect", "--type", "image", "--format", "{{.OCIv1.Config.User}}", tag]
        return self._ask(words) or ""


TOOLS = {tool.name: tool for tool in (Docker, Podman, Buildah)}


def _volumes(mounts: Mapping[str, str]) -> List[str]:
    return [word for place, path in mounts.items() for word in ("--volume", f"{path}:{place}:ro")]


def sourcing(place: str, command: str) -> str:
    """Return a command that has the variables of a file."""
    return f". {shlex.quote(place)} && {command}"


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End a program when what follows it is ended."""
    try:
        yield
    except BaseException:
        # Asked first: without a daemon it has containers of its own to end.
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


@contextlib.contextmanager
def variables_file(folder: str, values: Mapping[str, str]) -> Iterator[str]:
    """Write variables where only the build reads them, for the time of one step."""
    path = os.path.join(folder, "variables")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            for key, value in values.items():
                file.write(f"export {key}={shlex.quote(value)}\n")
            # A step may run as another user.
            os.fchmod(file.fileno(), 0o644)
        yield path
    finally:
        os.unlink(path)
