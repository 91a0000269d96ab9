"""Requests as the call engine and the gateway's balance see them."""

from __future__ import annotations

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher.gateway.balancer import Instance, Service
from modal_nomad.dispatcher.gateway.loads import Loads
from tests.unit.test_call_engine import Rim, only


def load(
    rim: Rim, waiting: int = 0, finished: int = 0, seconds: float = 0.0, **running: int
) -> list[ev.Command]:
    return rim.do(ev.WebLoad("fu", waiting, running, finished, seconds))


def test_a_waiting_request_starts_a_container_in_the_same_tick() -> None:
    rim = Rim()
    assert only(load(rim, waiting=1), ev.StartContainers)
    rim.start("ta-1")
    assert only(load(rim, waiting=0, **{"ta-1": 1}), ev.StartContainers) == []


def test_a_container_with_a_request_is_not_idle() -> None:
    rim = Rim(scaledown_window=10.0)
    load(rim, waiting=1)
    rim.start("ta-1")
    load(rim, **{"ta-1": 1})
    assert only(rim.wait(100), ev.DrainContainer) == []
    load(rim, finished=1, seconds=100.0)
    assert only(rim.wait(9), ev.DrainContainer) == []
    assert [x.container_id for x in only(rim.wait(2), ev.DrainContainer)] == ["ta-1"]


def test_requests_that_take_long_start_more_containers() -> None:
    rim = Rim(default_max=4)
    load(rim, waiting=1)
    rim.start("ta-1")
    load(rim, finished=1, seconds=5.0, **{"ta-1": 1})
    assert sum(x.count for x in only(load(rim, waiting=8, **{"ta-1": 1}), ev.StartContainers)) == 3


def test_requests_fail_when_containers_do_not_start() -> None:
    rim = Rim()
    load(rim, waiting=2)
    rim.do(ev.ContainersStarting("fu", "v1", ["ta-1"]))
    failed = only(rim.do(ev.WorkerInitFailed("ta-1", b"x")), ev.FailRequests)
    assert [x.function_id for x in failed] == ["fu"]
    rim = Rim()
    load(rim, waiting=1)
    failed = []
    for number in range(3):
        rim.do(ev.ContainersStarting("fu", "v1", [f"ta-{number}"]))
        failed += only(rim.do(ev.ContainerFailed(f"ta-{number}", "killed")), ev.FailRequests)
    assert len(failed) == 1 and "killed" in failed[0].reason


def test_a_single_use_container_ends_after_its_request() -> None:
    rim = Rim(single_use=True)
    load(rim, waiting=1)
    rim.start("ta-1")
    load(rim, **{"ta-1": 1})
    assert only(load(rim, finished=1, seconds=0.1), ev.DrainContainer)


def test_a_draining_container_keeps_its_request() -> None:
    rim = Rim()
    load(rim, waiting=1)
    rim.start("ta-1")
    load(rim, **{"ta-1": 1})
    drained = rim.do(ev.FunctionAdded("fu", ev.FunctionPolicy("v2")))
    assert only(drained, ev.DrainContainer)
    assert only(rim.wait(1000), ev.StopContainer) == []
    load(rim, finished=1, seconds=1000.0)
    assert only(rim.wait(60), ev.StopContainer)


def instance(name: str) -> Instance:
    return Instance(name, "127.0.0.1", 1, "key")


def test_the_less_busy_of_two() -> None:
    service = Service("fu", 10, False)
    one, other = instance("ta-1"), instance("ta-2")
    service.add(one)
    assert service.choose(0.0) is one
    service.add(other)
    for _ in range(3):
        service.begin(one)
    assert service.choose(0.0) is other
    assert service.choose(0.0, [other]) is one
    # Where there are no others than those it had, it gets one of these.
    assert service.choose(0.0, [one, other]) is other
    other.blocked_until = 5.0
    assert service.choose(0.0) is one and service.choose(5.0) is other


def test_no_container_gets_more_than_its_limit() -> None:
    service = Service("fu", 2, False)
    for name in ("ta-1", "ta-2", "ta-3"):
        service.add(instance(name))
    for _ in range(6):
        chosen = service.choose(0.0)
        assert chosen is not None
        service.begin(chosen)
    assert service.choose(0.0) is None
    assert service.load() == {"ta-1": 2, "ta-2": 2, "ta-3": 2}
    service.end(service.instances["ta-2"], 0.5)
    assert service.choose(0.0) is service.instances["ta-2"]


def test_who_is_out_keeps_what_it_has() -> None:
    service = Service("fu", 2, False)
    one = instance("ta-1")
    service.add(one)
    service.begin(one)
    service.take_out("ta-1")
    assert service.choose(0.0) is None and service.load() == {"ta-1": 1}
    service.end(one, 1.0)
    assert service.load() == {} and (service.finished, service.seconds) == (1, 1.0)


def test_a_container_that_came_back_is_counted_once_with_all_it_has() -> None:
    service = Service("fu", 5, False)
    one, again = instance("ta-1"), instance("ta-1")
    service.add(one)
    service.begin(one)
    service.add(again)
    service.begin(again)
    assert service.load() == {"ta-1": 2}
    service.end(one, 0.1)
    assert service.load() == {"ta-1": 1}


def test_single_use() -> None:
    service = Service("fu", 5, True)
    one = instance("ta-1")
    service.add(one)
    service.begin(one)
    assert service.choose(0.0) is None and service.load() == {"ta-1": 1}


def test_requests_of_other_gateways_take_room_too() -> None:
    service = Service("fu", 1, False)
    one, two = instance("ta-1"), instance("ta-2")
    service.add(one)
    service.add(two)
    service.others({"ta-1": 1}, 0)
    assert service.choose(0.0) is two
    service.others({"ta-1": 1, "ta-2": 1}, 0)
    assert service.choose(0.0) is None
    # One of theirs ended, another has its place already: one of ours may wait there with theirs.
    service.others({"ta-1": 1, "ta-2": 1}, 1)
    chosen = service.choose(0.0)
    assert chosen is not None
    service.begin(chosen)
    assert service.choose(0.0) is None


def test_a_request_that_was_not_taken_is_no_finished_one() -> None:
    service = Service("fu", 1, False)
    one = instance("ta-1")
    service.add(one)
    assert not service.begin(one)
    service.back(one)
    assert service.load() == {} and service.finished == 0
    # One of theirs ended: ours takes its turn there.
    service.others({"ta-1": 1}, 1)
    assert service.begin(one)


def test_what_all_gateways_say_is_added_up() -> None:
    told: list[tuple[object, ...]] = []
    loads = Loads(lambda *x: told.append(x))
    loads.say("one", "fu", 2, {"ta-1": 1}, 0, 0.0)
    loads.say("two", "fu", 1, {"ta-1": 2, "ta-2": 1}, 3, 0.5)
    assert told[-1] == ("fu", 3, {"ta-1": 3, "ta-2": 1}, 3, 0.5)
    assert loads.elsewhere("one", "fu") == {"ta-1": 2, "ta-2": 1}
    # What a container counts itself has these among it.
    loads.say_own("fu", "ta-2", 5, 1, 0.1)
    assert told[-1] == ("fu", 3, {"ta-1": 3, "ta-2": 5}, 1, 0.1)
    assert loads.forget("two") == ["fu"]
    assert told[-1] == ("fu", 2, {"ta-1": 1, "ta-2": 5}, 0, 0.0)
    loads.container_gone("fu", "ta-2")
    loads.say("one", "fu", 0, {}, 1, 0.1)
    assert told[-1] == ("fu", 0, {}, 1, 0.1)
