"""The parameters of app.function: old names, bounds, and what each refusal says."""

import dataclasses
import inspect
import warnings

import pytest

from modal_nomad._options import ALIASES, apply_aliases, check_object_name, function_options
from modal_nomad._other_options import NO_EFFECT
from modal_nomad.app import App
from modal_nomad.exception import DeprecationError, InvalidError
from modal_nomad.retries import Retries
from modal_nomad.wire.spec import RetrySpec


def test_defaults() -> None:
    options = function_options()
    assert (options.timeout, options.min_containers, options.max_containers) == (300.0, 0, None)
    assert options.include_source is True
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.timeout = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"cpu": 2}, "cpu", (2.0, None)),
        ({"cpu": (0.5, 4)}, "cpu", (0.5, 4.0)),
        ({"memory": 512}, "memory", (512, None)),
        ({"memory": (512, 1024)}, "memory", (512, 1024)),
        ({"retries": 4}, "retries", RetrySpec(4, 1.0, 1.0, 60.0)),
        ({"retries": Retries(max_retries=2)}, "retries", RetrySpec(2, 2.0, 1.0, 60.0)),
        ({"region": "eu"}, "region", ("eu",)),
        ({"region": ["eu", "us"]}, "region", ("eu", "us")),
        ({"cloud": "AWS"}, "cloud", "aws"),
        ({"cloud": "auto"}, "cloud", ""),
        ({"nonpreemptible": True}, "nonpreemptible", True),
        ({"env": {"A": "1", "B": None}}, "env", {"A": "1"}),
        ({"timeout": 5}, "timeout", 5.0),
        ({"timeout": None}, "timeout", 300.0),
        ({"scaledown_window": 2}, "scaledown_window", 2.0),
        ({"single_use_containers": True}, "single_use_containers", True),
        ({"include_source": False}, "include_source", False),
    ],
)
def test_taken(given, field, value) -> None:
    assert getattr(function_options(**given), field) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cpu": (4, 2)}, "limit 2 is lower than the request 4"),
        ({"cpu": 0}, "cpu is 0"),
        ({"cpu": "2"}, "cpu is '2'"),
        ({"cpu": (1, 2, 3)}, "pair"),
        ({"cpu": (None, 2)}, "request"),
        ({"memory": (512, 256)}, "lower than the request"),
        ({"memory": 1.5}, "whole number"),
        ({"memory": True}, "memory is True"),
        ({"ephemeral_disk": 0}, "ephemeral_disk is 0"),
        ({"retries": "x"}, "retries is 'x'"),
        ({"retries": 11}, "max_retries of Retries is 11"),
        ({"retries": -1}, "max_retries of Retries is -1"),
        ({"min_containers": 3, "max_containers": 2}, r"min_containers \(3\)"),
        ({"min_containers": 1.0}, "min_containers is 1.0"),
        ({"max_containers": 0}, "max_containers is 0"),
        ({"buffer_containers": -1}, "buffer_containers is -1"),
        ({"scaledown_window": 0}, "scaledown_window is 0"),
        ({"timeout": -1}, "timeout is -1"),
        ({"startup_timeout": "soon"}, "startup_timeout is 'soon'"),
        ({"image": "debian"}, "image is 'debian'"),
        ({"env": {"A": 1}}, r"str\(1\)"),
        ({"env": {"A=B": "1"}}, "A=B"),
        ({"env": ["A"]}, "dict of strings"),
        ({"name": "a b"}, "Invalid Function name"),
        ({"region": 3}, "region is 3"),
        ({"cpu": float("nan")}, "cpu is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"cloud": ""}, "cloud is ''"),
        ({"nonpreemptible": 1}, "nonpreemptible is 1"),
        ({"max_inputs": 2}, "max_inputs is 2"),
        ({"serialized": "yes"}, "serialized is 'yes'"),
        ({"include_source": 1}, "include_source is 1"),
    ],
)
def test_refused(given, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        function_options(**given)


@pytest.mark.parametrize(("old", "new"), ALIASES.items())
def test_aliases_warn_at_the_users_line(old: str, new: str) -> None:
    with pytest.warns(DeprecationError, match=new) as caught:
        assert apply_aliases("@app.function", {new: None}, {old: 3}) == {new: 3}
    assert caught[0].filename == __file__


def test_alias_and_new_name_together() -> None:
    with pytest.raises(InvalidError, match="both 'keep_warm'"):
        apply_aliases("@app.function", {"min_containers": 1}, {"keep_warm": 1})


def test_alias_of_none_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert apply_aliases("x", {"min_containers": None}, {"keep_warm": None}) == {"min_containers": None}


def test_unknown_parameter() -> None:
    with pytest.raises(TypeError, match="no parameter 'gpus'"):
        apply_aliases("@app.function", {}, {"gpus": 1})


def test_max_inputs_is_single_use() -> None:
    with pytest.warns(DeprecationError, match="single_use_containers") as caught:
        assert function_options(max_inputs=1).single_use_containers
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "given",
    [
        {"max_retries": True},
        {"max_retries": 1, "backoff_coefficient": 0.5},
        {"max_retries": 1, "backoff_coefficient": 11},
        {"max_retries": 1, "initial_delay": 61},
        {"max_retries": 1, "max_delay": 0.5},
        {"max_retries": 1, "max_delay": "x"},
    ],
)
def test_retries_bounds(given) -> None:
    with pytest.raises(InvalidError):
        Retries(**given)


