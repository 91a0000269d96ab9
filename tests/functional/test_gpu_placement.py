"""``gpu=`` on this machine, with a stand-in for NVIDIA's own query program."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception


def test_a_function_that_wants_a_gpu_is_refused_at_once_where_there_is_none(
    own: Live, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _driver(own.folder, monkeypatch, "exit 9")
    serve()
    app = modal.App("no-gpu")

    @app.function(serialized=True, gpu="H100")
    def train() -> str:
        return "trained"

    with app.run(), pytest.raises(exception.ExecutionError, match=r"no NVIDIA GPU.*MODAL_SERVER_URL"):
        train.remote()


def test_containers_get_gpus_of_their_own_and_wait_for_them(
    own: Live, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _driver(own.folder, monkeypatch, 'echo "GPU-a, NVIDIA L4"; echo "GPU-b, NVIDIA H100 PCIe"')
    serve()
    app = modal.App("gpus")

    def see() -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    large = app.function(serialized=True, gpu=["H100", "any"], name="large", scaledown_window=0.2)(see)
    small = app.function(serialized=True, gpu="L4", name="small", scaledown_window=0.2)(see)
    both = app.function(serialized=True, gpu="any:2", name="both", scaledown_window=0.2)(see)

    @app.cls(serialized=True, gpu="H100", scaledown_window=0.2)
    class Seer:
        @modal.method()
        def see(self) -> str:
            return os.environ["CUDA_VISIBLE_DEVICES"]

    with app.run():
        assert large.remote() == "GPU-b"
        assert small.remote() == "GPU-a"
        # Only when the others have left is there room for it.
        assert sorted(both.remote().split(",")) == ["GPU-a", "GPU-b"]
        assert Seer().see.remote() == "GPU-b"  # type: ignore[attr-defined]
        assert Seer.with_options(gpu="L4")().see.remote() == "GPU-a"  # type: ignore[attr-defined]


def test_containers_share_a_card(
    own: Live, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _driver(own.folder, monkeypatch, 'echo "GPU-a, NVIDIA L4, 23034"')
    serve()
    app = modal.App("shares")

    def see() -> list[str]:
        return [os.environ.get(k, "") for k in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT")]

    half = app.function(serialized=True, gpu="L4:0.5", name="half", scaledown_window=600)(see)
    small = app.function(serialized=True, gpu=modal.gpu.Shared("L4", memory=10_000), name="small")(see)
    with app.run():
        # Both are there at once: neither container leaves before the run ends.
        assert half.remote() == ["GPU-a", "0=11517M"]
        assert small.remote() == ["GPU-a", "0=10000M"]


def _driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
