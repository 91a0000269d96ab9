"""What a function has that is run as a build step: its code and arguments, Volumes, and the dispatcher."""

import json
import os
import tempfile
from typing import Any, Callable, Dict, Mapping

from modal_nomad.exception import ImageBuildError
from modal_nomad.wire.address import parse_address
from modal_nomad.worker.image_builder.tools import Terms

_RUN = "/run/modal-nomad-build"
# Where containers have it, too.
_SOCKET = "/run/modal-nomad/dispatcher.sock"
# One line, for a RUN instruction.
_PYTHON = (
    "for python in $MODAL_PYTHON python3 python /usr/local/bin/python3; do"
    ' command -v "$python" >/dev/null 2>&1 &&'
    f' exec "$python" -B {_RUN}/runtime/modal_nomad/worker/image_builder/in_image.py {_RUN}/work; done;'
    ' echo "this image has no Python to run a function with: add one with add_python=" >&2; exit 127'
)


class FunctionWork:
    """One function, laid out for the image that runs it.

    Args:
        parent: a folder of the build.
        told: the function, as ``render.image.BuildLayer`` has it.
        plan: of the build.
        fetch: returns a blob's bytes.
        unpacked: returns the folder of an archive's files.

    Attributes:
        folder: what it reads, of this machine.
        command: for the shell of the image.
        mounts: what it sees: place and path.

    Raises:
        ImageBuildError: it wants what this build has not.
    """

    command = _PYTHON

    def __init__(
        self,
        parent: str,
        told: Mapping[str, Any],
        plan: Mapping[str, Any],
        fetch: Callable[[str], bytes],
        unpacked: Callable[[str], str],
    ) -> None:
        self._told = told
        self._environment = str(plan.get("environment") or "")
        self.folder = work = tempfile.mkdtemp(dir=parent, prefix="function-")
        os.chmod(work, 0o755)
        self.mounts = {f"{_RUN}/runtime": unpacked(plan["runtime"]), f"{_RUN}/work": work}
        code = ""
        if told.get("code"):
            code = f"{_RUN}/code"
            self.mounts[code] = unpacked(told["code"])
        self._writable: Dict[str, str] = {}
        said = {
            "function": told["function"],
            "timeout": told["timeout"],
            "code": code,
            "volumes": [self._volume(parent, x) for x in told.get("volumes") or ()],
        }
        for shared in told.get("network_file_systems") or ():
            self._writable[shared["path"]] = _nfs(plan, shared["nfs_id"])
        files = {
            "arguments": fetch(told["arguments"]),
            "function.json": json.dumps(said).encode(),
            "token": plan["server"]["token"].encode(),
        }
        blob = told["function"].get("function_blob")
        if blob:
            files[blob] = fetch(blob)
        for name, data in files.items():
            with open(os.path.join(work, name), "wb") as file:
                file.write(data)
        self._url = plan["server"]["url"]
        socket = parse_address(self._url).path
        if socket:
            self.mounts[_SOCKET] = socket
            self._url = f"unix://{_SOCKET}"

    def _volume(self, parent: str, volume: Mapping[str, Any]) -> Dict[str, Any]:
        folder = tempfile.mkdtemp(dir=parent, prefix="volume-")
        tree = os.path.join(folder, "tree")
        os.mkdir(tree, 0o755)
        inside = f"{_RUN}/volumes/{volume['volume_id']}"
        # Twice the same directory: as user code sees it, and with what the Volume needs beside it.
        self._writable[inside] = folder
        self._writable[volume["path"]] = tree
        return {**volume, "folder": inside}

    def variables(self, values: Mapping[str, str]) -> Dict[str, str]:
        """Return the environment variables of the function, with those of its Secrets."""
        ours = {
            "MODAL_IS_REMOTE": "1",
            "MODAL_SERVER_URL": self._url,
            "MODAL_WORKER_TOKEN_FILE": f"{_RUN}/work/token",
            "MODAL_ENVIRONMENT": self._environment,
        }
        return {**(self._told.get("env") or {}), **values, **ours}

    def terms(self, gpu: bool) -> Terms:
        """Return what it has of the machine."""
        cpu, memory = (tuple(self._told.get(name) or (None, None)) for name in ("cpu", "memory"))
        return Terms(gpu, self._writable, (cpu[0], cpu[1]), (memory[0], memory[1]), self._told["timeout"])


def _nfs(plan: Mapping[str, Any], nfs_id: str) -> str:
    place = os.path.join(str(plan.get("nfs") or ""), nfs_id)
    if not (plan.get("nfs") and nfs_id) or not os.path.isdir(place):
        raise ImageBuildError(
            "the NetworkFileSystem is not on the machine that builds: mount its directory there too"
            " (node_directory under [nfs] of the dispatcher's settings), or fill the Image without it"
        )
    return place
