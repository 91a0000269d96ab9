"""The build steps of an Image that need a container runtime."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ._image_bases import command_lines
from ._image_context import AUTO_DOCKERIGNORE, context
from ._image_pip import packages_of, pip_options
from ._image_steps import FilesStep, LayerStep, Step, step_options
from .exception import InvalidError
from .wire.spec import ImageSpec

if TYPE_CHECKING:
    from .gpu import GPU
    from .image import Image
    from .mount import Mount
    from .nomad import Placement
    from .secret import Secret

_HOSTS = {"github.com": "GITHUB_TOKEN", "gitlab.com": "GITLAB_TOKEN"}
_APT_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.:~=_*-]*(/[\w.-]+)?")


class Builds:
    """The part of ``Image`` whose steps need a container runtime."""

    __slots__ = ()

    _spec: ImageSpec

    @abstractmethod
    def _build_step(self, step: Step, name: str, force_build: bool = False) -> Image: ...

    def apt_install(
        self,
        *packages: str | list[str],
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: GPU | Sequence[GPU] = None,
    ) -> Image:
        """Install Debian packages with ``apt``.

        Args:
            *packages: names, or lists of them; ``"git=1:2.39*"`` asks for a version.
            force_build: build this and the later steps anew.
            env: environment variables of this step.
            secrets: whose variables the step sees.
            gpu: what the step sees.

        Raises:
            InvalidError: when a package is no name.

        Example:
            >>> image = Image.debian_slim().apt_install("git", "libpq-dev")
        """
        found = command_lines("apt_install", packages)
        for name in found:
            if not _APT_PACKAGE.fullmatch(name):
                raise InvalidError(f"apt_install got {name!r}, which is no name of a Debian package")
        return self._layer("apt_install", "apt", found, force_build, env, secrets, gpu)

    def run_commands(
        self,
        *commands: str | list[str],
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: GPU | Sequence[GPU] = None,
        force_build: bool = False,
    ) -> Image:
        """Run shell commands.

        Args:
            *commands: commands, or lists of them; each is run by a shell of its own.
            env: environment variables of this step.
            secrets: whose variables the commands see.
            gpu: what the commands see.
            force_build: build this and the later steps anew.

        Raises:
            InvalidError: when a command is no string.

        Example:
            >>> image = Image.debian_slim().run_commands("useradd --create-home someone")
        """
        found = command_lines("run_commands", commands)
        return self._layer("run_commands", "run", found, force_build, env, secrets, gpu)

    def dockerfile_commands(
        self,
        *dockerfile_commands: str | list[str],
        context_files: Mapping[str, str] = {},
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: GPU | Sequence[GPU] = None,
        context_mount: Mount | None = None,
        context_dir: str | Path | None = None,
        force_build: bool = False,
        ignore: Sequence[str] | Callable[[Path], bool] = AUTO_DOCKERIGNORE,
    ) -> Image:
        """Add lines of a Dockerfile, with anything but ``FROM``.

        Args:
            *dockerfile_commands: lines, or lists of them.
            context_files: more files that ``COPY`` finds: place in the context and local path.
            env: environment variables of this step.
            secrets: whose variables the ``RUN`` instructions see.
            gpu: what the ``RUN`` instructions see.
            context_mount: deprecated: a Mount with the files to copy.
            context_dir: where ``COPY`` finds its sources; by default the working directory.
            force_build: build this and the later steps anew.
            ignore: what of the context stays out, as in `add_local_dir`; by default what the context's
                ``.dockerignore`` says.

        Raises:
            InvalidError: naming the parameter that cannot be used.

        Example:
            >>> image = Image.debian_slim().dockerfile_commands("COPY data /data", ignore=["*.venv"])
        """
        name = "dockerfile_commands"
        found = command_lines(name, dockerfile_commands)
        if not found:
            return cast("Image", self)
        local = context(
            name,
            context_files=context_files,
            context_mount=context_mount,
            context_dir=context_dir,
            ignore=ignore,
        )
        options, used = step_options(name, env, secrets, gpu)
        return self._build_step(LayerStep(name, "dockerfile", found, options, used, local), name, force_build)

    def entrypoint(self, entrypoint_commands: list[str]) -> Image:
        """Set the entry point: a program that is given the container's command and must run it.

        Raises:
            InvalidError: when it is no list of strings.

        Example:
            >>> image = Image.from_registry("python:3.11").entrypoint(["/usr/bin/env"])
        """
        return self._words("entrypoint", "entrypoint_commands", entrypoint_commands)

    def shell(self, shell_commands: list[str]) -> Image:
        """Set the shell that runs the commands of later steps.

        Raises:
            InvalidError: when it is no list of strings.

        Example:
            >>> image = Image.debian_slim().shell(["/bin/bash", "-euc"]).run_commands("echo $BASH_VERSION")
        """
        return self._words("shell", "shell_commands", shell_commands)

    def cmd(self, cmd: list[str]) -> Image:
        """Set what a container of the Image runs where nothing else is said, as a Sandbox may.

        Raises:
            InvalidError: when it is no list of strings.

        Example:
            >>> image = Image.debian_slim().cmd(["python", "-m", "http.server"])
        """
        return self._words("cmd", "cmd", cmd)

    def _words(self, name: str, parameter: str, words: Any) -> Image:
        if not isinstance(words, list) or not all(isinstance(x, str) for x in words):
            raise InvalidError(f"{parameter} of {name} is {words!r}; give a list of strings")
        return self._build_step(LayerStep(name, name, tuple(words)), name)

    def micromamba_install(
        self,
        *packages: str | list[str],
        spec_file: str | None = None,
        channels: Sequence[str] = (),
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: GPU | Sequence[GPU] = None,
    ) -> Image:
        """Install Conda packages with micromamba, which the Image must have.

        Args:
            *packages: package specifications, or lists of them.
            spec_file: a local file of specifications, read when the App is run or deployed.
            channels: where the packages come from, such as ``"conda-forge"``.
            force_build: build this and the later steps anew.
            env: environment variables of this step.
            secrets: whose variables the step sees.
            gpu: what the step sees.

        Raises:
            InvalidError: when a package is no string.

        Example:
            >>> image = Image.micromamba().micromamba_install("numpy>=2", channels=["conda-forge"])
        """
        name = "micromamba_install"
        found = command_lines(name, packages)
        options, used = step_options(name, env, secrets, gpu, channels=list(command_lines(name, channels)))
        if spec_file is None and not found:
            return cast("Image", self)
        files = () if spec_file is None else ((os.path.basename(str(spec_file)), str(spec_file)),)
        return self._build_step(FilesStep(name, "conda", files, found, options, used), name, force_build)

    def pip_install_private_repos(
        self,
        *repositories: str,
        git_user: str,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        gpu: GPU | Sequence[GPU] = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        force_build: bool = False,
    ) -> Image:
        """Install Python packages from private repositories of GitHub or GitLab.

        Args:
            *repositories: such as ``"github.com/owner/name@main#subdirectory=inner"``.
            git_user: whose token it is.
            find_links: a page or directory with distributions.
            index_url: the package index to use in place of the default.
            extra_index_url: one more package index.
            pre: allow pre-releases.
            extra_options: further words for pip, as on a command line.
            gpu: what the step sees.
            env: environment variables of this step.
            secrets: one must have ``GITHUB_TOKEN`` or ``GITLAB_TOKEN``.
            force_build: build this and the later steps anew.

        Raises:
            InvalidError: for a repository elsewhere, or without a Secret.

        Example:
            >>> image = Image.debian_slim().pip_install_private_repos(
            ...     "github.com/ecorp/private@1.0.0",
            ...     git_user="someone",
            ...     secrets=[Secret.from_name("github-read-private")],
            ... )
        """
        name = "pip_install_private_repos"
        if not isinstance(git_user, str) or not re.fullmatch(r"[\w.-]+", git_user):
            raise InvalidError(f"git_user of {name} is {git_user!r}; give the user's name")
        wrong = [x for x in repositories if not isinstance(x, str) or x.split("/")[0] not in _HOSTS]
        if wrong:
            raise InvalidError(
                f"{name} got {', '.join(map(repr, wrong))}; repositories begin with 'github.com/' or"
                " 'gitlab.com/', without 'https://'"
            )
        if not secrets:
            raise InvalidError(
                f"{name} needs secrets=: a modal.Secret with GITHUB_TOKEN or GITLAB_TOKEN, as the host says"
            )
        if not repositories:
            return cast("Image", self)
        options, used = pip_options(
            name,
            find_links=find_links,
            index_url=index_url,
            extra_index_url=extra_index_url,
            pre=pre,
            extra_options=extra_options,
            env=env,
            image_env={},
            secrets=secrets,
            gpu=gpu,
        )
        options["git_user"] = git_user
        options["tokens"] = {host: key for host, key in _HOSTS.items() if _on(host, repositories)}
        packages = packages_of(name, [f"git+https://{repository}" for repository in repositories])
        return self._build_step(LayerStep(name, "pip_private", packages, options, used), name, force_build)

    def run_function(
        self,
        raw_f: Callable[..., Any],
        secrets: Sequence[Secret] = (),
        gpu: GPU | Sequence[GPU] = None,
        mounts: Sequence[Mount] = (),
        volumes: Mapping[Any, Any] = {},
        network_file_systems: Mapping[Any, Any] = {},
        cpu: float | tuple[float, float] | None = None,
        memory: int | tuple[int, int] | None = None,
        timeout: int | None = 60 * 60,
        force_build: bool = False,
        cloud: str | None = None,
        region: str | Sequence[str] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        env: Mapping[str, str | None] | None = None,
        include_source: bool = True,
        nomad: Placement | None = None,
    ) -> Image:
        """Run a function while the Image is built; what it changes in the file system becomes part of it.

        It is a Function of its own, whose Image is what was built so far: it is placed, limited and given
        what it asks for as any other, and is run again when its container is lost. The layer is built anew
        when its source, its arguments, the values of the globals that it names or the Volumes that it is
        given change, but not when what is in those does.

        Args:
            raw_f: a plain function, sync or async.
            secrets: whose variables it sees.
            gpu: as in `App.function`.
            mounts: deprecated: whose files are there before it runs.
            volumes: Volumes and buckets by paths; they are no part of the Image.
            network_file_systems: NetworkFileSystems by paths, the same.
            cpu: processors, or a pair (request, limit).
            memory: MiB, or a pair (request, limit).
            timeout: seconds that it may run.
            force_build: build this and the later steps anew.
            cloud: as in `App.function`.
            region: the same.
            args: its positional arguments.
            kwargs: its keyword arguments.
            env: environment variables of this step.
            include_source: whether its module, and what that imports, travel along.
            nomad: as in `App.function`.

        Raises:
            InvalidError: for a lambda and what is no function, and as `App.function` does.

        Example:
            >>> def download():
            ...     Path("/model").write_text("parameters")
            >>> image = Image.debian_slim().pip_install("torch").run_function(download, region="eu")
        """
        from ._image_files import LocalFiles
        from ._image_function import FunctionStep, check_function
        from ._options import function_options, mounts_of
        from ._volume_mounts import check_apart

        check_function(raw_f)
        if not isinstance(args, Sequence) or isinstance(args, str) or not isinstance(kwargs, Mapping):
            raise InvalidError(f"run_function got args={args!r}, kwargs={kwargs!r}; give a list and a dict")
        options = function_options(
            env=env,
            cpu=cpu,
            memory=memory,
            gpu=gpu,
            timeout=86400 if timeout is None else timeout,
            region=region,
            cloud=cloud,
            nomad=nomad,
            secrets=secrets,
            volumes=volumes,
            network_file_systems=network_file_systems,
            include_source=include_source,
        )
        check_apart(options.volumes, options.network_file_systems)
        image: Any = self
        wishes: list[LocalFiles] = [x for mount in mounts_of("run_function", mounts) for x in mount._wishes]
        if wishes:
            image = image._add_local("run_function(mounts=...)", wishes, True)
        step = FunctionStep(raw_f, options, tuple(args), dict(kwargs))
        return cast("Image", image._build_step(step, "run_function", force_build))

    def _layer(
        self,
        name: str,
        kind: str,
        words: tuple[str, ...],
        force_build: bool,
        env: Any,
        secrets: Any,
        gpu: Any,
    ) -> Image:
        options, used = step_options(name, env, secrets, gpu)
        if not words:
            return cast("Image", self)
        return self._build_step(LayerStep(name, kind, words, options, used), name, force_build)


def _on(host: str, repositories: Sequence[str]) -> bool:
    return any(repository.split("/")[0] == host for repository in repositories)
