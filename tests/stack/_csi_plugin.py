"""A small CSI plugin for a real Nomad: volumes are directories, published by bind mounts.

Written from the CSI specification, controller and node in one. Run as a task of Nomad's with a
``csi_plugin`` block: ``python _csi_plugin.py DIRECTORY``. While ``DIRECTORY/refuse`` is there it refuses what
that file says.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from modal_nomad_gpu._protobuf import Codec, Field

NAME = "directories.csi.example"
_CREATE_DELETE, _PUBLISH_UNPUBLISH, _LIST = 1, 2, 3
_CONTROLLER_SERVICE = 1
_STAGE_UNSTAGE = 1

_CODEC = Codec(
    {
        "Empty": {},
        "PluginInfo": {"name": Field(1, "string"), "vendor_version": Field(2, "string")},
        "Kind": {"type": Field(1, "enum")},
        "Capability": {"kind": Field(1, "Kind")},
        "Capabilities": {"capabilities": Field(1, "Capability", many=True)},
        "Ready": {"value": Field(1, "bool")},
        "Probe": {"ready": Field(1, "Ready")},
        "AccessMode": {"mode": Field(1, "enum")},
        "VolumeCapability": {"access_mode": Field(3, "AccessMode")},
        "CreateVolume": {
            "name": Field(1, "string"),
            "volume_capabilities": Field(3, "VolumeCapability", many=True),
            "parameters": Field(4, "string", keyed=True),
        },
        "Volume": {"volume_id": Field(2, "string"), "volume_context": Field(3, "string", keyed=True)},
        "CreatedVolume": {"volume": Field(1, "Volume")},
        "VolumeId": {"volume_id": Field(1, "string")},
        "Validate": {
            "volume_id": Field(1, "string"),
            "volume_capabilities": Field(3, "VolumeCapability", many=True),
        },
        "Confirmed": {"volume_capabilities": Field(2, "VolumeCapability", many=True)},
        "Validated": {"confirmed": Field(1, "Confirmed"), "message": Field(2, "string")},
        "NodeInfo": {"node_id": Field(1, "string")},
        "ControllerPublish": {
            "volume_id": Field(1, "string"),
            "node_id": Field(2, "string"),
            "volume_capability": Field(3, "VolumeCapability"),
            "readonly": Field(4, "bool"),
        },
        "Published": {"publish_context": Field(1, "string", keyed=True)},
        "Stage": {
            "volume_id": Field(1, "string"),
            "staging_target_path": Field(3, "string"),
            "volume_capability": Field(4, "VolumeCapability"),
        },
        "Unstage": {"volume_id": Field(1, "string"), "staging_target_path": Field(2, "string")},
        "Publish": {
            "volume_id": Field(1, "string"),
            "staging_target_path": Field(3, "string"),
            "target_path": Field(4, "string"),
            "volume_capability": Field(5, "VolumeCapability"),
            "readonly": Field(6, "bool"),
        },
        "Unpublish": {"volume_id": Field(1, "string"), "target_path": Field(2, "string")},
    }
)

Answer = Mapping[str, Any]


class _Refused(Exception):
    """What a call is answered with instead: a code of gRPC and a text."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Plugin:
    """Volumes below a directory; what was asked for stands in its ``calls``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._volumes = directory / "volumes"
        self._volumes.mkdir(parents=True, exist_ok=True)

    def handler(self, call: Callable[[Answer], Answer], request: str, answer: str) -> Any:
        """Return the method of a service that does this call."""

        def answered(given: Answer, context: grpc.ServicerContext) -> Answer:
            with open(self._directory / "calls", "a") as file:
                file.write(json.dumps([call.__name__, given]) + "\n")
            try:
                refuse = self._directory / "refuse"
                if refuse.exists() and call.__name__ in (text := refuse.read_text()):
                    raise _Refused(grpc.StatusCode.INTERNAL, text)
                return call(given)
            except _Refused as error:
                context.abort(error.code, str(error))
                raise

        return grpc.unary_unary_rpc_method_handler(
            answered, lambda data: _CODEC.decode(request, data), lambda value: _CODEC.encode(answer, value)
        )

    def services(self) -> tuple[grpc.GenericRpcHandler, ...]:
        def service(name: str, **methods: tuple[Callable[[Answer], Answer], str, str]) -> Any:
            found = {rpc: self.handler(*of) for rpc, of in methods.items()}
            return grpc.method_handlers_generic_handler(f"csi.v1.{name}", found)

        return (
            service(
                "Identity",
                GetPluginInfo=(self.info, "Empty", "PluginInfo"),
                GetPluginCapabilities=(self.services_there, "Empty", "Capabilities"),
                Probe=(self.probe, "Empty", "Probe"),
            ),
            service(
                "Controller",
                ControllerGetCapabilities=(self.controller_can, "Empty", "Capabilities"),
                CreateVolume=(self.create, "CreateVolume", "CreatedVolume"),
                DeleteVolume=(self.delete, "VolumeId", "Empty"),
                ValidateVolumeCapabilities=(self.validate, "Validate", "Validated"),
                ControllerPublishVolume=(self.attach, "ControllerPublish", "Published"),
                ControllerUnpublishVolume=(self.detach, "ControllerPublish", "Empty"),
            ),
            service(
                "Node",
                NodeGetInfo=(self.node_info, "Empty", "NodeInfo"),
                NodeGetCapabilities=(self.node_can, "Empty", "Capabilities"),
                NodeStageVolume=(self.stage, "Stage", "Empty"),
                NodeUnstageVolume=(self.unstage, "Unstage", "Empty"),
                NodePublishVolume=(self.publish, "Publish", "Empty"),
                NodeUnpublishVolume=(self.unpublish, "Unpublish", "Empty"),
            ),
        )

    # --- what there is

    def info(self, given: Answer) -> Answer:
        return {"name": NAME, "vendor_version": "1"}

    def services_there(self, given: Answer) -> Answer:
        return _kinds(_CONTROLLER_SERVICE)

    def probe(self, given: Answer) -> Answer:
        return {"ready": {"value": not (self._directory / "unready").exists()}}

    def controller_can(self, given: Answer) -> Answer:
        return _kinds(_CREATE_DELETE, _PUBLISH_UNPUBLISH)

    def node_can(self, given: Answer) -> Answer:
        return _kinds(_STAGE_UNSTAGE)

    def node_info(self, given: Answer) -> Answer:
        return {"node_id": "here"}

    # --- volumes

    def _path(self, given: Answer) -> Path:
        path = self._volumes / str(given.get("volume_id", ""))
        if not given.get("volume_id") or not path.is_dir():
            raise _Refused(grpc.StatusCode.NOT_FOUND, f"no volume {given.get('volume_id')!r}")
        return path

    def create(self, given: Answer) -> Answer:
        volume_id = f"of-{given['name']}"
        path = self._volumes / volume_id
        path.mkdir(exist_ok=True)
        # Containers of the exec driver are nobody's.
        path.chmod(0o777)
        return {"volume": {"volume_id": volume_id, "volume_context": dict(given.get("parameters", {}))}}

    def delete(self, given: Answer) -> Answer:
        shutil.rmtree(self._volumes / str(given["volume_id"]), ignore_errors=True)
        return {}

    def validate(self, given: Answer) -> Answer:
        self._path(given)
        return {"confirmed": {"volume_capabilities": given.get("volume_capabilities", [])}}

    def attach(self, given: Answer) -> Answer:
        self._path(given)
        return {"publish_context": {"attached": "yes"}}

    def detach(self, given: Answer) -> Answer:
        return {}

    def stage(self, given: Answer) -> Answer:
        _bind(self._path(given), given["staging_target_path"])
        return {}

    def unstage(self, given: Answer) -> Answer:
        _unbind(given["staging_target_path"])
        return {}

    def publish(self, given: Answer) -> Answer:
        self._path(given)
        _bind(Path(given["staging_target_path"]), given["target_path"])
        if given.get("readonly"):
            subprocess.run(["mount", "-o", "remount,bind,ro", given["target_path"]], check=True)
        return {}

    def unpublish(self, given: Answer) -> Answer:
        _unbind(given["target_path"])
        target = Path(given["target_path"])
        if target.is_dir():
            target.rmdir()
        return {}


def _kinds(*types: int) -> Answer:
    return {"capabilities": [{"kind": {"type": number}} for number in types]}


def _bind(source: Path, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    if not os.path.ismount(target):
        subprocess.run(["mount", "--bind", str(source), target], check=True)


def _unbind(target: str) -> None:
    if os.path.ismount(target):
        subprocess.run(["umount", target], check=True)


def main() -> None:
    """Serve where Nomad says, until it ends the task."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    endpoint = os.environ["CSI_ENDPOINT"]
    Path(endpoint.removeprefix("unix://")).unlink(missing_ok=True)
    server = grpc.server(ThreadPoolExecutor(8))
    for one in Plugin(Path(sys.argv[1])).services():
        server.add_generic_rpc_handlers((one,))
    server.add_insecure_port(endpoint)
    server.start()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(1).wait()


if __name__ == "__main__":
    main()
