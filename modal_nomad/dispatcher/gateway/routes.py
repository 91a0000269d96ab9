"""Which Function answers at which host name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modal_nomad.wire.labels import host_of

NOT_HERE = "no web endpoint is served at this address"
LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


@dataclass(frozen=True)
class Route:
    """One endpoint.

    Attributes:
        label: the first part of its host name.
        function_id: the Function whose containers answer.
        method: which method of a class; empty for a plain function.
        domains: other host names that lead here.
        requires_proxy_auth: only requests with a proxy auth token are passed on.
        environment: where it is, for its tokens.
        owner: the App's id.
        app: its name, to say in words whose a label is.
        deployed: it stays until it is stopped, and its label is its own.
    """

    label: str
    function_id: str
    method: str = ""
    domains: tuple[str, ...] = ()
    requires_proxy_auth: bool = False
    environment: str = "main"
    owner: str = ""
    app: str = ""
    deployed: bool = True


class Routes:
    """All endpoints, by label and by domain. Of two that want the same, the later one has it for now.

    Attributes:
        version: another one whenever they change.

    Args:
        domain: what the host names of labels end in: ``localhost``, ``modal.example.com``.
    """

    def __init__(self, domain: str) -> None:
        self.domain = domain.lower()
        self.version = 0
        self._suffix = f".{self.domain}"
        self._labels: dict[str, list[Route]] = {}
        self._domains: dict[str, list[Route]] = {}
        self._of: dict[str, tuple[Route, ...]] = {}

    def put(self, function_id: str, routes: Iterable[Route]) -> None:
        """Set the endpoints of a Function, in place of those that it had."""
        self.remove(function_id)
        mine = tuple(routes)
        if not mine:
            return
        self._of[function_id] = mine
        for route in mine:
            self._labels.setdefault(route.label, []).append(route)
            for domain in route.domains:
                self._domains.setdefault(domain.lower(), []).append(route)

    def remove(self, function_id: str) -> None:
        """Forget the endpoints of a Function."""
        self.version += 1
        for route in self._of.pop(function_id, ()):
            _drop(self._labels, route.label, route)
            for domain in route.domains:
                _drop(self._domains, domain.lower(), route)

    def of(self, function_id: str) -> tuple[Route, ...]:
        """Return the endpoints of a Function."""
        return self._of.get(function_id, ())

    def domains(self) -> list[str]:
        """Return the custom domains of all endpoints."""
        return list(self._domains)

    def holders(self, label: str, domains: Iterable[str] = ()) -> list[tuple[str, Route]]:
        """Return the endpoints that want a label or one of some domains, each with what it wants.

        Of several that want the same the last one has it.
        """
        found = [(label, route) for route in self._labels.get(label, ())]
        found += [(domain, route) for domain in domains for route in self._domains.get(domain.lower(), ())]
        return found

    def find(self, authority: str, target: bytes) -> tuple[Route, str] | None:
        """Return who answers a request, and what of its path led there (``/label``, or nothing).

        Args:
            authority: the Host field.
            target: path and query.
        """
        host = host_of(authority)
        if host.endswith(self._suffix):
            found = self._labels.get(host[: -len(self._suffix)])
            if found:
                return found[-1], ""
        found = self._domains.get(host)
        if found:
            return found[-1], ""
        if host in LOOPBACK and self.domain == "localhost":
            label = target[1:].partition(b"?")[0].partition(b"/")[0].decode("ascii", "replace")
            found = self._labels.get(label)
            if found:
                return found[-1], f"/{label}"
        return None

    def nothing_at(self, authority: str) -> str:
        """Return what is said where ``find`` finds nothing."""
        if host_of(authority) in LOOPBACK and self.domain == "localhost":
            return (
                f"{NOT_HERE}; on this host endpoints are at /<label>, and at <label>.localhost for pages "
                "that link to paths without it"
            )
        return NOT_HERE


def _drop(table: dict[str, list[Route]], key: str, route: Route) -> None:
    left = [x for x in table.get(key, ()) if x is not route]
    if left:
        table[key] = left
    else:
        table.pop(key, None)
