"""Every parameter of the reference's ``App.function`` and ``App.cls``, asking for something."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.scheduler_placement import SchedulerPlacement
from tests._network import netless

ROWS = (Path(__file__).parents[2] / "docs/compatibility.md").read_text()
OLDER = {
    "concurrency_limit",
    "container_idle_timeout",
    "keep_warm",
    "allow_concurrent_inputs",
    "_experimental_buffer_containers",
    "max_inputs",
    "mounts",
}


def parameters(kind: str) -> set[str]:
    """The parameters of the reference's own signature, as the compatibility page quotes it."""
    found = re.search(rf"`modal\.App\.{kind}\(\*, (.*?)\) -> ", ROWS)
    assert found is not None
    return set(re.findall(r"(\w+)=", found[1]))


def together(live: Live) -> dict[str, Any]:
    """All that do not contradict each other."""
    (live.folder / "mounted.txt").write_text("mounted")
    return {
        "image": modal.Image.debian_slim().env({"OF_IMAGE": "image"}),
        "secrets": [modal.Secret.from_dict({"OF_SECRET": "secret"})],
        "serialized": True,
        "mounts": [modal.Mount.from_local_file(live.folder / "mounted.txt", "/root/every-mounted.txt")],
        "network_file_systems": {
            "/every/nfs": modal.NetworkFileSystem.from_name("every-nfs", create_if_missing=True)
        },
        "volumes": {"/every/volume": modal.Volume.from_name("every-volume", create_if_missing=True)},
        "allow_cross_region_volumes": True,
        "cpu": (0.5, 1.0),
        "memory": (128, 4000),
        "ephemeral_disk": 1024,
        "proxy": modal.Proxy.from_name("office"),
        "retries": 1,
        "concurrency_limit": 2,
        "allow_concurrent_inputs": 2,
        "container_idle_timeout": 30,
        "timeout": 200,
        "keep_warm": 1,
        "cloud": "aws",
        "region": ["eu", "us"],
        "i6pn": True,
        "_experimental_buffer_containers": 1,
        "_experimental_proxy_ip": "10.0.0.1",
        "_experimental_custom_scaling_factor": 0.5,
    }


APART = {
    "block_network": True,
    "enable_memory_snapshot": True,
    "max_inputs": 1,
    "_experimental_scheduler_placement": SchedulerPlacement("eu", "eu-1a", True, "m5.large"),
}
SHORT = {"serialized": True, "gpu": "any"}


def looker() -> Any:
    """Return what a container finds, as a function that travels without this file."""

    def look() -> dict[str, Any]:
        import os
        import resource
        import socket

        def read(path: str) -> str:
            with open(path) as file:
                return file.read()

        return {
            "variables": [os.environ.get("OF_IMAGE"), os.environ.get("OF_SECRET")],
            "mounted": os.path.exists("/root/every-mounted.txt") and read("/root/every-mounted.txt"),
            "shown": [path for path in ("/every/nfs", "/every/volume") if os.path.isdir(path)],
            "memory": resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20,
            "named": len(socket.getaddrinfo("i6pn.modal.local", 1, type=socket.SOCK_STREAM))
            if os.environ.get("MODAL_I6PN")
            else 0,
            "network": sorted(name for _, name in socket.if_nameindex()),
        }

    return look


FOUND = {
    "variables": ["image", "secret"],
    "mounted": "mounted",
    "shown": ["/every/nfs", "/every/volume"],
    "memory": 4000,
    "named": 1,
}


def test_every_parameter_of_both_signatures(own: Live) -> None:
    (own.home / "local.toml").write_text("[proxies.office]\n")
    app, look = modal.App("every"), looker()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", exception.DeprecationError)
        options = together(own)
        asked = {"name": "renamed", "is_generator": False, "schedule": modal.Period(days=300)}
        function = app.function(**options, **asked)(look)
        apart = app.function(serialized=True, name="apart", **APART)(look)
        short = app.function(name="short", **SHORT)(lambda: 1)
        given = set(options) | set(asked) | set(APART) | set(SHORT)
        assert given == parameters("function") | {"i6pn"}

        class Model:
            @modal.method()
            def get(self) -> Any:
                return look()

        class Apart(Model):
            pass

        class Short(Model):
            pass

        model = app.cls(**options)(Model)
        model_apart = app.cls(serialized=True, **APART)(Apart)
        model_short = app.cls(**SHORT)(Short)
        assert (set(options) | set(APART) | set(SHORT)) - {"i6pn"} == parameters("cls")
    told = " ".join(str(x.message) for x in caught)
    assert {name for name in OLDER if name.removeprefix("_experimental_") in told} == OLDER
    assert {x.filename for x in caught} == {__file__}
    with app.run():
        for call in (function, model().get):
            found = call.remote()
            assert {name: found[name] for name in FOUND} == FOUND
            assert "lo" in found["network"]
        for call in (apart, model_apart().get):
            if netless():
                with pytest.raises(exception.ExecutionError, match="block_network=True needs"):
                    call.remote()
            else:
                assert call.remote()["network"] == ["lo"]
        for call in (short, model_short().get):
            # Where there is a GPU it is given; where there is none this is said, and nothing runs without.
            try:
                call.remote()
            except exception.ExecutionError as error:
                assert "GPU" in str(error)
        stats = function.get_current_stats()
        assert stats.num_total_runners >= 1
    modal.Volume.objects.delete("every-volume")
    modal.NetworkFileSystem.delete("every-nfs")


@pytest.mark.parametrize("kind", ["function", "cls"])
def test_an_unknown_one_is_a_type_error(kind: str) -> None:
    with pytest.raises(TypeError, match="no parameter 'blockade'"):
        getattr(modal.App("a"), kind)(blockade=True)
