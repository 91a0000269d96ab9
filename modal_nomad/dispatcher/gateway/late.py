"""Answers that take longer than clients wait: they are sent to a pending result, and come back for it."""

from __future__ import annotations

from time import monotonic

from modal_nomad.dispatcher.gateway.forwarding import redirect_fields
from modal_nomad.dispatcher.gateway.state import State
from modal_nomad.wire.http1.exchange import Exchange


class LateAnswers:
    """The requests of one gateway that were redirected to their results.

    Args:
        seconds: that each is kept for who was redirected.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pending: dict[str, Exchange] = {}
        self._failures: dict[str, tuple[float, State, int, str]] = {}

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._pending

    def redirect(self, exchange: Exchange) -> None:
        """Send a client away to the pending result of its request."""
        state: State | None = exchange.state
        client = exchange.client
        if state is None or client is None:
            return
        client.leave()
        state.left_at = monotonic()
        self._pending[state.call_id] = exchange
        fields = redirect_fields(exchange.request, state.call_id)
        client.answer(303, "the result is not there yet: ask again at the Location", fields)

    def failed(self, exchange: Exchange, status: int, text: str) -> None:
        """Keep why a request failed, for who comes back for its result."""
        state: State = exchange.state
        self._failures[state.call_id] = (monotonic(), state, status, text)

    def ended(self, call_id: str) -> None:
        """Forget a request that is over."""
        self._pending.pop(call_id, None)

    def claim(self, exchange: Exchange, call_id: str) -> None:
        """Answer a request with the result of another one."""
        state: State = exchange.state
        failure = self._failures.get(call_id)
        if failure is not None and failure[1].route.function_id == state.route.function_id:
            del self._failures[call_id]
            exchange.refuse(failure[2], failure[3])
            return
        pending = self._pending.get(call_id)
        client = exchange.client
        if pending is None or client is None or pending.state.route.function_id != state.route.function_id:
            exchange.refuse(404, "there is no such pending result; it is kept for a minute")
            return
        if pending.client is not None:
            exchange.refuse(409, "somebody waits for this result already")
            return
        exchange.over = True
        client.leave()
        client.take_over(pending)

    def sweep(self, now: float) -> None:
        """Give up what nobody came for."""
        for exchange in list(self._pending.values()):
            if exchange.client is None and now - exchange.state.left_at >= self._seconds:
                exchange.end()
        for call_id, (since, *_) in list(self._failures.items()):
            if now - since >= self._seconds:
                del self._failures[call_id]

    def close(self) -> None:
        """End all of them."""
        for exchange in list(self._pending.values()):
            exchange.end()
