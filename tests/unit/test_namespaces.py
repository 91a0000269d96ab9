"""Which Nomad namespace each environment is."""

from __future__ import annotations

from typing import Any

import pytest

from modal_nomad.dispatcher._namespaces import EnvironmentNamespaces
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.exception import AuthError, InvalidError
from modal_nomad.render import RenderSettings


def of(**settings: Any) -> EnvironmentNamespaces:
    render = RenderSettings.from_dict(Settings(**settings).render_dict("sha"))
    return EnvironmentNamespaces(None, render)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"main": "default", "dev": "dev"}),
        ({"render": {"namespace": "modal"}}, {"main": "modal", "dev": "dev", "default": "default"}),
        ({"namespaces": {"prod": "batch"}}, {"main": "default", "prod": "batch", "dev": "dev"}),
        ({"namespaces": {"*": "all", "a_b": "a-b"}}, {"main": "default", "a_b": "a-b", "x_y": "all"}),
        ({"engine": "local"}, {"main": "default", "a_b": "default"}),
    ],
)
def test_names(settings: dict[str, Any], expected: dict[str, str]) -> None:
    namespaces = of(**settings)
    assert {name: namespaces.of(name) for name in expected} == expected
    render = RenderSettings.from_dict(Settings(**settings).render_dict("sha"))
    for name, namespace in expected.items():
        assert (render.placed(name).namespace, render.placed(name).environment) == (namespace, name)


@pytest.mark.parametrize("name", ["a_b", "a.b"])
def test_what_cannot_be_a_namespace(name: str) -> None:
    with pytest.raises(InvalidError, match=r"letters, digits and '-'.*\[namespaces\]"):
        of().of(name)


def test_no_two_environments_meet_in_a_namespace_by_chance() -> None:
    for settings, name in (({}, "default"), ({"namespaces": {"prod": "batch"}}, "batch")):
        with pytest.raises(InvalidError, match="that another one has"):
            of(**settings).of(name)


@pytest.mark.parametrize(
    ("settings", "visible", "allowed"),
    [
        ({}, None, ()),
        ({}, {"default"}, ("main",)),
        ({}, {"default", "dev"}, ("dev", "main")),
        ({"namespaces": {"prod": "batch"}}, {"batch", "dev"}, ("dev", "prod")),
        ({"namespaces": {"*": "default"}}, {"dev"}, ()),
    ],
)
def test_what_a_nomad_token_may_touch(
    settings: dict[str, Any], visible: set[str] | None, allowed: tuple[str, ...]
) -> None:
    assert of(**settings).environments(visible) == allowed


def test_a_token_without_rights_is_for_nothing() -> None:
    with pytest.raises(AuthError, match="no right in any"):
        of().environments(set())


def test_a_namespace_that_cannot_be_is_told_at_start() -> None:
    for value in ("a_b", 1):
        with pytest.raises(SettingsError, match=r"\[namespaces\]: prod"):
            Settings(namespaces={"prod": value})