def test_retries_needs_max_retries() -> None:
    with pytest.raises(TypeError):
        Retries()  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "x" * 64, "ap-short"])
def test_good_names(name: str) -> None:
    assert check_object_name("App", name) == name


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65, "ap-" + "a" * 22, "a/b", 3, None])
def test_bad_names(name) -> None:
    with pytest.raises(InvalidError, match="Invalid App name"):
        check_object_name("App", name)


# Every parameter of the reference's @app.function, older names and newer ones, with its default there.
REFERENCE = {
    "image": None,
    "schedule": None,
    "env": None,
    "secrets": (),
    "gpu": None,
    "serialized": False,
    "mounts": (),
    "network_file_systems": {},
    "volumes": {},
    "allow_cross_region_volumes": False,
    "cpu": None,
    "memory": None,
    "ephemeral_disk": None,
    "proxy": None,
    "retries": None,
    "min_containers": None,
    "keep_warm": None,
    "max_containers": None,
    "concurrency_limit": None,
    "buffer_containers": None,
    "_experimental_buffer_containers": None,
    "scaledown_window": None,
    "container_idle_timeout": None,
    "allow_concurrent_inputs": None,
    "timeout": 300,
    "startup_timeout": None,
    "name": None,
    "is_generator": None,
    "cloud": None,
    "region": None,
    "nonpreemptible": False,
    "enable_memory_snapshot": False,
    "block_network": False,
    "restrict_modal_access": False,
    "max_inputs": None,
    "single_use_containers": False,
    "include_source": None,
    "i6pn": None,
    "_experimental_scheduler_placement": None,
    "_experimental_proxy_ip": None,
    "_experimental_custom_scaling_factor": None,
    "routing_region": "us-east",
    "experimental_options": {"a": 1},
}


def _f(x: int) -> int:
    return x


def test_every_parameter_of_the_reference_is_taken() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function = App("a").function(**REFERENCE)(_f)
    assert function._options == App("a").function()(_f)._options


def test_the_decorator_and_its_checks_have_the_same_parameters() -> None:
    taken = inspect.signature(App.function).parameters
    checked = inspect.signature(function_options).parameters
    ours = {name: p.default for name, p in taken.items() if p.kind is p.KEYWORD_ONLY}
    assert ours == {name: p.default for name, p in checked.items()}
    unknown = set(REFERENCE) - set(ours) - set(ALIASES) - NO_EFFECT
    assert unknown == {"_experimental_custom_scaling_factor"}


@pytest.mark.parametrize("value", [-0.1, 1.1, "1", True])
def test_scaling_factor_bounds(value) -> None:
    with pytest.raises(InvalidError, match=r"from 0\.0 to 1\.0"):
        App("a").function(_experimental_custom_scaling_factor=value)
    App("a").function(_experimental_custom_scaling_factor=1.0)
