"""What is served and which containers there are: the contract between those who know and those who serve.

A gateway is a ``Listener``. Who knows tells it all that there is when it begins to follow, and each change
from then on: the dispatcher's ``Registry`` in its own process, the connection to a dispatcher (``link``) and
Consul (``consul``) from another one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from modal_nomad.dispatcher.gateway.routes import Route


@dataclass(frozen=True)
class ServedFunction:
    """A Function with endpoints.

    Attributes:
        function_id: the Function.
        routes: its endpoints.
        limit: requests that one container takes at a time.
        single_use: a container takes one request in its life.
        job: the Nomad job of its containers, ``namespace/id``: what it is known by outside the dispatcher.
    """

    function_id: str
    routes: tuple[Route, ...]
    limit: int
    single_use: bool = False
    job: str = ""


@dataclass(frozen=True)
class ContainerAddress:
    """Where a container takes requests.

    Attributes:
        container_id: the container.
        host: an address that gateways reach it at.
        port: its port there.
        key: what a gateway proves itself with.
    """

    container_id: str
    host: str
    port: int
    key: str


class Listener(Protocol):
    """Who is told what there is to serve. Repeats do no harm."""

    def serve(self, function: ServedFunction) -> None:
        """Serve a Function, or serve it as it is now."""

    def withdraw(self, function_id: str) -> None:
        """Serve a Function no more; what runs may end."""

    def instance_up(self, function_id: str, address: ContainerAddress) -> None:
        """Take a container into rotation."""

    def instance_out(self, function_id: str, container_id: str) -> None:
        """Give a container no more requests."""

    def fail(self, function_id: str, status: int, text: str) -> None:
        """Answer the requests that wait for a container: none will come."""


class Registry:
    """What one process knows: told once, passed on to everybody who follows."""

    def __init__(self) -> None:
        self._functions: dict[str, ServedFunction] = {}
        self._containers: dict[str, dict[str, ContainerAddress]] = {}
        self._listeners: list[Listener] = []

    def follow(self, listener: Listener) -> Callable[[], None]:
        """Tell a listener all that there is, and each change from now on; gives what ends that."""
        self._listeners.append(listener)
        for function in self._functions.values():
            listener.serve(function)
            for address in self._containers[function.function_id].values():
                listener.instance_up(function.function_id, address)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    def functions(self) -> Iterable[ServedFunction]:
        """Return what is served."""
        return self._functions.values()

    def function(self, function_id: str) -> ServedFunction | None:
        """Return one of them."""
        return self._functions.get(function_id)

    def has(self, function_id: str, container_id: str) -> bool:
        """Say whether a container takes requests."""
        return container_id in self._containers.get(function_id, {})

    def serve(self, function: ServedFunction) -> None:
        """Note a Function."""
        self._functions[function.function_id] = function
        self._containers.setdefault(function.function_id, {})
        for listener in list(self._listeners):
            listener.serve(function)

    def withdraw(self, function_id: str) -> None:
        """Forget a Function and its containers."""
        if self._functions.pop(function_id, None) is None:
            return
        self._containers.pop(function_id, None)
        for listener in list(self._listeners):
            listener.withdraw(function_id)

    def instance_up(self, function_id: str, address: ContainerAddress) -> None:
        """Note a container of a Function that is served."""
        containers = self._containers.get(function_id)
        if containers is None:
            return
        containers[address.container_id] = address
        for listener in list(self._listeners):
            listener.instance_up(function_id, address)

    def instance_out(self, function_id: str, container_id: str) -> None:
        """Forget a container."""
        containers = self._containers.get(function_id)
        if containers is None or containers.pop(container_id, None) is None:
            return
        for listener in list(self._listeners):
            listener.instance_out(function_id, container_id)

    def fail(self, function_id: str, status: int, text: str) -> None:
        """Pass on that no container will come for now."""
        for listener in list(self._listeners):
            listener.fail(function_id, status, text)


def container_key(secret: bytes, container_id: str) -> str:
    """Return what a gateway proves itself with to a container.

    Args:
        secret: known to the dispatchers and gateways of an installation alone.
        container_id: the container.
    """
    return hmac.new(secret, f"web:{container_id}".encode(), hashlib.sha256).hexdigest()
