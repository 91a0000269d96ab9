"""Where containers run, on one machine: all of it is taken, and a proxy is one that the machine has."""

from __future__ import annotations

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.nomad import Affinity, Constraint, Placement, Spread
from modal_nomad.scheduler_placement import SchedulerPlacement

WHERE = Placement(
    node_pool="gpu",
    node_meta={"rack": "r1"},
    constraints=[Constraint("${attr.cpu.arch}", "=", "m68k")],
    affinities=[Affinity("${meta.disk}", "=", "nvme")],
    spreads=[Spread("${node.datacenter}")],
    priority=70,
    meta={"team": "ml"},
)


def test_one_machine_is_every_place(live: Live) -> None:
    app = modal.App("places")
    spot = SchedulerPlacement(region="eu", zone="eu-1a", spot=True, instance_type="m5.large")

    @app.function(serialized=True, nomad=WHERE, _experimental_scheduler_placement=spot)
    def function(x: int) -> int:
        return x + 1

    @app.cls(serialized=True, nomad=WHERE, _experimental_scheduler_placement=spot)
    class Model:
        @modal.method()
        def get(self, x: int) -> int:
            return x + 2

    with app.run():
        assert function.remote(1) == 2 and Model().get.remote(1) == 3
        # The region is the options' own then, and the rest stays.
        assert function.with_options(region="us").remote(2) == 3
        with pytest.raises(exception.InvalidError, match="both as region= and in its nomad="):
            app.function(serialized=True, name="twice", region="eu", nomad=Placement(datacenters="dc1"))(
                lambda: 1
            )
            app.deploy(name="places-twice")


def test_a_proxy_that_nobody_has_said_anything_of_is_not_found(live: Live) -> None:
    home = modal.Proxy.from_name("home")
    assert not home.is_hydrated and home.name == "home"
    with pytest.raises(exception.NotFoundError, match=r"no proxy 'home' \(it has none\).*\[proxies\.home\]"):
        home.hydrate()
    app = modal.App("proxies")
    app.function(serialized=True, proxy=home)(lambda: 1)
    with pytest.raises(exception.NotFoundError, match="no proxy 'home'"), app.run():
        pass
    with pytest.raises(exception.InvalidError, match="Invalid Proxy name"):
        modal.Proxy.from_name("a b")


def test_a_proxy_of_this_machine(own: Live) -> None:
    (own.home / "local.toml").write_text("[proxies.office]\n")
    office = modal.Proxy.from_name("office", environment_name="main")
    assert office.hydrate() is office and office.object_id.startswith("pr-")
    app = modal.App("proxies")

    @app.function(serialized=True, proxy=office)
    def function(x: int) -> int:
        return x + 1

    @app.cls(serialized=True, proxy=office)
    class Model:
        @modal.method()
        def get(self, x: int) -> int:
            return x + 2

    with app.run():
        assert function.remote(1) == 2 and Model().get.remote(1) == 3
