"""Placement: what may be asked for, what becomes of it in the job, and who says that it cannot be."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad._options import function_options
from modal_nomad._variants import overrides_from
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.engines._nomad_words import placement_words
from modal_nomad.exception import InvalidError
from modal_nomad.nomad import Affinity, Constraint, Placement, Spread
from modal_nomad.render import RenderSettings, render_function
from modal_nomad.runner import prepare
from modal_nomad.scheduler_placement import SchedulerPlacement
from modal_nomad.wire.spec import FunctionSpec

SETTINGS = RenderSettings(
    "http://10.0.0.1:8520",
    "a" * 64,
    proxies={"office": {"node_pool": "egress", "node_meta": {"ip": "office"}}},
)
WHOLE = Placement(
    node_pool="gpu",
    datacenters=["dc1", "eu-*"],
    node_class="fast",
    node_meta={"rack": "r1"},
    constraints=[Constraint("${attr.cpu.arch}", "regexp", "amd64|arm64")],
    affinities=Affinity("${meta.disk}", "=", "nvme", weight=-20),
    spreads=[Spread("${node.datacenter}", {"dc1": 70, "dc2": 30}, weight=60), Spread("${meta.rack}")],
    priority=70,
    meta={"team": "ml"},
)


def _job(settings: RenderSettings = SETTINGS, **options: Any) -> dict[str, Any]:
    made = function_options(**options)
    fields = {
        name: getattr(made, name) for name in ("region", "cloud", "nonpreemptible", "scheduler", "nomad")
    }
    spec = FunctionSpec("a", "f", proxy=made.proxy.name or "" if made.proxy else "", **fields)
    # As it comes out of the store, or of another process.
    return render_function(FunctionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))), settings)


def _rules(job: dict[str, Any], kind: str = "Constraints") -> list[tuple[str, ...]]:
    return [tuple(map(str, rule.values())) for rule in job.get(kind, ())]


def test_a_placement_is_rendered_in_nomads_words() -> None:
    job = _job(nomad=WHOLE)
    assert (job["NodePool"], job["Datacenters"], job["Priority"]) == ("gpu", ["dc1", "eu-*"], 70)
    assert _rules(job) == [
        ("${node.class}", "=", "fast"),
        ("${meta.rack}", "=", "r1"),
        ("${attr.cpu.arch}", "regexp", "amd64|arm64"),
    ]
    assert _rules(job, "Affinities") == [("${meta.disk}", "=", "nvme", "-20")]
    assert job["Spreads"] == [
        {
            "Attribute": "${node.datacenter}",
            "Weight": 60,
            "SpreadTarget": [{"Value": "dc1", "Percent": 70}, {"Value": "dc2", "Percent": 30}],
        },
        {"Attribute": "${meta.rack}", "Weight": 50, "SpreadTarget": []},
    ]
    assert job["Meta"]["team"] == "ml" and job["Meta"]["modal_app"] == "a"


def test_without_one_the_cluster_decides() -> None:
    job = _job()
    assert (job["NodePool"], job["Datacenters"], job["Priority"]) == ("default", ["*"], 50)
    assert not {"Affinities", "Spreads"} & set(job) and job["Constraints"] == []


def test_what_is_not_to_be_preempted_stays_above_the_others() -> None:
    assert _job(nomad=Placement(priority=20), nonpreemptible=True)["Priority"] == 91
    assert _job(nomad=Placement(priority=95), nonpreemptible=True)["Priority"] == 95


def test_a_placement_is_frozen_and_compares_by_its_contents() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WHOLE.priority = 3  # type: ignore[misc]
    assert Placement(datacenters="dc1") == Placement(datacenters=["dc1"]) != WHOLE


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Placement, {"node_pool": "a b"}, "node_pool of a Placement is 'a b'"),
        (Placement, {"node_class": 3}, "node_class of a Placement is 3"),
        (Placement, {"node_meta": {"rack": 1}}, "node_meta of a Placement"),
        (Placement, {"priority": 101}, "priority of a Placement is 101; give a whole number from 1 to 100"),
        (Placement, {"datacenters": [""]}, "datacenters of a Placement"),
        (Placement, {"constraints": ["x = y"]}, "constraints of a Placement is .* a list of Constraint"),
        (Placement, {"affinities": 3}, "affinities of a Placement is 3"),
        (Placement, {"meta": {"modal_app": "x"}}, "names beginning with 'modal_' are taken"),
        (Constraint, {"attribute": "", "value": "x"}, "attribute of a Constraint is ''"),
        (
            Constraint,
            {"attribute": "${meta.a}", "operator": "~", "value": "x"},
            "operator of a Constraint is '~'",
        ),
        (Constraint, {"attribute": "${meta.a}"}, "needs a value"),
        (Constraint, {"attribute": "${meta.a}", "value": 3}, r"str\(3\)"),
        (Constraint, {"attribute": "${meta.a}", "operator": "is_set", "value": "x"}, "takes no value"),
        (Constraint, {"attribute": "${meta.a}", "operator": "regexp", "value": "("}, "no regular expression"),
        (Constraint, {"attribute": "kernel.name", "value": "linux"}, r"as '\$\{kernel.name\}'"),
        (Constraint, {"attribute": "", "operator": "distinct_hosts", "value": "x"}, "leave it out"),
        (
            Constraint,
            {"attribute": "${meta.a}", "operator": "distinct_property", "value": "x"},
            "how many may share one",
        ),
        (Constraint, {"attribute": "${attr.a}", "operator": "version", "value": "new"}, "give versions"),
        (Constraint, {"attribute": "${attr.a}", "operator": "semver", "value": "~> 1.2"}, "give versions"),
        (Constraint, {"attribute": "${attr.a}", "operator": "semver", "value": "1.x"}, "give versions"),
        (Constraint, {"attribute": "${attr.a}", "operator": "regexp", "value": "(?=x)"}, "RE2"),
        (
            Affinity,
            {"attribute": "${meta.a}", "operator": "is_set"},
            "operator of an Affinity is 'is_set'",
        ),
        (Affinity, {"attribute": "${meta.a}", "value": "x", "weight": 101}, "weight of an Affinity is 101"),
        (Affinity, {"attribute": "${meta.a}", "value": "x", "weight": 0}, "would say nothing"),
        (
            Affinity,
            {"attribute": "", "operator": "distinct_hosts"},
            "operator of an Affinity is 'distinct_hosts'",
        ),
        (Spread, {"attribute": "${meta.a}", "targets": {"x": 60, "y": 50}}, "add up to 110"),
        (Spread, {"attribute": "${meta.a}", "targets": {"x": 1.5}}, "targets of a Spread"),
        (Spread, {"attribute": "${meta.a}", "weight": 0}, "weight of a Spread is 0"),
        (SchedulerPlacement, {"spot": "no"}, "spot is 'no'"),
        (SchedulerPlacement, {"zone": ""}, "zone is ''"),
        (SchedulerPlacement, {"instance_type": ["a,b"]}, "instance_type is"),
        (SchedulerPlacement, {"region": 3}, "region is 3"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written(
    kind: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        kind(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nomad": {"node_pool": "gpu"}}, "nomad is"),
        ({"_experimental_scheduler_placement": "eu"}, "_experimental_scheduler_placement is 'eu'"),
        (
            {"_experimental_scheduler_placement": SchedulerPlacement("eu"), "region": "us"},
            "cannot be given together",
        ),
        ({"proxy": "office"}, "proxy is 'office'"),
    ],
)
def test_parameters_take_their_own_kinds_alone(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        function_options(**given)


def test_a_scheduler_placement_is_of_the_nodes_meta() -> None:
    job = _job(
        _experimental_scheduler_placement=SchedulerPlacement(
            region=["eu", "us"], zone="eu-1a", spot=True, instance_type=["m5.large", "m5.xlarge"]
        )
    )
    assert job["Datacenters"] == ["eu", "us"]
    assert _rules(job) == [
        ("${meta.preemptible}", "=", "true"),
        ("${meta.zone}", "=", "eu-1a"),
        ("${meta.instance_type}", "set_contains_any", "m5.large,m5.xlarge"),
    ]
    steady = _job(_experimental_scheduler_placement=SchedulerPlacement(spot=False), nonpreemptible=True)
    assert _rules(steady) == [("${meta.preemptible}", "!=", "true")]
    assert function_options(_experimental_scheduler_placement=SchedulerPlacement()).scheduler is None


def test_a_proxy_is_the_nodes_that_have_its_address() -> None:
    job = _job(proxy=modal.Proxy.from_name("office"))
    assert job["NodePool"] == "egress" and _rules(job) == [("${meta.ip}", "=", "office")]
    with pytest.raises(ValueError, match=r"no proxy 'home' \(it has office\).*\[proxies\.home\]"):
        _job(proxy=modal.Proxy.from_name("home"))
    with pytest.raises(ValueError, match=r"node pool 'gpu'.* proxy 'office' is in 'egress'"):
        _job(proxy=modal.Proxy.from_name("office"), nomad=Placement(node_pool="gpu"))


def test_datacenters_are_named_once() -> None:
    with pytest.raises(ValueError, match="both as region= and in its nomad= placement"):
        _job(region="eu", nomad=Placement(datacenters="dc1"))


def test_what_contradicts_itself_is_an_invalid_error_to_who_deploys() -> None:
    app = modal.App("a")
    app.function(serialized=True, region="eu", nomad=Placement(datacenters="dc1"))(lambda: 1)
    with pytest.raises(InvalidError, match="leave one of them out"):
        prepare(app, SETTINGS.to_dict(), state="deployed", name="a", environment=None)


def test_a_publication_says_all_of_it() -> None:
    app = modal.App("a")
    where = SchedulerPlacement(zone="z")
    app.function(
        serialized=True,
        name="f",
        nomad=Placement(priority=7),
        proxy=modal.Proxy.from_name("office"),
        _experimental_scheduler_placement=where,
    )(lambda: 1)
    (entry,) = prepare(app, SETTINGS.to_dict(), state="deployed", name="a", environment=None).args[
        "functions"
    ]
    assert (entry["job"]["Priority"], entry["job"]["NodePool"]) == (7, "egress")
    assert _rules(entry["job"]) == [("${meta.zone}", "=", "z"), ("${meta.ip}", "=", "office")]
    assert FunctionSpec.from_dict(entry["spec"]).scheduler is not None


def test_a_variants_region_takes_the_place_of_its_parents() -> None:
    parent = function_options(_experimental_scheduler_placement=SchedulerPlacement("eu", zone="z"))
    fields = {**FunctionSpec("a", "f", region=parent.region, scheduler=parent.scheduler).to_dict()}
    job = render_function(FunctionSpec.from_dict({**fields, **overrides_from({"region": "us"})}), SETTINGS)
    assert job["Datacenters"] == ["us"] and _rules(job) == [("${meta.zone}", "=", "z")]


@pytest.mark.parametrize(
    ("proxies", "message"),
    [
        ({"office": "egress"}, r"write \[proxies\.office\]"),
        ({"office": {"pool": "x"}}, r"\[proxies\.office\] has no setting 'pool'"),
        ({"office": {"node_pool": 3}}, "node_pool is 3"),
        ({"office": {"node_meta": {"a": 1}}}, "give strings"),
        ({"office": {}}, "give node_pool, node_meta or both"),
    ],
)
def test_what_cannot_be_under_proxies(proxies: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(proxies=proxies)


def test_proxies_of_the_settings_reach_who_renders() -> None:
    proxies = {"office": {"node_pool": "egress"}}
    assert RenderSettings.from_dict(Settings(proxies=proxies).render_dict("f")).proxies == proxies
    assert Settings(proxies={"office": {}}, engine="local").render_dict("f")["proxies"] == {"office": {}}


@pytest.mark.parametrize(
    ("filtered", "words"),
    [
        ({"${meta.rack} = r1": 5}, "0 of 5 nodes have ${meta.rack} = r1"),
        ({"${meta.rack} = r1": 2, "computed class ineligible": 3}, "0 of 5 nodes have ${meta.rack} = r1"),
        (
            {"${meta.rack} = r1": 3, "${node.class} = fast": 2},
            "0 of 5 nodes will do: 3 lack ${meta.rack} = r1, 2 lack ${node.class} = fast",
        ),
        (
            {"${meta.rack} = r1": 2, "${meta.zone} = z": 1, "computed class ineligible": 2},
            "0 of 5 nodes will do: 2 lack ${meta.rack} = r1, 1 lack ${meta.zone} = z (zone=), "
            "2 are like one of these",
        ),
        (
            {"${meta.preemptible} != true": 5},
            "0 of 5 nodes have ${meta.preemptible} != true (nonpreemptible= or spot=)",
        ),
        ({"${meta.cloud} = aws": 4}, "4 nodes excluded by the constraint ${meta.cloud} = aws (cloud=)"),
    ],
)
def test_who_waits_for_a_place_is_told_what_no_node_has(filtered: dict[str, int], words: str) -> None:
    assert placement_words({"NodesEvaluated": 5, "ConstraintFiltered": filtered}) == words
