"""Who called whom: written down behind the calls, in batches, so that no call waits for it.

What a durable call calls, at any depth, is kept in the store as long as its results; what any other call
calls is kept in memory, and of that only the latest. Calls that nobody's input made (a ``.map`` from a
laptop) cost nothing here: the first call of a graph is known to the store or to the call engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._containers import FunctionState
from modal_nomad.dispatcher._views import CallView
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.store.base import GraphCall, GraphInput, Store, StoreError
from modal_nomad.exception import NotFoundError

logger = logging.getLogger("modal_nomad.dispatcher")

MAX_MEMORY = 20_000
"""Inputs of calls that are not stored that are remembered, all in all."""
MAX_INPUTS = 10_000
"""Inputs of one call that are written down; of a larger call, the first ones to be taken."""
MAX_CALLS = 100_000
"""Calls below one call that are written down, and inputs in one answer."""
FLUSH_SECONDS = 0.2
_FLUSH_ROWS = 2000
# What a peer sends is remembered: nothing of it may be large.
_MAX_ID = 64


@dataclass
class _Node:
    """A call that an input made, while it is in progress or remembered."""

    call: GraphCall
    function_id: str
    stored: bool
    spawned: bool
    inputs: dict[int, tuple[int | None, str]] = field(default_factory=dict)
    children: int = 0


class CallGraph:
    """The calls that inputs make.

    Args:
        store: an open store.
        engine: the call engine, to look at.
        functions: the Functions that may be called, by id.
        durable: the ids of spawned calls in progress.
        background: runs a coroutine that nobody waits for.
    """

    def __init__(
        self,
        store: Store,
        engine: CallEngine,
        functions: Mapping[str, FunctionState],
        durable: Container[str],
        background: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self._store = store
        self._engine = engine
        self._functions = functions
        self._durable = durable
        self._background = background
        self._nodes: OrderedDict[str, _Node] = OrderedDict()
        self._memory = 0
        self._new: list[GraphCall] = []
        self._changed: dict[tuple[str, int], GraphInput] = {}
        self._writing = asyncio.Lock()
        self._due = False

    def called(
        self, call_id: str, function_id: str, method: str, parent: str, indexes: Iterable[int] | None
    ) -> None:
        """Note inputs of a call that the input ``parent`` (``in-…``) made.

        Args:
            call_id: the call.
            function_id: whose call.
            method: which method of a class; empty for a plain function.
            parent: the input.
            indexes: of the new inputs; None for a spawned call, whose inputs are in the store anyway.
        """
        if len(parent) > _MAX_ID or len(call_id) > _MAX_ID:
            return
        node = self._nodes.get(call_id)
        if node is None:
            parent_call = f"fc-{parent[3:].rpartition(':')[0]}"
            above = self._nodes.get(parent_call)
            if above is not None:
                above.children += 1
                if above.children > MAX_CALLS:
                    return
            call = GraphCall(call_id, parent_call, parent, *self._names(function_id, method))
            stored = above.stored if above is not None else parent_call in self._durable
            node = self._nodes[call_id] = _Node(call, function_id, stored, indexes is None)
            if stored:
                self._new.append(call)
            while len(self._nodes) > MAX_CALLS:
                self._drop(next(iter(self._nodes)))
        for index in indexes or ():
            self._note(node, index, None, "")

    def answered(self, command: ev.Deliver, container_id: str) -> None:
        """Note how inputs ended, and where."""
        node = self._nodes.get(command.call_id)
        if node is not None:
            for index, status, _, _ in command.outputs:
                self._note(node, index, status, container_id)

    def ended(self, call_id: str) -> None:
        """Forget a call whose rows are in the store; the store answers for it."""
        node = self._nodes.get(call_id)
        if node is not None and node.stored:
            del self._nodes[call_id]

    def function_of(self, call_id: str) -> str | None:
        """Return whose call it is that is remembered; None when it is not."""
        node = self._nodes.get(call_id)
        return node.function_id if node is not None else None

    async def graph(self, call_id: str) -> tuple[list[GraphCall], list[GraphInput]]:
        """Return a call and all below it, parents first, and their inputs.

        Raises:
            NotFoundError: there is no such call.
        """
        await self._flush()
        calls, inputs = await self._store.graph(call_id, MAX_CALLS)
        live = self._engine.inputs(call_id)
        root = self._nodes.get(call_id)
        if not calls:
            if live is None and root is None:
                raise NotFoundError(f"there is no call {call_id}: check the id")
            calls = [GraphCall(call_id, "", "", "", "")]
            if root is None and live is not None:
                inputs = [GraphInput(call_id, index, status, "") for index, status in live.inputs]
        if not calls[0].name:
            calls[0] = GraphCall(call_id, "", "", *await self._root_names(call_id, root, live))
        for spawned in self._add_memory(calls, inputs):
            below, more = await self._store.graph(spawned, MAX_CALLS)
            calls.extend(below[1:])
            inputs.extend(more)
        return calls, self._completed(inputs)

    # --- below: how it is kept ---------------------------------------------------------------------

    def _note(self, node: _Node, index: int, status: int | None, container_id: str) -> None:
        inputs = node.inputs
        if node.stored:
            # Only how many there are: their rows are on their way to the store.
            known = index in inputs
            if not known and len(inputs) >= MAX_INPUTS:
                return
            inputs[index] = (None, "")
            call_id = node.call.call_id
            self._changed[call_id, index] = GraphInput(call_id, index, status, container_id)
            self._schedule()
            return
        if index not in inputs:
            if len(inputs) >= MAX_INPUTS:
                return
            inputs[index] = (status, container_id)
            self._memory += 1
            while self._memory > MAX_MEMORY:
                self._drop(next(x for x, other in self._nodes.items() if not other.stored))
            return
        inputs[index] = (status, container_id)

    def _drop(self, call_id: str) -> None:
        node = self._nodes.pop(call_id)
        if not node.stored:
            self._memory -= len(node.inputs)

    def _schedule(self) -> None:
        if not self._due:
            self._due = True
            self._background(self._flush_later())

    async def _flush_later(self) -> None:
        if len(self._changed) < _FLUSH_ROWS:
            await asyncio.sleep(FLUSH_SECONDS)
        self._due = False
        await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            calls, self._new = self._new, []
            rows, self._changed = self._changed, {}
            if calls or rows:
                try:
                    await self._store.add_graph(calls, list(rows.values()))
                except StoreError as error:
                    logger.warning("a part of a call graph is not kept: %s", error)

    def _names(self, function_id: str, method: str) -> tuple[str, str]:
        function = self._functions.get(function_id)
        return _names(function.spec_dict, method) if function is not None else ("", "")

    async def _root_names(self, call_id: str, root: _Node | None, live: CallView | None) -> tuple[str, str]:
        if root is not None:
            return root.call.name, root.call.module
        if live is not None:
            function_id, method = live.function_id, live.method
        else:
            record = await self._store.call(call_id)
            if record is None:
                return "", ""
            function_id, method = record.function_id, record.method
        if function_id in self._functions:
            return self._names(function_id, method)
        function = await self._store.function(function_id)
        return _names(function.spec, method) if function is not None else ("", "")

    def _add_memory(self, calls: list[GraphCall], inputs: list[GraphInput]) -> list[str]:
        """Add what only memory knows: what calls that are not stored made; returns the spawned of them."""
        spawned: list[str] = []
        known = {call.call_id for call in calls}
        seen = {(x.call_id, x.input_index) for x in inputs}
        # Parents come before their children here, as they came.
        for call_id, node in self._nodes.items():
            if node.stored or not (call_id in known or node.call.parent_call in known):
                continue
            if call_id not in known:
                known.add(call_id)
                calls.append(node.call)
                if node.spawned:
                    spawned.append(call_id)
            rows = node.inputs.items()
            inputs.extend(GraphInput(call_id, i, *x) for i, x in rows if (call_id, i) not in seen)
        return spawned

    def _completed(self, inputs: list[GraphInput]) -> list[GraphInput]:
        """Say of pending inputs where they run, and which were dropped with who waited for them."""
        running = self._engine.running()
        result = []
        for item in inputs:
            if item.status is None:
                if self._engine.pending(item.call_id) is None and item.call_id not in self._durable:
                    item = item._replace(status=ev.TERMINATED)
                else:
                    item = item._replace(task_id=running.get((item.call_id, item.input_index), ""))
            result.append(item)
        return result


def _names(spec: Mapping[str, Any], method: str) -> tuple[str, str]:
    name = str(spec.get("name", ""))
    if method and name.endswith(".*"):
        name = name[:-1] + method
    return name, str(spec.get("module", ""))
