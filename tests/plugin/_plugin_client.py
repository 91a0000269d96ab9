"""Plays Nomad to the plugin's program: the handshake, then gRPC on the socket that it names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from modal_nomad_gpu._messages import CODEC

LIMIT = 150
# As Nomad has it, and not as the plugin does.
COOKIE = ("NOMAD_PLUGIN_MAGIC_COOKIE", "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255")
BASE = "hashicorp.nomad.plugins.base.proto.BasePlugin"
DEVICE = "hashicorp.nomad.plugins.device.DevicePlugin"
PROGRAM = (sys.executable, "-m", "modal_nomad_gpu")

A100 = {
    "uuid": "GPU-a",
    "name": "NVIDIA A100-SXM4-80GB",
    "memory": 81920,
    "power": 400,
    "bar1": 131072,
    "cores_clock": 1410,
    "memory_clock": 1593,
    "pci_bandwidth": 32768,
    "pci_bus_id": "00000000:3B:00.0",
}
L4 = {"uuid": "GPU-l", "name": "NVIDIA L4", "memory": 23034}


def write_cards(path: Path, *gpus: Mapping[str, Any], **more: Any) -> None:
    """Write what the fake driver says, all at once."""
    state = {"driver_version": "550.54", "gpus": gpus, **more}
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(state))
    os.replace(draft, path)


def pack(value: Any) -> bytes:
    """Encode MessagePack: what Nomad says of a configuration needs no more of it."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    if isinstance(value, str):
        data = value.encode()
        return b"\xda" + len(data).to_bytes(2, "big") + data
    if isinstance(value, (list, tuple)):
        return b"\xdc" + len(value).to_bytes(2, "big") + b"".join(map(pack, value))
    items = b"".join(pack(key) + pack(item) for key, item in value.items())
    return b"\xde" + len(value).to_bytes(2, "big") + items


class Client:
    """What Nomad would be."""

    def __init__(self, process: subprocess.Popen[str], channel: grpc.Channel) -> None:
        self.process = process
        self.channel = channel

    def unary(self, service: str, method: str, request: bytes, response: str) -> dict[str, Any]:
        call = self.channel.unary_unary(f"/{service}/{method}")
        return CODEC.decode(response, call(request, timeout=LIMIT))

    def configure(self, **values: Any) -> None:
        request = CODEC.encode("SetConfigRequest", {"msgpack_config": pack(values)})
        self.unary(BASE, "SetConfig", request, "Empty")

    def fingerprints(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Yield devices as they change: by ``type/name``, a group."""
        call = self.channel.unary_stream(f"/{DEVICE}/Fingerprint")
        for data in call(b"", timeout=LIMIT):
            groups = CODEC.decode("FingerprintResponse", data).get("device_group", [])
            yield {f"{group['device_type']}/{group['device_name']}": group for group in groups}

    def until(self, true_of: Any) -> dict[str, dict[str, Any]]:
        """Return the first devices for which ``true_of`` holds."""
        return next(groups for groups in self.fingerprints() if true_of(groups))

    def reserve(self, *ids: str) -> dict[str, Any]:
        request = CODEC.encode("ReserveRequest", {"device_ids": ids})
        return self.unary(DEVICE, "Reserve", request, "ReserveResponse")["container_res"]

    def stats(self, seconds: float) -> Iterator[dict[str, Any]]:
        whole = int(seconds)
        interval = {"seconds": whole, "nanos": int((seconds - whole) * 1e9)}
        request = CODEC.encode("StatsRequest", {"collection_interval": interval})
        for data in self.channel.unary_stream(f"/{DEVICE}/Stats")(request, timeout=LIMIT):
            yield CODEC.decode("StatsResponse", data)


@contextmanager
def plugin(*, program: tuple[str, ...] = PROGRAM, **env: str) -> Iterator[Client]:
    """Start the program as Nomad does, and connect."""
    environment = {**os.environ, COOKIE[0]: COOKIE[1], **env}
    process = subprocess.Popen(
        program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # A program that never says its line would hold the test for ever.
    guard = threading.Timer(LIMIT, process.kill)
    guard.start()
    try:
        assert process.stdout is not None
        core, protocol, network, address, kind = process.stdout.readline().strip().split("|")
        assert (core, protocol, network, kind) == ("1", "2", "unix", "grpc")
        with grpc.insecure_channel(f"unix:{address}") as channel:
            yield Client(process, channel)
    finally:
        guard.cancel()
        process.kill()
        process.communicate()
