"""From a plan to images: the layers that are not there yet, one after the other."""

import errno
import io
import json
import os
import shlex
import shutil
import tempfile
import zipfile
from typing import Any, Callable, Dict, List, Mapping, Sequence

from modal_nomad.exception import ImageBuildError
from modal_nomad.wire.dockerfile import Instruction, instructions, words
from modal_nomad.worker.image_builder.credentials import credentials
from modal_nomad.worker.image_builder.tools import TOOLS, Tool, sourcing, variables_file

Say = Callable[[Dict[str, Any]], None]
Fetch = Callable[[str], bytes]
_VARIABLES = "/run/modal-nomad-variables"
_CHANGES = "/run/modal-nomad-changes"
_RUNTIME = "/run/modal-nomad-runtime"
# One line, for a RUN instruction. The function was run by one of these.
_APPLY = (
    'for python in "${MODAL_PYTHON:-python3}" python3 python /usr/local/bin/python3 /usr/bin/python3'
    ' /opt/conda/bin/python3 /opt/venv/bin/python3; do command -v "$python" >/dev/null 2>&1 &&'
    f' exec "$python" -I -S -B {_RUNTIME}/modal_nomad/worker/image_builder/apply_layer.py {_CHANGES}; done;'
    ' echo "this image has no Python any more" >&2; exit 127'
)


