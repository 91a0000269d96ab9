"""``go-plugin``'s protocol: a handshake line on stdout, then gRPC on a Unix socket."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from modal_nomad_gpu._log import log
from modal_nomad_gpu._messages import CODEC, SERVICE_UNKNOWN, SERVING
from modal_nomad_gpu._service import Plugin

_CORE_PROTOCOL, _NOMAD_PROTOCOL = 1, 2
# Each stream holds one for as long as it is open: two of go-plugin's, the health, two of Nomad's.
_THREADS = 16
_GRACE_SECONDS = 0.5


def serve() -> None:
    """Serve one Nomad client until it says that this is enough, or a signal does."""
    plugin = Plugin()
    # The kernel gives a signal to any thread, and only a pipe then wakes the main one.
    ending, end = os.pipe()
    os.set_blocking(end, False)
    directory = tempfile.mkdtemp(
        prefix="modal-nomad-gpu-", dir=os.environ.get("PLUGIN_UNIX_SOCKET_DIR") or None
    )
    socket = os.path.join(directory, "plugin.sock")
    server = grpc.server(ThreadPoolExecutor(_THREADS))
    server.add_generic_rpc_handlers(_handlers(plugin, end))
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError:
        shutil.rmtree(directory, ignore_errors=True)
        log("error", f"cannot listen on {socket}: set TMPDIR to a shorter path that Nomad may write to")
        raise SystemExit(1) from None
    server.start()
    # An interrupt in the terminal reaches the whole process group; Nomad ends its plugins itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(end, warn_on_full_buffer=False)
    print(f"{_CORE_PROTOCOL}|{_NOMAD_PROTOCOL}|unix|{socket}|grpc", flush=True)
    os.read(ending, 1)
    plugin.close()
    server.stop(_GRACE_SECONDS).wait(_GRACE_SECONDS * 4)
    shutil.rmtree(directory, ignore_errors=True)
    sys.stderr.flush()
    # A thread inside the driver's library is not waited for: that call may never return.
    os._exit(0)


def _handlers(plugin: Plugin, end: int) -> tuple[grpc.GenericRpcHandler, ...]:
    return (
        _service(
            "hashicorp.nomad.plugins.base.proto.BasePlugin",
            PluginInfo=_unary(plugin.plugin_info, "Empty", "PluginInfoResponse"),
            ConfigSchema=_unary(plugin.config_schema, "Empty", "ConfigSchemaResponse"),
            SetConfig=_unary(plugin.set_config, "SetConfigRequest", "Empty"),
        ),
        _service(
            "hashicorp.nomad.plugins.device.DevicePlugin",
            Fingerprint=_stream(plugin.fingerprint, "Empty", "FingerprintResponse"),
            Reserve=_unary(plugin.reserve, "ReserveRequest", "ReserveResponse"),
            Stats=_stream(plugin.stats, "StatsRequest", "StatsResponse"),
        ),
        _service(
            "grpc.health.v1.Health",
            Check=_unary(_health, "HealthCheckRequest", "HealthCheckResponse"),
        ),
        _service("plugin.GRPCController", Shutdown=_unary(_stopper(end), "Empty", "Empty")),
        # Both carry what this plugin has none of: further connections, and output of the process.
        _service("plugin.GRPCStdio", StreamStdio=_stream(_idle, "Empty", "Empty")),
        _service(
            "plugin.GRPCBroker",
            StartStream=grpc.stream_stream_rpc_method_handler(_idle, bytes, bytes),
        ),
    )


def _service(name: str, **methods: grpc.RpcMethodHandler) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(name, methods)


def _reader(message: str) -> Callable[[bytes], dict[str, Any]]:
    return lambda data: CODEC.decode(message, data)


def _writer(message: str) -> Callable[[Mapping[str, Any]], bytes]:
    return lambda value: CODEC.encode(message, value)


def _unary(call: Callable[..., Any], request: str, response: str) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(call, _reader(request), _writer(response))


def _stream(call: Callable[..., Any], request: str, response: str) -> grpc.RpcMethodHandler:
    return grpc.unary_stream_rpc_method_handler(call, _reader(request), _writer(response))


def _health(request: Mapping[str, Any], context: Any) -> dict[str, Any]:
    return {"status": SERVING if request.get("service", "") in ("", "plugin") else SERVICE_UNKNOWN}


def _stopper(end: int) -> Callable[[Any, Any], dict[str, Any]]:
    def shutdown(request: Any, context: Any) -> dict[str, Any]:
        # After the answer has left.
        context.add_callback(lambda: os.write(end, b"."))
        return {}

    return shutdown


def _idle(request: Any, context: Any) -> Iterator[Any]:
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait()
    yield from ()
