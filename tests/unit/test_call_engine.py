"""The call engine, one story at a time."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import pytest

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._upkeep import CHECK_SECONDS, GRACE_SECONDS
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.wire.spec import CLEANUP_SECONDS, FunctionSpec, ImageLayer, ImageSpec, RetrySpec

T = TypeVar("T")


class Rim:
    """An engine with one Function, its clock, and short words for events."""

    def __init__(self, default_max: int = 8, **policy: object) -> None:
        self.engine = CallEngine(default_max_containers=default_max)
        self.policy = dataclasses.replace(ev.FunctionPolicy("v1"), **policy)  # type: ignore[arg-type]
        self.now = 0.0
        self.first = self.do(ev.FunctionAdded("fu", self.policy))

    def do(self, event: ev.Event, after: float = 0.0) -> list[ev.Command]:
        self.now += after
        return self.engine.handle(event, self.now)

    def submit(self, count: int, call: str = "fc", start: int = 0, **more: object) -> list[ev.Command]:
        inputs = [(i, f"{call}{i}".encode(), 0) for i in range(start, start + count)]
        values: dict[str, object] = {"durable": False, "owner": "cl", **more}
        return self.do(ev.InputsSubmitted(call, "fu", inputs=inputs, **values))  # type: ignore[arg-type]

    def start(self, *names: str, slots: int = 1, version: str = "v1") -> list[ev.Command]:
        commands = self.do(ev.ContainersStarting("fu", version, names))
        for name in names:
            commands += self.do(ev.WorkerReady(name, "fu", version, slots))
        return commands

    def give(self, name: str, *leases: int, status: int = 0, busy: float = 0.0) -> list[ev.Command]:
        outputs = [(x, status, b"out", 0) for x in leases]
        return self.do(ev.OutputsReturned(name, outputs, busy))

    def wait(self, seconds: float) -> list[ev.Command]:
        end, commands = self.now + seconds, []
        while (wake := self.engine.next_wakeup()) is not None and wake <= end:
            self.now = max(self.now, wake)
            commands += self.do(ev.Tick())
        self.now = end
        return commands


def only(commands: list[ev.Command], kind: type[T]) -> list[T]:
    return [x for x in commands if isinstance(x, kind)]


def leases(commands: list[ev.Command]) -> list[int]:
    return [x[0] for c in only(commands, ev.Lease) for x in c.inputs]


def indexes(commands: list[ev.Command]) -> list[int]:
    return [x[2] for c in only(commands, ev.Lease) for x in c.inputs]


def statuses(commands: list[ev.Command]) -> dict[int, int]:
    return {x[0]: x[1] for c in only(commands, ev.Deliver) for x in c.outputs}


def test_the_life_of_an_input() -> None:
    rim = Rim()
    assert rim.submit(1, last=True) == [ev.StartContainers("fu", "v1", 1)]
    assert rim.start("ta-1") == [ev.Lease("ta-1", [(1, "fc", 0, b"fc0", 0)])]
    assert rim.give("ta-1", 1) == [ev.Deliver("fc", [(0, 0, b"out", 0)]), ev.CallDone("fc")]
    drained = rim.wait(61.0)
    assert [x.container_id for x in only(drained, ev.DrainContainer)] == ["ta-1"]
    rim.do(ev.WorkerLost("ta-1", "drained"))
    assert rim.engine.stats().containers == 0


def test_an_input_that_ended_its_container_by_its_own_work_is_not_run_for_ever() -> None:
    rim = Rim(retries=RetrySpec(1))
    rim.submit(1)
    rim.start("ta-1")
    assert not statuses(rim.do(ev.WorkerLost("ta-1", "out of memory", b"packed")))
    assert indexes(rim.start("ta-2")) == [0]
    commands = rim.do(ev.WorkerLost("ta-2", "out of memory", b"packed"))
    assert only(commands, ev.Deliver)[0].outputs == [(0, ev.FAILURE, b"packed", 0)]
    assert (rim.engine.stats().retries, rim.engine.stats().losses) == (1, 0)


def test_of_several_inputs_nobody_knows_which_one_ended_the_container() -> None:
    rim = Rim()
    rim.submit(2)
    rim.start("ta-1", slots=2)
    assert not statuses(rim.do(ev.WorkerLost("ta-1", "out of memory", b"packed")))
    assert sorted(indexes(rim.start("ta-2", slots=2))) == [0, 1]
    assert rim.engine.stats().losses == 2


def test_a_known_index_is_not_run_twice_and_its_output_comes_again() -> None:
    rim = Rim()
    rim.submit(2)
    rim.start("ta-1")
    rim.give("ta-1", 1)
    assert statuses(rim.submit(2)) == {0: 0}
    assert statuses(rim.do(ev.CallAttached("fc"))) == {0: 0}
    rim.do(ev.OutputsAcked("fc", [0]))
    assert not rim.submit(1)
    assert rim.engine.pending("fc") == 1


def test_durable_outputs_are_kept_until_stored() -> None:
    rim = Rim()
    rim.submit(1, durable=True)
    rim.start("ta-1")
    rim.give("ta-1", 1)
    rim.do(ev.OutputsAcked("fc", [0]))
    assert statuses(rim.do(ev.CallAttached("fc"))) == {0: 0}
    rim.do(ev.OutputsStored("fc", [0]))
    assert not rim.do(ev.CallAttached("fc"))


def test_a_restart_learns_what_is_done_before_the_client_sends_again() -> None:
    rim = Rim()
    rim.submit(0, durable=True)
    rim.do(ev.OutputsStored("fc", [0, 1, 3]))
    assert len(only(rim.submit(4, durable=True), ev.StartContainers)) == 1
    assert rim.engine.pending("fc") == 1


def test_prefetch_grows_with_short_inputs_and_frames_stay_large() -> None:
    rim = Rim()
    rim.submit(1000)
    first = rim.start("ta-1")
    assert len(leases(first)) == 1
    second = rim.give("ta-1", 1, busy=1e-5)
    assert len(leases(second)) == 256
    held = leases(second)
    assert not leases(rim.give("ta-1", *held[:50], busy=1e-4))
    assert len(leases(rim.give("ta-1", *held[50:150], busy=1e-4))) >= 50


def test_inputs_given_back_keep_their_place_and_end_the_prefetch() -> None:
    rim = Rim(max_containers=1)
    rim.submit(100)
    rim.start("ta-1")
    held = leases(rim.give("ta-1", 1, busy=0.001))
    assert len(held) == 50
    assert not leases(rim.do(ev.InputsGivenBack("ta-1", held[1:])))
    assert indexes(rim.give("ta-1", held[0], busy=0.001))[0] == 2


def test_a_lost_worker_returns_its_inputs_in_order() -> None:
    rim = Rim(max_containers=1)
    rim.submit(3)
    rim.start("ta-1", slots=2)
    commands = rim.do(ev.WorkerLost("ta-1", "killed"))
    assert only(commands, ev.StartContainers) == [ev.StartContainers("fu", "v1", 1)]
    assert indexes(rim.start("ta-2", slots=2)) == [0, 1]


def test_the_ninth_loss_ends_an_input_and_names_the_reason() -> None:
    rim = Rim(max_containers=1)
    rim.submit(1)
    for i in range(9):
        rim.start(f"ta-{i}")
        commands = rim.do(ev.WorkerLost(f"ta-{i}", "exit code 139"))
    (delivered,) = only(commands, ev.Deliver)
    assert delivered.outputs[0][1] == ev.INTERNAL
    assert b"exit code 139" in delivered.outputs[0][2]


def test_a_prefetched_input_counts_no_loss() -> None:
    rim = Rim(max_containers=1)
    rim.submit(10)
    rim.start("ta-x")
    rim.give("ta-x", 1, busy=1e-6)
    rim.do(ev.WorkerLost("ta-x", "killed"))
    assert [x.losses for x in rim.engine._pools["fu"].queue] == [1] + [0] * 8


def test_failures_and_timeouts_are_retried_after_their_delay() -> None:
    rim = Rim(retries=RetrySpec(2, backoff_coefficient=2.0, initial_delay=1.0))
    rim.submit(1)
    rim.start("ta-1")
    assert not rim.give("ta-1", 1, status=ev.FAILURE)
    assert not leases(rim.wait(0.9))
    assert leases(rim.wait(0.2)) == [2]
    assert not rim.give("ta-1", 2, status=ev.TIMEOUT)
    assert not leases(rim.wait(1.9))
    assert leases(rim.wait(0.2)) == [3]
    assert statuses(rim.give("ta-1", 3, status=ev.FAILURE)) == {0: ev.FAILURE}


def test_a_cancelled_call_ends_queued_and_running_inputs() -> None:
    rim = Rim(max_containers=1, retries=RetrySpec(3))
    rim.submit(3)
    rim.submit(1, call="other")
    rim.start("ta-1")
    commands = rim.do(ev.CallCancelled("fc", False))
    assert only(commands, ev.CancelLeases) == [ev.CancelLeases("ta-1", [1])]
    assert statuses(commands) == dict.fromkeys(range(3), ev.TERMINATED)
    answer = rim.give("ta-1", 1, status=ev.TERMINATED)
    assert not only(answer, ev.Deliver)
    assert [x.inputs[0][1] for x in only(answer, ev.Lease)] == ["other"]


def test_terminate_containers_kills_and_spares_the_neighbours() -> None:
    rim = Rim(max_concurrent_inputs=2, max_containers=1)
    rim.submit(1)
    rim.submit(1, call="other")
    rim.start("ta-1", slots=2)
    commands = rim.do(ev.CallCancelled("fc", True))
    assert [(x.container_id, x.force) for x in only(commands, ev.StopContainer)] == [("ta-1", True)]
    rim.do(ev.WorkerLost("ta-1", "stopped"))
    (lease,) = only(rim.start("ta-2", slots=2), ev.Lease)
    assert lease.inputs[0][1] == "other"
    assert rim.engine.stats().losses == 0


def test_a_lost_owner_takes_its_calls_but_not_the_durable_ones() -> None:
    rim = Rim()
    rim.submit(2)
    rim.submit(2, call="kept", durable=True)
    assert not only(rim.do(ev.OwnerLost("cl")), ev.Deliver)
    assert rim.engine.pending("fc") is None
    assert rim.engine.pending("kept") == 2


def test_a_closed_durable_call_runs_to_its_end_and_is_forgotten() -> None:
    rim = Rim()
    rim.submit(1, durable=True, last=True)
    rim.start("ta-1")
    rim.do(ev.CallClosed("fc"))
    assert statuses(rim.give("ta-1", 1)) == {0: 0}
    assert rim.engine.stats().calls == 0


def test_init_failure_fails_the_queue_and_a_later_input_tries_again() -> None:
    rim = Rim()
    rim.submit(2)
    rim.do(ev.ContainersStarting("fu", "v1", ["ta-1"]))
    commands = rim.do(ev.WorkerInitFailed("ta-1", b"ImportError"))
    assert statuses(commands) == {0: ev.INIT_FAILURE, 1: ev.INIT_FAILURE}
    rim.do(ev.ContainerFailed("ta-1", "exit code 1"))
    assert rim.engine.stats().containers == 0
    rim.do(ev.ContainersStarting("fu", "v1", [], 1))
    assert only(rim.submit(1, start=5) + rim.wait(1.0), ev.StartContainers)


def test_a_crash_loop_ends_with_the_reason_and_backs_off() -> None:
    rim = Rim(max_containers=1)
    commands = rim.submit(1)
    begun = rim.now
    for i in range(3):
        assert only(commands, ev.StartContainers)
        rim.do(ev.ContainersStarting("fu", "v1", [f"ta-{i}"]))
        commands = rim.do(ev.ContainerFailed(f"ta-{i}", "exit code 137: out of memory"))
        if i < 2:
            assert not only(commands, ev.StartContainers)
            commands = rim.wait(5.0)
    assert b"out of memory" in only(commands, ev.Deliver)[0].outputs[0][2]
    assert rim.now > begun
    assert only(rim.submit(1, start=1), ev.StartContainers)


def test_a_silent_worker_is_killed_after_the_timeout() -> None:
    rim = Rim(timeout=2.0, max_containers=1)
    rim.submit(2)
    rim.start("ta-1")
    commands = rim.wait(2.0 + CLEANUP_SECONDS + GRACE_SECONDS + CHECK_SECONDS + 0.1)
    assert statuses(commands) == {0: ev.TIMEOUT}
    assert [(x.container_id, x.force) for x in only(commands, ev.StopContainer)] == [("ta-1", True)]
    rim.do(ev.WorkerLost("ta-1", "killed"))
    assert indexes(rim.start("ta-2")) == [1]


def test_a_container_that_is_never_ready_is_stopped_unless_it_waits_for_a_place() -> None:
    rim = Rim(startup_timeout=5.0, max_containers=1)
    rim.submit(1)
    rim.do(ev.ContainersStarting("fu", "v1", ["ta-1"]))
    rim.do(ev.ContainerPending("ta-1", "no node has a GPU"))
    assert not only(rim.wait(1000.0), ev.StopContainer)
    view = rim.engine.pool("fu")
    assert view is not None and view.pending_reason == "no node has a GPU"
    rim.do(ev.ContainerPending("ta-1", ""))
    stopped = only(rim.wait(16.0), ev.StopContainer)
    assert stopped and stopped[0].force and "startup_timeout" in stopped[0].reason


def test_a_pending_container_nobody_needs_any_more_is_withdrawn() -> None:
    rim = Rim()
    rim.submit(1)
    rim.do(ev.ContainersStarting("fu", "v1", ["ta-1"]))
    rim.do(ev.ContainerPending("ta-1", "no place"))
    assert only(rim.do(ev.CallCancelled("fc")), ev.StopContainer)


def test_a_new_version_drains_the_old_containers_and_gets_the_queue() -> None:
    rim = Rim()
    rim.submit(1)
    rim.start("ta-old")
    commands = rim.do(ev.FunctionAdded("fu", dataclasses.replace(rim.policy, version_key="v2")))
    assert [x.container_id for x in only(commands, ev.DrainContainer)] == ["ta-old"]
    assert only(rim.submit(1, start=1), ev.StartContainers) == [ev.StartContainers("fu", "v2", 1)]
    assert indexes(rim.start("ta-new", version="v2")) == [1]
    assert statuses(rim.give("ta-old", 1)) == {0: 0}


def test_a_removed_function_ends_its_inputs_and_leaves_nothing() -> None:
    rim = Rim(max_containers=1)
    rim.submit(2)
    rim.start("ta-1")
    commands = rim.do(ev.FunctionRemoved("fu", "the app was stopped"))
    assert statuses(commands) == {0: ev.TERMINATED, 1: ev.TERMINATED}
    assert only(commands, ev.CancelLeases) and only(commands, ev.DrainContainer)
    assert statuses(rim.submit(1, start=2)) == {2: ev.TERMINATED}
    rim.do(ev.WorkerLost("ta-1", "drained"))
    assert rim.engine.pools() == []
    assert statuses(rim.submit(1, call="late")) == {0: ev.INTERNAL}


def test_an_input_that_waits_for_a_child_of_the_same_function_is_no_deadlock() -> None:
    rim = Rim(default_max=1)
    rim.submit(1, call="parent")
    rim.start("ta-1")
    assert not only(rim.submit(1, call="child", owner="ta-1"), ev.StartContainers)
    commands = rim.wait(0.06)
    assert only(commands, ev.StartContainers) == [ev.StartContainers("fu", "v1", 1)]
    (lease,) = only(rim.start("ta-2"), ev.Lease)
    assert lease.inputs[0][1] == "child"


def test_single_use_containers_take_one_input() -> None:
    rim = Rim(single_use=True)
    assert rim.submit(3) == [ev.StartContainers("fu", "v1", 3)]
    assert len(leases(rim.start("ta-1", slots=4))) == 1
    assert [x.container_id for x in only(rim.give("ta-1", 1), ev.DrainContainer)] == ["ta-1"]


def test_the_floor_is_kept_and_scale_in_stops_there() -> None:
    rim = Rim(min_containers=1, scaledown_window=5.0)
    assert rim.first == [ev.StartContainers("fu", "v1", 1)]
    rim.start("ta-1", "ta-2")
    drained = only(rim.wait(60.0), ev.DrainContainer)
    assert len(drained) == 1


def test_a_worker_of_before_a_restart_is_adopted() -> None:
    rim = Rim()
    rim.do(ev.WorkerReady("ta-9", "fu", "v1", 1))
    assert indexes(rim.submit(1)) == [0]
    stopped = rim.do(ev.WorkerReady("ta-8", "fu-gone", "v1", 1))
    assert [x.container_id for x in only(stopped, ev.StopContainer)] == ["ta-8"]


def test_memory_is_flat_over_a_long_acknowledged_call() -> None:
    rim = Rim()
    rim.submit(1)
    commands = rim.start("ta-1")
    for index in range(1, 5000):
        done = rim.give("ta-1", *leases(commands), busy=1e-6)
        rim.do(ev.OutputsAcked("fc", list(statuses(done))))
        commands = rim.submit(1, start=index)
    call = rim.engine._calls["fc"]
    assert len(call.entries) <= 1 and not call.forgotten
    assert len(rim.engine._timers) < 100


@pytest.mark.parametrize(
    "event",
    [
        ev.OutputsReturned("ta-none", [(1, 0, b"", 0)], 0.0),
        ev.InputsGivenBack("ta-none", [1]),
        ev.WorkerLost("ta-none", ""),
        ev.ContainerFailed("ta-none", ""),
        ev.WorkerDraining("ta-none"),
        ev.WorkerInitFailed("ta-none", b""),
        ev.ContainerPending("ta-none", "x"),
        ev.CallCancelled("fc-none"),
        ev.CallClosed("fc-none"),
        ev.OutputsAcked("fc-none", [1]),
        ev.CallAttached("fc-none"),
        ev.OwnerLost("cl-none"),
        ev.FunctionRemoved("fu-none", ""),
        ev.Tick(),
    ],
)
def test_words_about_the_unknown_do_nothing(event: ev.Event) -> None:
    assert CallEngine().handle(event, 1.0) == []


def test_scale_in_passes_over_a_busy_container_that_has_a_free_slot() -> None:
    rim = Rim(max_concurrent_inputs=2, scaledown_window=5.0, timeout=300.0)
    rim.start("ta-1", slots=2)
    assert indexes(rim.submit(1)) == [0]
    rim.now += 1.0
    rim.start("ta-2", slots=2)
    assert [x.container_id for x in only(rim.wait(100.0), ev.DrainContainer)] == ["ta-2"]


def test_a_lowered_ceiling_ends_what_starts_then_what_idles_then_what_is_busy() -> None:
    rim = Rim(max_containers=4)
    rim.do(ev.FunctionAdded("fu", dataclasses.replace(rim.policy, min_containers=4)))
    rim.do(ev.ContainersStarting("fu", "v1", ["ta-1", "ta-2", "ta-3", "ta-4"]))
    for name in ("ta-1", "ta-2", "ta-3"):
        rim.do(ev.WorkerReady(name, "fu", "v1"))
    rim.submit(2)
    busy = {x.container_id for x in rim.engine.containers() if x.busy}
    lowered = rim.do(ev.FunctionAdded("fu", dataclasses.replace(rim.policy, max_containers=2)))
    assert [x.container_id for x in only(lowered, ev.StopContainer)] == ["ta-4"]
    assert not only(lowered, ev.StopContainer)[0].force
    (drained,) = only(lowered, ev.DrainContainer)
    assert drained.container_id in {"ta-1", "ta-2", "ta-3"} - busy
    lowered = rim.do(ev.FunctionAdded("fu", dataclasses.replace(rim.policy, max_containers=1)))
    assert {x.container_id for x in only(lowered, ev.DrainContainer)} < busy
    assert rim.engine.stats().running == 2, "a busy container finishes its input"
    assert not only(rim.submit(5, start=2), ev.StartContainers)


def test_a_changed_policy_leaves_containers_of_the_same_version_alone() -> None:
    rim = Rim(scaledown_window=60.0)
    rim.submit(1)
    rim.start("ta-1")
    assert rim.do(ev.FunctionAdded("fu", dataclasses.replace(rim.policy, scaledown_window=1.0))) == []


def test_statistics_tell_waiting_running_and_free() -> None:
    rim = Rim(max_containers=1)
    rim.submit(1)
    rim.start("ta-1", slots=4)
    view = rim.engine.pool("fu")
    assert view is not None
    assert (view.backlog, view.running, view.prefetched, view.headroom) == (0, 1, 0, 3)
    rim.submit(9, start=1)
    view = rim.engine.pool("fu")
    assert view is not None
    assert (view.backlog + view.prefetched, view.running, view.headroom) == (6, 4, 0)


def test_a_flood_reviews_each_container_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    check = CallEngine._check

    def counted(*args: object) -> float:
        nonlocal looks
        looks += 1
        return check(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(CallEngine, "_check", counted)
    rim = Rim(max_containers=500, min_containers=500)
    names = [f"ta-{i}" for i in range(500)]
    rim.do(ev.ContainersStarting("fu", "v1", names))
    rim.submit(500)
    for name in names:
        rim.do(ev.WorkerReady(name, "fu", "v1"))
    assert looks <= 3 * 500


def starts(commands: list[ev.Command]) -> int:
    return sum(c.count for c in only(commands, ev.StartContainers))


def test_what_inputs_want_of_a_processor_decides_how_many_containers_there_are() -> None:
    for wanted, expected in ((0.5, 0), (0.005, 60)):
        rim = Rim(default_max=100)
        rim.do(ev.CapacityChanged(2, 100))
        assert starts(rim.submit(1000)) == 2
        given = leases(rim.start("ta-1", "ta-2"))
        returned = rim.do(ev.OutputsReturned("ta-1", [(given[0], 0, b"", 0)], 0.5, (wanted, 0.5)), after=0.5)
        assert starts(returned + rim.wait(0.2)) >= expected, wanted
        assert starts(returned) == 0 or expected, wanted


def test_inputs_that_run_on_tell_what_they_want_by_heartbeats() -> None:
    rim = Rim(default_max=100)
    rim.do(ev.CapacityChanged(2, 100))
    rim.submit(50)
    rim.start("ta-1", "ta-2")
    begun = starts(rim.wait(3.0))
    assert begun <= 2
    rim.do(ev.ContainersStarting("fu", "v1", ("ta-3", "ta-4"), begun))
    told = [c for x in ("ta-1", "ta-2") for c in rim.do(ev.WorkerUsage(x, (0.001, 5.0)))]
    assert starts(told + rim.wait(0.2)) > 2
    assert rim.do(ev.WorkerUsage("ta-unknown", (1.0, 1.0))) == []


def test_more_cores_let_a_waiting_queue_have_more_containers_at_once() -> None:
    rim = Rim(default_max=100)
    rim.do(ev.CapacityChanged(1, 100))
    assert starts(rim.submit(100)) == 1
    rim.do(ev.ContainersStarting("fu", "v1", ("ta-1",), 1))
    assert starts(rim.do(ev.CapacityChanged(8, 100))) == 7


def test_an_image_that_is_built_on_the_node_has_time_to() -> None:
    image = ImageSpec(layers=(ImageLayer("pip", ("torch",)),))
    spec = FunctionSpec(app="a", name="f", timeout=5.0, image=image)
    assert ev.FunctionPolicy.from_spec(spec).startup_timeout == ev.BUILD_SECONDS
    assert ev.FunctionPolicy.from_spec(dataclasses.replace(spec, startup_timeout=7.0)).startup_timeout == 7.0
    assert ev.FunctionPolicy.from_spec(dataclasses.replace(spec, image=ImageSpec())).startup_timeout is None


def test_batches_are_filled_rather_than_spread() -> None:
    rim = Rim(batch_size=4, max_concurrent_inputs=4)
    rim.submit(0)
    rim.start("ta-1", "ta-2", slots=4)
    shares = {c.container_id: len(c.inputs) for c in only(rim.submit(6), ev.Lease)}
    assert sorted(shares.values()) == [2, 4]


def test_inputs_that_come_one_by_one_share_a_batch() -> None:
    rim = Rim(batch_size=4, max_concurrent_inputs=4)
    rim.start("ta-1", "ta-2", slots=4)
    places = [c.container_id for i in range(4) for c in only(rim.submit(1, start=i), ev.Lease)]
    assert len(places) == 4 and len(set(places)) == 1


def test_a_batch_may_wait_for_the_one_before_it() -> None:
    limit = CLEANUP_SECONDS + GRACE_SECONDS
    rim = Rim(batch_size=2, max_concurrent_inputs=2, timeout=100.0)
    rim.start("ta-1", slots=2)
    rim.submit(2)
    assert not only(rim.wait(100.0 + limit + 2 * CHECK_SECONDS), ev.StopContainer)
    assert only(rim.wait(100.0 + 2 * CHECK_SECONDS), ev.StopContainer)


def test_a_calls_method_is_known_while_the_call_is() -> None:
    rim = Rim()
    rim.submit(1, method="predict")
    assert rim.engine.method("fc") == "predict"
    rim.do(ev.CallClosed("fc"))
    assert rim.engine.method("fc") == ""
