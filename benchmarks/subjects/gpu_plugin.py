"""The device plugin: from its start to its handshake line, and on to the first devices, out of a file."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import grpc
from modal_nomad_gpu.__main__ import COOKIE
from modal_nomad_gpu._messages import CODEC

_DEVICE = "/hashicorp.nomad.plugins.device.DevicePlugin/Fingerprint"
_CONFIG = "/hashicorp.nomad.plugins.base.proto.BasePlugin/SetConfig"
_CARDS = {"gpus": [{"uuid": f"GPU-{n}", "name": "NVIDIA H100 PCIe", "memory": 81559} for n in range(8)]}


def start(program: str, cards: Path) -> tuple[float, float]:
    """Give the seconds to the line and to the devices."""
    environment = {**os.environ, COOKIE[0]: COOKIE[1]}
    began = time.perf_counter()
    process = subprocess.Popen([program], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split("|")[3]
        line = time.perf_counter() - began
        path = str(cards).encode()
        config = b"\x81\xa4fake\xda" + len(path).to_bytes(2, "big") + path
        with grpc.insecure_channel(f"unix:{address}") as channel:
            channel.unary_unary(_CONFIG)(CODEC.encode("SetConfigRequest", {"msgpack_config": config}))
            data = next(channel.unary_stream(_DEVICE)(b""))
        assert len(CODEC.decode("FingerprintResponse", data)["device_group"][0]["devices"]) == 8
        return line, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def main(rounds: int) -> None:
    """Measure."""
    program = str(Path(sys.executable).with_name("modal-nomad-gpu"))
    with tempfile.TemporaryDirectory() as folder:
        cards = Path(folder, "cards.json")
        cards.write_text(json.dumps(_CARDS))
        times = [start(program, cards) for _ in range(rounds + 1)][1:]
    lines, devices = zip(*times, strict=True)
    print(json.dumps({"plugin_line_ms": median(lines) * 1e3, "plugin_devices_ms": median(devices) * 1e3}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
