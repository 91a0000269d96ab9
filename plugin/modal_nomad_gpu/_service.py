"""The calls that Nomad makes: of every plugin, and of a device plugin."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import grpc

from modal_nomad_gpu import NAME, __version__
from modal_nomad_gpu._cards import Backend, BackendError
from modal_nomad_gpu._config import Config, ConfigError, read_config, schema
from modal_nomad_gpu._inventory import VENDOR, Group, ReserveError, reservation
from modal_nomad_gpu._log import log
from modal_nomad_gpu._messages import DEVICE_PLUGIN
from modal_nomad_gpu._monitor import Monitor
from modal_nomad_gpu._msgpack import unpack

_API_VERSIONS = ("v0.1.0",)


class Plugin:
    """One plugin process: unconfigured until Nomad says how."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._config = Config()
        self._monitor: Monitor | None = None
        self._closed = threading.Event()

    def close(self) -> None:
        """End all streams."""
        self._closed.set()
        with self._lock:
            if self._monitor is not None:
                self._monitor.close()

    # -- BasePlugin

    def plugin_info(self, request: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """Say who this is."""
        return {
            "type": DEVICE_PLUGIN,
            "plugin_api_versions": list(_API_VERSIONS),
            "plugin_version": __version__,
            "name": NAME,
        }

    def config_schema(self, request: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """Say what the ``config`` block may hold."""
        return {"spec": schema()}

    def set_config(self, request: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """Take the configuration; one that cannot be used is refused, and Nomad's log says why."""
        data = request.get("msgpack_config") or b"\x80"
        try:
            config = read_config(unpack(data) or {})
        except ConfigError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{NAME}: {error}")
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{NAME}: the configuration: {error}")
        with self._lock:
            if self._monitor is not None:
                self._monitor.close()
            self._config, self._monitor = config, None
        return {}

    # -- DevicePlugin

    def fingerprint(self, request: Mapping[str, Any], context: Any) -> Iterator[dict[str, Any]]:
        """Tell all devices, and again whenever one of them comes, goes or changes its health."""
        if not self._config.enabled:
            log("info", "enabled = false: no device is offered")
            return
        monitor = self._running()
        # The thread of a stream that nobody reads any more is to end at once.
        context.add_callback(monitor.wake)
        for groups in monitor.watch(context.is_active):
            yield {"device_group": [_group(group) for group in groups]}

    def reserve(self, request: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """Say what a task needs that was given these devices."""
        groups, mps = self._running().now()
        try:
            environment, mounts = reservation(groups, request.get("device_ids", ()), self._config, mps=mps)
        except ReserveError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{NAME}: {error}")
        places = [{"task_path": path, "host_path": path, "read_only": False} for path in mounts]
        return {"container_res": {"envs": environment, "mounts": places}}

    def stats(self, request: Mapping[str, Any], context: Any) -> Iterator[dict[str, Any]]:
        """Tell what all devices do, at the interval that Nomad asks for."""
        if not self._config.enabled:
            return
        monitor = self._running()
        asked = request.get("collection_interval", {})
        interval = max(0.1, asked.get("seconds", 0) + asked.get("nanos", 0) / 1e9)
        ended = threading.Event()
        context.add_callback(ended.set)
        while not ended.is_set() and not self._closed.is_set():
            try:
                yield monitor.stats()
            except BackendError as error:
                # The monitor says in Nomad's log what is wrong; Nomad would back off for minutes.
                log("debug", f"no statistics: {error}")
            ended.wait(interval)

    def _running(self) -> Monitor:
        with self._lock:
            if self._monitor is None:
                self._monitor = Monitor(make_backend(self._config), self._config)
                self._monitor.start()
            return self._monitor


def make_backend(config: Config) -> Backend:
    """Return where the configuration says that cards come from."""
    if config.fake:
        from modal_nomad_gpu._fake import Fake

        return Fake(config.fake)
    # Nomad starts a plugin twice before it wants to know a device: neither has to load this.
    import pynvml

    from modal_nomad_gpu._nvml import Nvml

    return Nvml(pynvml, config.max_ecc_errors)


def _group(group: Group) -> dict[str, Any]:
    return {
        "vendor": VENDOR,
        "device_type": group.type,
        "device_name": group.name,
        "devices": [
            {
                "ID": device.id,
                "healthy": not device.fault,
                "health_description": device.fault,
                "hw_locality": {"pci_bus_id": device.pci_bus_id},
            }
            for device in group.devices
        ],
        "attributes": {name: _attribute(value) for name, value in sorted(group.attributes.items())},
    }


def _attribute(value: Any) -> dict[str, Any]:
    value, unit = value if isinstance(value, tuple) else (value, None)
    if isinstance(value, bool):
        kind = "bool_val"
    elif isinstance(value, int):
        kind = "int_val"
    else:
        kind = "float_val" if isinstance(value, float) else "string_val"
    return {kind: value, "unit": unit}
