"""Images that need a container runtime: what each step comes to."""

import pytest

from modal_nomad.app import App
from modal_nomad.exception import InvalidError
from modal_nomad.image import Image
from modal_nomad.runner import function_specs

ubuntu = Image.from_registry("ubuntu:22.04")


def test_a_registry_image_with_no_step_is_run_as_it_is() -> None:
    app = App("a", image=ubuntu.env({"A": "1"}).workdir("/w"))
    app.function(serialized=True, name="f")(lambda: 1)
    (spec,), _ = function_specs(app, "a")
    assert spec.image.needs_container and spec.image.python is None
    assert spec.container_image == spec.image.registry_tag == "ubuntu:22.04"


def test_a_python_environment_needs_no_container() -> None:
    image = Image.debian_slim().pip_install("a").env({"A": "1"})._resolve()[0]
    assert not image.needs_container and image.registry_tag == ""


def test_an_image_names_its_base() -> None:
    assert repr(ubuntu) == "Image.from_registry('ubuntu:22.04')"
    assert ubuntu == Image.from_registry("ubuntu:22.04") != Image.from_registry("ubuntu:24.04")
    assert ubuntu._definition != Image.from_registry("ubuntu:24.04")._definition


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Image.from_registry(""), InvalidError, "such as 'python:3.11-slim-bookworm'"),
        (lambda: Image.from_registry("--privileged"), InvalidError, "image of from_registry"),
        (lambda: Image.from_registry("a b"), InvalidError, "image of from_registry"),
        (lambda: Image.from_registry(3), InvalidError, "image of from_registry"),
        (lambda: Image.from_registry("a", secrets=[]), TypeError, "it takes one secret="),
        (lambda: Image.from_registry("a", platform="x"), TypeError, "no parameter 'platform'"),
    ],
)
def test_refused(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
