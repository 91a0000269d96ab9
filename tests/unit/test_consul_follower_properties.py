"""What a gateway makes of Consul, whatever that does: outages, restarts, indexes that go back, flapping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modal_nomad.dispatcher.gateway.consul import ConsulDiscovery
from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, ServedFunction
from modal_nomad.hashicorp.consul import ConsulClient, ConsulSettings, ConsulUnavailable, index_after

JOBS = ("default/shop", "default/site")
LONGER_THAN_ALL_PAUSES = 60.0


class Loop(asyncio.SelectorEventLoop):
    """Time passes when it is told to."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Do all that there is to do now."""
        for _ in range(30):
            self.call_soon(self.stop)
            self.run_forever()

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.settle()


@dataclass
class Instance:
    """One container's registration for one endpoint."""

    job: str
    container: str
    label: str
    version: int
    limit: int
    guarded: bool
    born: int
    passing: bool = True

    def entry(self) -> dict[str, Any]:
        meta = {
            "job": self.job, "container": self.container, "label": self.label, "version": str(self.version),
            "max_inputs": str(self.limit), "proxy_auth": str(self.guarded).lower(),
        }  # fmt: skip
        service = {"Address": "10.0.0.1", "Port": 4000, "Meta": meta, "CreateIndex": self.born}
        return {"Node": {"Address": "10.0.0.1"}, "Service": service, "Checks": []}


class Scripted(ConsulClient):
    """A Consul that does what a test says."""

    def __init__(self) -> None:
        super().__init__(ConsulSettings())
        self.instances: list[Instance] = []
        self.index = 10
        self.up = True
        self.failing = 0
        self.restored = 0
        self.spurious = False
        self.answers: Callable[[Any], Any] | None = None
        self._changed = asyncio.Event()

    def change(self) -> int:
        """Give what changes now its index."""
        self.index += 1
        self.wake()
        return self.index

    def wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def end(self) -> None:
        """Break every connection off."""
        self.up = False
        self.wake()

    async def _watch(self, path: str, index: int, **options: str) -> tuple[int, Any]:
        if not self.up:
            raise ConsulUnavailable("down")
        if self.failing:
            self.failing -= 1
            raise ConsulUnavailable("this one fails")
        before = self.restored
        while index and self.index <= index and self.restored == before:
            await self._changed.wait()
            if not self.up:
                raise ConsulUnavailable("cut off")
            if self.spurious:
                break
        found: Any
        if path == "/v1/catalog/services":
            found = {"stranger": ["db"], **{x.label: ["modal-nomad"] for x in self.instances}}
        else:
            name = path.rpartition("/")[2]
            found = [x.entry() for x in self.instances if x.label == name and x.passing]
        answer, self.answers = self.answers, None
        return index_after(index, self.index), found if answer is None else answer(found)


@dataclass
class Told:
    """What a gateway was told; what makes no sense is an error."""

    functions: dict[str, ServedFunction] = field(default_factory=dict)
    containers: dict[str, dict[str, ContainerAddress]] = field(default_factory=dict)

    def serve(self, function: ServedFunction) -> None:
        self.functions[function.function_id] = function
        self.containers.setdefault(function.function_id, {})

    def withdraw(self, function_id: str) -> None:
        del self.functions[function_id], self.containers[function_id]

    def instance_up(self, function_id: str, address: ContainerAddress) -> None:
        self.containers[function_id][address.container_id] = address

    def instance_out(self, function_id: str, container_id: str) -> None:
        del self.containers[function_id][container_id]

    def fail(self, function_id: str, status: int, text: str) -> None:
        raise AssertionError("Consul knows nothing of failures")

    def summary(self) -> dict[str, Any]:
        return {
            job: (
                sorted(self.containers[job]),
                function.limit,
                [(x.label, x.requires_proxy_auth) for x in function.routes],
            )
            for job, function in self.functions.items()
        }


