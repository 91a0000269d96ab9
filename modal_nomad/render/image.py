"""Image → one Dockerfile for each layer that has to be built, each under its content key."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modal_nomad.render.image_settings import ImageSettings
from modal_nomad.wire.spec import ImageLayer, ImageSpec, canonical_json, content_key, sync_words

SCRATCH = "/.modal-nomad"
"""Where files lie for the time of one step."""


@dataclass(frozen=True)
class BuildLayer:
    """One image of the chain, built from the one before.

    Attributes:
        key: its content key: of the image before, the instructions and what they copy.
        step: which step it is, in words.
        parent: the key of the image before; empty for the first.
        dockerfile: the instructions; ``FROM`` names the image before by its key's tag.
        files: small files of the build context: name, SHA-256 and mode of each.
        manifest: the SHA-256 of the list of its other files; empty for none.
        sources: directories that the context has even when nothing is in them.
        build_args: values of ``ARG``.
        secrets: whose variables its ``RUN`` instructions see, as ``wire.mounts.SecretRef`` objects.
        gpu: whether they see the machine's GPUs.
        pull: an image that needs credentials: ``tag``, ``cloud`` and ``secrets``; empty for none.
        function: the Function that makes it, in place of instructions: its ``function``, ``arguments``, and
            how many layers of the specification are ``before`` it; empty for none.
        fresh: whether nothing that was built before may be used.
    """

    key: str
    step: str
    parent: str
    dockerfile: str
    files: tuple[tuple[str, str, int], ...] = ()
    manifest: str = ""
    sources: tuple[str, ...] = ()
    build_args: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[Mapping[str, Any], ...] = ()
    gpu: bool = False
    pull: Mapping[str, Any] = field(default_factory=dict)
    function: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False


def render_image(spec: ImageSpec, settings: ImageSettings) -> tuple[BuildLayer, ...]:
    """Return what has to be built for an image, the first one first.

    Args:
        spec: the finished specification.
        settings: where images come from and go to, and what the builder's version installs.

    Raises:
        ValueError: a step's kind is unknown.

    Example:
        >>> layer, = render_image(ImageSpec("3.11", (ImageLayer("apt", ("git",)),)), ImageSettings())
        >>> layer.dockerfile.splitlines()[0]
        'FROM python:3.11-slim-bookworm'
    """
    return _Chain(spec, settings).layers()


class _Chain:
    """The layers so far, and the settings that the next one begins with."""

    def __init__(self, spec: ImageSpec, settings: ImageSettings) -> None:
        self._spec = spec
        self._settings = settings
        self._done: list[BuildLayer] = []
        self._base = settings.debian_slim_image(spec.python or "")
        self._pull: Mapping[str, Any] = {}
        self._prefix: list[str] = []
        self._env: dict[str, str] = {}
        self._salt = ""
        self._venv = False

    def layers(self) -> tuple[BuildLayer, ...]:
        number = 0
        for place, layer in enumerate(self._spec.layers):
            if layer.kind == "function" and (self._prefix or self._pull or not self._done):
                # It is run in a container of what comes before it, all of it.
                self._close("the settings of the image", [])
            self._salt = str(layer.options.get("build") or self._salt)
            setting = _SETTINGS.get(layer.kind)
            if setting is not None:
                self._prefix += setting(layer)
                if layer.kind == "env":
                    self._env.update(layer.options)
                continue
            number += 1
            if layer.kind == "base":
                self._take_base(layer)
                continue
            step = f"image step {number} ({_words_of(layer)})"
            if layer.kind == "function":
                told = {name: layer.options[name] for name in ("key", "function", "arguments")}
                self._close(step, [], function={**told, "before": place})
                continue
            self._add(layer, step)
        if self._prefix or self._pull or not self._done:
            self._close("the settings of the image", [])
        return tuple(self._done)

    def _take_base(self, layer: ImageLayer) -> None:
        if layer.options.get("scratch"):
            self._base = "scratch"
            return
        (self._base,) = layer.args
        if layer.options.get("secrets"):
            self._pull = {
                "tag": self._base,
                "cloud": layer.options.get("cloud", ""),
                "secrets": list(layer.options["secrets"]),
            }

    def _add(self, layer: ImageLayer, step: str) -> None:
        options = layer.options
        manifest = str(options.get("manifest") or "")
        files = [(name, sha, mode) for name, sha, mode in options.get("files") or ()]
        more: dict[str, Any] = {
            "secrets": tuple(options.get("secrets") or ()),
            "gpu": bool(options.get("gpu")),
            "build_args": dict(options.get("build_args") or {}),
        }
        if layer.kind == "python":
            self._add_python(layer.args[0], step)
            return
        if options.get("base"):
            # A whole Dockerfile, which has its own beginning.
            self._close(step, list(layer.args), whole=True, manifest=manifest, **more)
            return
        if layer.kind == "micromamba":
            self._base = self._settings.micromamba_image
            self._close(step, _micromamba(layer))
            return
        if layer.kind == "copy":
            (place,) = layer.args
            source = place.strip("/") or "."
            lines = [f"COPY {_json([source, place])}"]
            self._close(step, lines, manifest=manifest, sources=(source,))
            return
        if layer.kind == "pip" and self._venv:
            layer = dataclasses.replace(layer, options={**options, "venv": True})
        if options.get("requirements"):
            files.append(("requirements.txt", options["requirements"], 0o644))
        render = _STEPS.get(layer.kind)
        if render is None:
            raise ValueError(f"the image step {layer.kind!r} is unknown here: update the dispatcher")
        env = {k: v for k, v in (options.get("env") or {}).items() if self._env.get(k) != v}
        lines = render(layer, self._settings, _assignments(env))
        if layer.kind == "uv_sync":
            self._venv = True
        self._close(step, lines, files=tuple(files), manifest=manifest, **more)

    def _add_python(self, version: str, step: str) -> None:
        stage, place = self._settings.python_stage(version)
        self._close(step, [f"COPY --from=modal_python {place}/ /usr/local/", *_LINKS], before=stage)

    def _close(
        self,
        step: str,
        lines: list[str],
        *,
        before: Iterable[str] = (),
        whole: bool = False,
        function: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """End a layer: everything that its image is made of is known."""
        text = [*before, *([] if whole else [self._prefix_from()]), *self._prefix, *lines]
        parent = self._done[-1].key if self._done else ""
        # Not the image before by its tag: the tag says where it lies, its key what it is.
        body = [*before, *([] if whole or parent else [self._base]), *self._prefix, *lines]
        known = {
            key: value for key, value in more.items() if key in ("files", "manifest", "build_args", "gpu")
        }
        key = content_key(
            [self._settings.version, parent, body, known, dict(function or {}).get("key"), self._salt]
        )
        self._done.append(
            BuildLayer(
                key,
                step,
                parent,
                "\n".join([*text, ""]),
                pull=self._pull,
                function=function or {},
                fresh=bool(self._salt),
                **more,
            )
        )
        self._prefix, self._pull, self._salt = [], {}, ""

    def _prefix_from(self) -> str:
        return f"FROM {self._settings.tag(self._done[-1].key) if self._done else self._base}"


def _words_of(layer: ImageLayer) -> str:
    """Return a step in words, as users know it."""
    said = {
        "pip": "pip install",
        "pip_private": "pip install",
        "apt": "apt install",
        "run": "run",
        "dockerfile": "Dockerfile" if layer.options.get("base") else "dockerfile commands",
        "conda": "micromamba install",
        "poetry": "poetry install",
        "uv_sync": "uv sync",
        "function": "run function",
        "copy": "add local files at",
        "python": "add Python",
    }.get(layer.kind, layer.kind)
    rest = "; ".join(layer.args) if layer.kind == "run" else " ".join(layer.args)
    if layer.kind in ("pip", "poetry", "conda", "uv_sync") and not rest:
        rest = "of the listed requirements"
    if layer.kind == "dockerfile" and layer.options.get("base"):
        rest = ""
    if layer.kind == "function":
        rest = str(layer.options["function"].get("name", ""))
    words = f"{said} {rest}".strip().replace("\n", " ")
    return words if len(words) <= 120 else f"{words[:117]}..."


def _json(words: Iterable[str]) -> str:
    return canonical_json(list(words)).decode()


def _assignments(env: Mapping[str, str]) -> str:
    return "".join(f"{key}={shlex.quote(value)} " for key, value in env.items())


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("\n", "\\n\\\n")
    return f'"{escaped}"'


def _env(layer: ImageLayer) -> list[str]:
    words = [f"{key}={_quoted(value)}" for key, value in layer.options.items() if key != "build"]
    return [f"ENV {' '.join(words)}"] if words else []


_SETTINGS: Mapping[str, Callable[[ImageLayer], list[str]]] = {
    "env": _env,
    "workdir": lambda layer: [f"WORKDIR {layer.args[0]}"],
    "entrypoint": lambda layer: [f"ENTRYPOINT {_json(layer.args)}"],
    "shell": lambda layer: [f"SHELL {_json(layer.args)}"],
    "cmd": lambda layer: [f"CMD {_json(layer.args)}"],
}
_LINKS = [
    "RUN ln -sf python3 /usr/local/bin/python"
    " && rm -f /usr/local/lib/python3*/EXTERNALLY-MANAGED /usr/local/lib/python3*/*/EXTERNALLY-MANAGED"
]


def _pip_words(layer: ImageLayer) -> list[str]:
    options = layer.options
    words: list[str] = []
    for name in ("index_url", "extra_index_url", "find_links"):
        if options.get(name):
            words += ["--" + name.replace("_", "-"), str(options[name])]
    if options.get("pre"):
        words.append("--pre")
    words += shlex.split(str(options.get("extra_options") or ""))
    words += layer.args
    if options.get("requirements"):
        words += ["-r", f"{SCRATCH}/requirements.txt"]
    return words


_VENV = "/.uv/.venv"


def _pip(layer: ImageLayer, settings: ImageSettings, env: str) -> list[str]:
    version = layer.options.get("uv_version")
    install = "python -m pip install --no-cache-dir"
    if version:
        uv = shlex.quote(f"uv=={version}")
        install = (
            f"python -m pip install --no-cache-dir {uv} && {env}python -m uv pip install --system --no-cache"
        )
    if layer.options.get("venv"):
        # uv's environments have no pip; the uv that made this one is on the PATH.
        install = f"uv pip install --no-cache --python {_VENV}/bin/python"
    command = f"RUN {env}{install} {shlex.join(_pip_words(layer))}"
    if not layer.options.get("requirements"):
        return [command]
    return [f"COPY requirements.txt {SCRATCH}/", command]


def _pip_private(layer: ImageLayer, settings: ImageSettings, env: str) -> list[str]:
    # The token is part of what git rewrites addresses to, so that no command line or message has it.
    user = layer.options["git_user"]
    # Exported with the rest: an assignment in front of export is no variable of what runs later.
    lines = [f"export {env}GIT_TERMINAL_PROMPT=0 GIT_CONFIG_COUNT={len(layer.options['tokens'])}"]
    for index, (host, variable) in enumerate(sorted(layer.options["tokens"].items())):
        lines.append(f'test -n "${variable}" || {{ echo "a Secret of this step needs {variable}"; exit 1; }}')
        lines.append(
            f'export GIT_CONFIG_KEY_{index}="url.https://{user}:${variable}@{host}/.insteadOf"'
            f' GIT_CONFIG_VALUE_{index}="https://{host}/"'
        )
    lines.append(f"python -m pip install --no-cache-dir {shlex.join(_pip_words(layer))}")
    return ["RUN " + " && ".join(lines)]


def _apt(layer: ImageLayer, settings: ImageSettings, env: str) -> list[str]:
    names = shlex.join(layer.args)
    return [
        f"RUN {env}apt-get update"
        f" && {env}DEBIAN_FRONTEND=noninteractive apt-get install -y {names}"
        " && rm -rf /var/lib/apt/lists/*"
    ]


def _run(layer: ImageLayer, settings: ImageSettings, env: str) -> list[str]:
    exports = f"export {env.rstrip()} && " if env else ""
    return [f"RUN {exports}{command}" for command in layer.args]


def _dockerfile(layer: ImageLayer, settings: ImageSettings, env: str) -> list[str]:
    named = layer.options.get("env") or {}
    # For this step alone: an ARG is in no image.
    return [*(f"ARG {key}={_quoted(value)}" for key, value in named.items()), *layer.args]


def _micromamba(layer: ImageLayer) -> list[str]:
    return [
        "USER root",
        'SHELL ["/bin/bash", "-c"]',
        'ENV PATH="/opt/conda/bin:$PATH" MAMBA_ROOT_PREFIX="/opt/conda"',
        f"RUN micromamba install -n base -y -c conda-forge python={layer.args[0]} pip"
        " && micromamba clean --all --yes",
    ]


def _conda(layer: ImageLayer, settings: ImageSettings, env: str) -> list[str]:
    words = [word for channel in layer.options.get("channels") or () for word in ("-c", channel)]
    lines = []
    for name, _, _ in layer.options.get("files") or ():
        lines.append(f"COPY {_json([name, f'{SCRATCH}/{name}'])}")
        words += ["-f", f"{SCRATCH}/{name}"]
    return [*lines, f"RUN {env}micromamba install -n base -y {shlex.join([*words, *layer.args])}"]


# Each of the two settings is of some versions of Poetry, and later ones have one installer only.
_OLD_INSTALLER = (
    "{ poetry config experimental.new-installer false 2>/dev/null"
    " || poetry config installer.modern-installation false 2>/dev/null"
    ' || echo "$(poetry --version) has no old installer: its own is used"; }'
)


def _poetry(layer: ImageLayer, settings: ImageSettings, env: str) -> list[str]:
    options = layer.options
    names = [name for name, _, _ in options["files"]]
    words = []
    for flag in ("with", "without", "only"):
        if options.get(flag):
            words += [f"--{flag}", ",".join(options[flag])]
    version = options.get("poetry_version") or settings.poetry
    old = f"&& {_OLD_INSTALLER} " if options.get("old_installer") else ""
    return [
        f"COPY {_json([*names, f'{SCRATCH}/poetry/'])}",
        f"RUN cd {SCRATCH}/poetry"
        f" && {env}python -m pip install --no-cache-dir {shlex.quote(f'poetry=={version}')} "
        f"{old}&& poetry config virtualenvs.create false"
        f" && {env}poetry install --no-root --no-interaction {shlex.join(words)}".rstrip(),
    ]


def _uv_sync(layer: ImageLayer, settings: ImageSettings, env: str) -> list[str]:
    options = layer.options
    words = sync_words(options)
    uv = shlex.quote(f"uv=={options.get('uv_version') or settings.uv}")
    names = [name for name, _, _ in options["files"]]
    return [
        f"COPY {_json([*names, '/.uv/'])}",
        f"RUN {env}python -m pip install --no-cache-dir {uv}"
        f" && {env}UV_PROJECT_ENVIRONMENT={_VENV} UV_NO_CACHE=1 python -m uv sync --project /.uv"
        ' --python "$(command -v python)" --no-install-workspace --compile-bytecode'
        f" {shlex.join(words)}".rstrip(),
        f'ENV PATH="{_VENV}/bin:$PATH"',
    ]


_STEPS: Mapping[str, Callable[[ImageLayer, ImageSettings, str], list[str]]] = {
    "pip": _pip,
    "pip_private": _pip_private,
    "apt": _apt,
    "run": _run,
    "dockerfile": _dockerfile,
    "conda": _conda,
    "poetry": _poetry,
    "uv_sync": _uv_sync,
}