class Build:
    """One run over a plan.

    Args:
        plan: ``tool``, ``network``, ``insecure``, ``push`` (to which registry, and by which credentials),
            ``server`` (where contents are) and ``layers``, as ``render.image.BuildLayer`` has them, each with
            its ``tag``, the ``values`` of its Secrets, and the blob that says what its function has changed.
        say: takes what happens: ``{"line"}``, ``{"layer", "reference"}``, ``{"needs"}``: a layer whose
            function has to be run first.
        fetch: returns a blob's bytes.
    """

    def __init__(self, plan: Mapping[str, Any], say: Say, fetch: Fetch) -> None:
        self._plan = plan
        self._say = say
        self._blob = fetch
        self._folder = ""

    def _fetch(self, sha: str) -> bytes:
        try:
            return self._blob(sha)
        except KeyError:
            raise ImageBuildError(
                "the dispatcher no longer has the files of this step: run or deploy the App again, which"
                " sends them"
            ) from None

    def run(self) -> None:
        """Build what is missing.

        Raises:
            ImageBuildError: naming the step, with its last lines.
        """
        with tempfile.TemporaryDirectory(prefix="modal-nomad-image-") as self._folder:
            tool = TOOLS[self._plan["tool"]](
                lambda line: self._say({"line": line}),
                self._plan.get("network", ""),
                bool(self._plan.get("insecure")),
                self._folder,
            )
            self._login(tool)
            layers = self._plan["layers"]
            for layer in layers[self._first(tool, layers) :]:
                self._fetch_base(tool, layer)
                if layer.get("function") and not layer.get("changes"):
                    self._say({"needs": layer["key"]})
                    raise ImageBuildError(f"{layer['step']} has to be run again: run or deploy the App again")
                if not layer.get("function"):
                    self._say({"step": layer["step"]})
                try:
                    self._layer(tool, layer)
                    if not tool.built(layer["tag"]):
                        raise ImageBuildError(f"{tool.name} built {layer['tag']} and does not have it")
                    if self._plan.get("push"):
                        tool.push(layer["tag"])
                except (ImageBuildError, OSError, KeyError, ValueError) as error:
                    raise ImageBuildError(f"{layer['step']} failed:\n{_text(error)}") from error
                # Its tag says what it is made of: built again it has the same one.
                self._say({"layer": layer["key"], "reference": layer["tag"]})

    def _login(self, tool: Tool) -> None:
        push = self._plan.get("push") or {}
        if push.get("username"):
            try:
                tool.login(push["registry"], push["username"], push["password"])
            except ImageBuildError as error:
                raise ImageBuildError(f"logging in to {push['registry']} failed:\n{error}") from None

    def _first(self, tool: Tool, layers: Sequence[Mapping[str, Any]]) -> int:
        """Return the number of the first layer to build: what comes after the last one that is here."""
        for number in range(len(layers) - 1, 0, -1):
            before = layers[number - 1]
            if not before.get("known"):
                continue
            if before.get("known") and self._plan.get("push") and not tool.image_id(before["tag"]):
                self._try_pull(tool, before["tag"])
            if tool.image_id(before["tag"]):
                return number
        return 0

    def _try_pull(self, tool: Tool, tag: str) -> None:
        try:
            tool.pull(tag)
        except ImageBuildError:
            # Built again.
            return

    def _fetch_base(self, tool: Tool, layer: Mapping[str, Any]) -> None:
        pull = layer.get("pull")
        if not pull:
            return
        registry = _registry(pull["tag"])
        try:
            tool.login(registry, *credentials(pull.get("cloud", ""), layer["pull_values"]))
            tool.pull(pull["tag"])
        except ImageBuildError as error:
            raise ImageBuildError(f"the image {pull['tag']} cannot be fetched:\n{error}") from None

    def _layer(self, tool: Tool, layer: Mapping[str, Any]) -> None:
        if layer.get("function"):
            self._function(tool, layer)
            return
        context = self._context(layer)
        fresh, args = bool(layer.get("fresh")), dict(layer.get("build_args") or {})
        if not layer.get("values") and not layer.get("gpu"):
            self._dockerfile(tool, layer["tag"], layer["dockerfile"].split("\n"), context, args, fresh)
            return
        self._apart(tool, layer, context, args, fresh)

    def _dockerfile(
        self,
        tool: Tool,
        tag: str,
        lines: Sequence[str],
        context: str,
        args: Mapping[str, str],
        fresh: bool,
    ) -> None:
        path = os.path.join(self._folder, "Dockerfile")
        with open(path, "w") as file:
            file.write("\n".join([*lines, ""]))
        tool.build(tag, path, context, args, fresh)

    def _apart(
        self, tool: Tool, layer: Mapping[str, Any], context: str, args: Mapping[str, str], fresh: bool
    ) -> None:
        """Build a step whose commands see Secrets or GPUs: each is run by itself, and leaves neither."""
        found = instructions(layer["dockerfile"].split("\n"))
        if sum(x.word == "FROM" for x in found) > 1:
            raise ImageBuildError(
                "a Dockerfile of several stages takes no secrets= and no gpu=: do with run_commands(...) what"
                " needs them"
            )
        tag = layer["tag"]
        pending: List[Instruction] = []
        variables: Dict[str, str] = {}

        def flush() -> None:
            lines = [x.text for x in pending]
            if pending and pending[0].word != "FROM":
                lines.insert(0, f"FROM {tag}")
            if lines:
                self._dockerfile(tool, tag, lines, context, args, fresh)
            pending.clear()

        for instruction in found:
            if instruction.word == "RUN":
                flush()
                self._command(tool, layer, tag, instruction, variables)
                continue
            if instruction.word == "ARG":
                name, _, value = instruction.value.partition("=")
                variables[name] = args.get(name, value.strip("\"'"))
            pending.append(instruction)
        flush()

    def _command(
        self,
        tool: Tool,
        layer: Mapping[str, Any],
        tag: str,
        instruction: Instruction,
        arguments: Mapping[str, str],
    ) -> None:
        if instruction.flags or "<<" in instruction.value:
            raise ImageBuildError(
                "a step with secrets= or gpu= takes no RUN with options or here-documents:"
                f" {instruction.text}"
            )
        command = _command_of(instruction)
        values = {**arguments, **(layer.get("values") or {})}
        self._say({"line": f"RUN {command}"})
        with variables_file(self._folder, values) as path:
            tool.run(tag, sourcing(_VARIABLES, command), {_VARIABLES: path}, gpu=bool(layer.get("gpu")))

    def _function(self, tool: Tool, layer: Mapping[str, Any]) -> None:
        """Put what a function has changed into the image that it was run in."""
        folder = tempfile.mkdtemp(dir=self._folder, prefix="changes-")
        self._dockerfile(tool, layer["tag"], layer["dockerfile"].split("\n"), folder, {}, True)
        told = json.loads(self._fetch(layer["changes"]))
        if not told["chunks"] and not told["removed"]:
            return
        os.chmod(folder, 0o755)
        with open(os.path.join(folder, "removed.json"), "w") as file:
            json.dump(told["removed"], file)
        for number, sha in enumerate(told["chunks"]):
            with open(os.path.join(folder, str(number)), "wb") as part:
                part.write(self._fetch(sha))
        runtime = self._unpacked(self._plan["runtime"])
        try:
            tool.run(layer["tag"], _APPLY, {_CHANGES: folder, _RUNTIME: runtime}, root=True)
        finally:
            shutil.rmtree(folder)

    def _unpacked(self, sha: str) -> str:
        folder = os.path.join(self._folder, sha)
        if not os.path.isdir(folder):
            with zipfile.ZipFile(io.BytesIO(self._fetch(sha))) as archive:
                archive.extractall(folder)
            os.chmod(folder, 0o755)
        return folder

    def _context(self, layer: Mapping[str, Any]) -> str:
        """Lay out what the instructions copy; return where."""
        context = tempfile.mkdtemp(dir=self._folder, prefix="context-")
        files = list(layer.get("files") or ())
        if layer.get("manifest"):
            files += json.loads(self._fetch(layer["manifest"]))
        for place, sha, mode in files:
            path = os.path.normpath(os.path.join(context, place.lstrip("/")))
            if os.path.commonpath([path, context]) != context:
                raise ImageBuildError(f"{place!r} is outside of the build context")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(self._fetch(sha))
            os.chmod(path, mode)
        for source in layer.get("sources") or ():
            if not os.path.exists(os.path.join(context, source)):
                os.makedirs(os.path.join(context, source))
        return context


def _command_of(instruction: Instruction) -> str:
    value = instruction.value
    if value.startswith("["):
        return "exec " + " ".join(map(shlex.quote, words(value)))
    # What was continued over lines is one command.
    return value


def _registry(tag: str) -> str:
    first, slash, _ = tag.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"no space is left in {tempfile.gettempdir()} of the machine that builds: make some there, or"
            " have TMPDIR of what builds name another directory"
        )
    return str(error) if isinstance(error, ImageBuildError) else f"{type(error).__name__}: {error}"
