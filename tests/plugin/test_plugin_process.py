"""The program as Nomad knows it: its first line, its configuration, its devices, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from modal_nomad_gpu._messages import CODEC

from tests.plugin._plugin_client import A100, BASE, COOKIE, DEVICE, L4, LIMIT, PROGRAM, plugin, write_cards

WHOLE = "gpu/NVIDIA A100-SXM4-80GB"


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    path = tmp_path / "cards.json"
    write_cards(path, A100, L4)
    return path


def test_it_says_who_it_is() -> None:
    with plugin() as nomad:
        info = nomad.unary(BASE, "PluginInfo", b"", "PluginInfoResponse")
        assert info["type"] == 3
        assert (info["name"], info["plugin_api_versions"]) == ("modal-nomad-gpu", ["v0.1.0"])
        spec = nomad.unary(BASE, "ConfigSchema", b"", "ConfigSchemaResponse")["spec"]
        assert "fingerprint_period" in spec["object"]["attributes"]
        for service, status in {"plugin": 1, "": 1, "other": 3}.items():
            request = CODEC.encode("HealthCheckRequest", {"service": service})
            answer = nomad.unary("grpc.health.v1.Health", "Check", request, "HealthCheckResponse")
            assert answer["status"] == status


def test_devices_are_told_and_told_again_when_they_change(cards: Path) -> None:
    with plugin() as nomad:
        nomad.configure(fake=str(cards), share=[{"gpu": "L4", "slices": 2}])
        told = nomad.fingerprints()
        first = next(told)
        assert set(first) == {WHOLE, "gpu-slice/NVIDIA L4 slice 11517MiB"}
        assert first[WHOLE]["attributes"]["memory"] == {"int_val": 81920, "unit": "MiB"}
        assert first[WHOLE]["devices"][0]["hw_locality"] == {"pci_bus_id": "00000000:3B:00.0"}
        write_cards(cards, {**A100, "xid": 79}, L4)
        (device,) = next(told)[WHOLE]["devices"]
        assert device["healthy"] is False
        assert device["health_description"] == "XID 79: fell off the bus"
        # Another look at it, by whoever asks anew, says the same.
        assert nomad.until(lambda groups: True)[WHOLE]["devices"] == [device]
        write_cards(cards, A100)
        gone = next(told)["gpu-slice/NVIDIA L4 slice 11517MiB"]["devices"]
        assert all("fell off the bus" in d["health_description"] for d in gone)


def test_a_driver_that_comes_later_is_found(tmp_path: Path) -> None:
    path = tmp_path / "cards.json"
    with plugin() as nomad:
        nomad.configure(fake=str(path))
        told = nomad.fingerprints()
        # An empty answer at once: the agent waits for the first at its start.
        assert next(told) == {}
        write_cards(path, A100)
        assert set(next(told)) == {WHOLE}


def test_devices_are_reserved(cards: Path) -> None:
    write_cards(cards, A100, L4, mps=True)
    with plugin() as nomad:
        nomad.configure(fake=str(cards), share=[{"gpu": "L4", "slices": 2}], mps_pipe_directory="/run/mps")
        # Nomad may ask a plugin that it has started anew before it has asked what there is.
        assert nomad.reserve("GPU-a")["envs"]["CUDA_VISIBLE_DEVICES"] == "GPU-a"
        part = nomad.reserve("GPU-l-slice-2")
        assert part["envs"]["NVIDIA_VISIBLE_DEVICES"] == "GPU-l"
        assert part["envs"]["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=11517M"
        assert part["envs"]["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
        assert part["envs"]["CUDA_MPS_PIPE_DIRECTORY"] == "/run/mps"
        assert part["mounts"] == [{"task_path": "/run/mps", "host_path": "/run/mps", "read_only": False}]
        for ids, words in (
            (("GPU-x",), "unknown devices: GPU-x"),
            (("GPU-l-slice-1", "GPU-a"), "do not add up"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                nomad.reserve(*ids)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert words in caught.value.details()


def test_stats_come_at_their_interval(cards: Path) -> None:
    write_cards(cards, {**A100, "usage": {"memory_used": 7}})
    with plugin() as nomad:
        nomad.configure(fake=str(cards))
        told = nomad.stats(0.1)

        def used() -> Any:
            (group,) = next(told)["groups"]
            return group["instance_stats"]["GPU-a"]["summary"]["int_numerator_val"]["value"]

        assert used() == 7
        write_cards(cards, {**A100, "usage": {"memory_used": 9}})
        while used() != 9:
            pass
        # A driver that is silent for a while is no end of the statistics.
        cards.unlink()
        write_cards(cards, {**A100, "usage": {"memory_used": 11}})
        while used() != 11:
            pass


def test_nothing_is_offered_when_it_is_switched_off(cards: Path) -> None:
    with plugin() as nomad:
        nomad.configure(fake=str(cards), enabled=False)
        assert list(nomad.fingerprints()) == []
        assert list(nomad.stats(1)) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"fingerprint_period": "now and then"},
            "modal-nomad-gpu: fingerprint_period = 'now",
        ),
        ({"share": [{"gpu": "", "slices": 1, "slice_memory": 0}]}, "modal-nomad-gpu: share.slices = 1"),
    ],
)
def test_a_bad_configuration_is_one_clear_line(values: dict[str, Any], words: str) -> None:
    with plugin() as nomad:
        with pytest.raises(grpc.RpcError) as caught:
            nomad.configure(**values)
        assert caught.value.details().startswith(words) and "\n" not in caught.value.details()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("how", ["terminated", "told"])
def test_it_ends_with_open_streams_and_leaves_nothing_behind(
    how: str, cards: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Not tmp_path: its name is long, and sockets have short paths.
    place = tmp_path_factory.mktemp("h")
    with plugin(PLUGIN_UNIX_SOCKET_DIR=str(place)) as nomad:
        (directory,) = place.glob("modal-nomad-gpu-*")
        assert directory.stat().st_mode & 0o777 == 0o700
        nomad.configure(fake=str(cards))
        told, stats = nomad.fingerprints(), nomad.stats(30)
        next(told), next(stats)
        broker = nomad.channel.stream_stream("/plugin.GRPCBroker/StartStream")(iter([b""]))
        stdio = nomad.channel.unary_stream("/plugin.GRPCStdio/StreamStdio")(b"")
        if how == "told":
            nomad.unary("plugin.GRPCController", "Shutdown", b"", "Empty")
        else:
            nomad.process.send_signal(signal.SIGTERM)
        assert nomad.process.wait(LIMIT) == 0
        assert not directory.exists()
        for stream in (broker, stdio):
            stream.cancel()
        assert nomad.process.stderr is not None
        lines = nomad.process.stderr.read().splitlines()
        assert all(json.loads(line)["@level"] in ("debug", "info", "warn", "error") for line in lines)


def test_a_place_for_its_socket_with_too_long_a_name_is_one_clear_line(tmp_path: Path) -> None:
    place = tmp_path / ("long" * 20)
    place.mkdir()
    environment = {**os.environ, COOKIE[0]: COOKIE[1], "PLUGIN_UNIX_SOCKET_DIR": str(place)}
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "set TMPDIR to a shorter path" in json.loads(line)["@message"]
    assert list(place.iterdir()) == []


def test_an_interrupt_is_left_to_nomad() -> None:
    with plugin() as nomad:
        nomad.process.send_signal(signal.SIGINT)
        assert nomad.unary(BASE, "PluginInfo", b"", "PluginInfoResponse")["type"] == 3


def test_a_request_that_is_none_does_no_harm(cards: Path) -> None:
    with plugin() as nomad:
        nomad.configure(fake=str(cards))
        with pytest.raises(grpc.RpcError):
            nomad.unary(DEVICE, "Reserve", b"\xff\xff", "ReserveResponse")
        with pytest.raises(grpc.RpcError):
            nomad.unary(
                BASE, "SetConfig", CODEC.encode("SetConfigRequest", {"msgpack_config": b"\xc1"}), "Empty"
            )
        assert nomad.reserve("GPU-a")


@pytest.mark.parametrize("cookie", [None, "wrong"])
def test_started_by_hand_it_says_what_it_is_for(cookie: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != COOKIE[0]}
    if cookie is not None:
        environment[COOKIE[0]] = cookie
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (1, "")
    assert "plugin_dir" in done.stderr and "Traceback" not in done.stderr


def test_it_says_its_version() -> None:
    done = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout.strip() == "0.1.0"


def test_it_does_not_load_the_driver_or_protobuf_to_start() -> None:
    code = (
        "import sys, modal_nomad_gpu._server;"
        "print(sorted(m for m in ('pynvml', 'google.protobuf', 'modal_nomad') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout.strip() == "[]"
