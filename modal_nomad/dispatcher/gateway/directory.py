"""What a gateway knows from several sides, as one: the dispatcher's word counts for what it knows.

The dispatcher says at once what happens to containers, by their workers' sockets; Consul knows what there is
while there is no dispatcher. Functions are known by their jobs here.
"""

from __future__ import annotations

from collections.abc import Callable

from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, Listener, ServedFunction

KEEP_SECONDS = 10.0
"""For so long a container is kept that a dispatcher which has just started does not know yet."""


class Known:
    """What one side said: a listener that only remembers, and says when something changed.

    Args:
        changed: is given the Function that something changed of.
    """

    def __init__(self, changed: Callable[[str], None]) -> None:
        self.functions: dict[str, ServedFunction] = {}
        self.containers: dict[str, dict[str, ContainerAddress]] = {}
        self.out: set[str] = set()
        self._changed = changed

    def serve(self, function: ServedFunction) -> None:
        """Note a Function."""
        self.functions[function.function_id] = function
        self._changed(function.function_id)

    def withdraw(self, function_id: str) -> None:
        """Forget a Function and its containers."""
        self.functions.pop(function_id, None)
        self.containers.pop(function_id, None)
        self._changed(function_id)

    def instance_up(self, function_id: str, address: ContainerAddress) -> None:
        """Note a container."""
        self.out.discard(address.container_id)
        self.containers.setdefault(function_id, {})[address.container_id] = address
        self._changed(function_id)

    def instance_out(self, function_id: str, container_id: str) -> None:
        """Forget a container, and remember that it is out."""
        self.out.add(container_id)
        self.containers.get(function_id, {}).pop(container_id, None)
        self._changed(function_id)

    def fail(self, function_id: str, status: int, text: str) -> None:
        """Nothing to remember."""


class Directory:
    """Tells a listener what two sides know together.

    Attributes:
        linked: a dispatcher is connected and has said all that there is.
        ever_linked: one was.

    Args:
        listener: the gateway.
    """

    def __init__(self, listener: Listener) -> None:
        self.linked = False
        self.ever_linked = False
        self.dispatcher = Known(self._review)
        self.consul = Known(self._review)
        self._listener = listener
        self._functions: dict[str, ServedFunction] = {}
        self._containers: dict[str, dict[str, ContainerAddress]] = {}
        self._before: dict[str, dict[str, ContainerAddress]] = {}
        self._stale: set[str] = set()

    # --- the dispatcher's connection --------------------------------------------------------------

    def link_begins(self) -> None:
        """A dispatcher begins to say what there is: what was known of it before counts until it has."""
        self._before = self.dispatcher.containers
        fresh = Known(self._review)
        # Until it has said all, what it said before holds: no request may be refused in between.
        fresh.functions = dict(self.dispatcher.functions)
        self._stale = set(fresh.functions)
        fresh.out = self.dispatcher.out
        self.dispatcher = fresh

    def told(self, function_id: str) -> None:
        """This Function was named by the dispatcher that is connected."""
        self._stale.discard(function_id)

    def synced(self) -> None:
        """It has said all."""
        self.linked = self.ever_linked = True
        for function_id in self._stale:
            self.dispatcher.functions.pop(function_id, None)
        self._stale = set()
        self._review_all()

    def settled(self) -> None:
        """Containers that it does not know are not coming back."""
        self._before = {}
        self._review_all()

    def link_lost(self) -> None:
        """It is gone: what it said holds on."""
        self.linked = False
        self._review_all()

    # --- both together ----------------------------------------------------------------------------

    def _review_all(self) -> None:
        for function_id in {*self._functions, *self.dispatcher.functions, *self.consul.functions}:
            self._review(function_id)

    def _review(self, function_id: str) -> None:
        function = self.dispatcher.functions.get(function_id)
        if function is None and not self.linked:
            # The dispatcher that is connected knows them all.
            function = self.consul.functions.get(function_id)
        if function is None:
            if self._functions.pop(function_id, None) is not None:
                self._containers.pop(function_id, None)
                self._listener.withdraw(function_id)
            return
        if self._functions.get(function_id) != function:
            self._functions[function_id] = function
            self._listener.serve(function)
        self._compare(function_id)

    def _compare(self, function_id: str) -> None:
        wanted: dict[str, ContainerAddress] = {}
        for known in (self.consul.containers, self._before, self.dispatcher.containers):
            wanted.update(known.get(function_id, {}))
        for container_id in self.dispatcher.out.intersection(wanted):
            del wanted[container_id]
        has = self._containers.setdefault(function_id, {})
        for container_id in [x for x in has if x not in wanted]:
            del has[container_id]
            self._listener.instance_out(function_id, container_id)
        for container_id, address in wanted.items():
            if has.get(container_id) != address:
                has[container_id] = address
                self._listener.instance_up(function_id, address)

    def forget_out(self) -> None:
        """Forget containers that are out and that nobody names any more."""
        named = {x for known in self.consul.containers.values() for x in known}
        named.update(x for known in self._before.values() for x in known)
        self.dispatcher.out &= named