class Follower(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.consul = Scripted()
        self.told = Told()
        self.versions = dict.fromkeys(JOBS, 0)
        self.limits = dict.fromkeys(JOBS, 1)
        self.guarded = dict.fromkeys(JOBS, False)
        self.labels = {job: (f"{job[-4:]}-a",) for job in JOBS}
        self.started = 0
        self.before: dict[str, Any] = {}
        found = ConsulDiscovery(self.consul, b"secret", self.told)
        self.task = self.loop.create_task(found.run())

    def teardown(self) -> None:
        self.task.cancel()
        self.loop.settle()
        assert self.task.cancelled() and not asyncio.all_tasks(self.loop)
        self.loop.close()

    # --- what apps and Nomad do ---------------------------------------------------------------------

    @rule(job=st.sampled_from(JOBS), limit=st.integers(1, 3), guarded=st.booleans(), two=st.booleans())
    def deploy(self, job: str, limit: int, guarded: bool, two: bool) -> None:
        self.versions[job] += 1
        self.limits[job], self.guarded[job] = limit, guarded
        self.labels[job] = tuple(f"{job[-4:]}-{x}" for x in ("ab" if two else "a"))
        self.start(job, True)

    @rule(job=st.sampled_from(JOBS), passing=st.booleans())
    def start(self, job: str, passing: bool) -> None:
        self.started += 1
        for label in self.labels[job]:
            born = self.consul.change()
            new = Instance(
                job,
                f"ta-{self.started}",
                label,
                self.versions[job],
                self.limits[job],
                self.guarded[job],
                born,
            )
            new.passing = passing
            self.consul.instances.append(new)

    @precondition(lambda self: self.consul.instances)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from([x.container for x in self.consul.instances]))
        self.consul.instances = [x for x in self.consul.instances if x.container != gone]
        self.consul.change()

    @precondition(lambda self: self.consul.instances)
    @rule(data=st.data(), times=st.integers(1, 4))
    def flap(self, data: st.DataObject, times: int) -> None:
        instance = data.draw(st.sampled_from(self.consul.instances))
        for _ in range(times):
            instance.passing = not instance.passing
            self.consul.change()
            if data.draw(st.booleans()):
                self.loop.settle()

    # --- what Consul does ---------------------------------------------------------------------------

    @rule(order=st.randoms(use_true_random=False), twice=st.booleans())
    def name_them_in_another_order(self, order: Any, twice: bool) -> None:
        order.shuffle(self.consul.instances)
        if twice:
            self.consul.answers = lambda x: x + x if isinstance(x, list) else x
        self.consul.change()

    @rule()
    def answer_without_news(self) -> None:
        self.consul.spurious = True
        self.consul.wake()
        self.loop.settle()
        self.consul.spurious = False

    @rule(count=st.integers(1, 4))
    def fail_some(self, count: int) -> None:
        self.consul.failing = count
        self.consul.change()

    @rule(said=st.sampled_from([None, "no JSON of Consul's", 5, ["x"], [None]]))
    def answer_nonsense(self, said: Any) -> None:
        self.consul.answers = lambda _: said
        self.consul.change()

    @rule(index=st.integers(1, 9))
    def go_back(self, index: int) -> None:
        """Another server's data, or a snapshot: what is there was registered anew, in the same order."""
        self.consul.instances.sort(key=lambda x: x.born)
        self.consul.index = index
        self.consul.restored += 1
        for instance in self.consul.instances:
            instance.born = self.consul.change()
        self.consul.wake()

    @precondition(lambda self: self.consul.up)
    @rule()
    def go_away(self) -> None:
        self.before = self.told.summary()
        self.consul.end()

    @precondition(lambda self: not self.consul.up)
    @rule(minutes=st.integers(0, 5))
    def come_back(self, minutes: int) -> None:
        for _ in range(4 * minutes):
            self.loop.now += 15.0
            self.loop.settle()
        self.consul.up = True
        calm = not self.consul.failing and self.consul.answers is None
        # However long it was away, everything is known within two seconds.
        self.loop.advance(2.0)
        assert not calm or self.told.summary() == self.expected()

    # --- what holds -----------------------------------------------------------------------------------

    @invariant()
    def known_is_what_is_there(self) -> None:
        self.loop.settle()
        if not self.consul.up:
            assert self.told.summary() == self.before
            return
        if self.told.summary() != self.expected():
            # After an error it waits before it asks again.
            self.loop.advance(LONGER_THAN_ALL_PAUSES)
        assert self.told.summary() == self.expected()
        assert not self.task.done()

    def expected(self) -> dict[str, Any]:
        found = {}
        for job in JOBS:
            there = [x for x in self.consul.instances if x.job == job and x.passing]
            if there:
                newest = max(there, key=lambda x: x.born)
                routes = {(x.label, x.guarded) for x in there if x.version == newest.version}
                found[job] = (sorted({x.container for x in there}), newest.limit, sorted(routes))
        return found


TestFollower = Follower.TestCase
TestFollower.settings = settings(max_examples=60, stateful_step_count=30)
