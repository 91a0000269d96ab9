"""Images of private registries, and built ones that are pushed to one: a real registry, with users."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator

import pytest
from _image_builds import Builds, build, building, tiny_image

import modal_nomad as modal
from tests._docker import Docker
from tests._registry import AWS_PASSWORD, GCP_KEY, PASSWORD, USER, registry

base = modal.Image.debian_slim("3.11")


class _Ecr(http.server.BaseHTTPRequestHandler):
    """What AWS answers to whoever signs."""

    def do_POST(self) -> None:
        known = "Credential=key-of-aws/" in self.headers["authorization"]
        token = base64.b64encode(f"AWS:{AWS_PASSWORD}".encode()).decode()
        body = json.dumps(
            {"authorizationData": [{"authorizationToken": token}]} if known else {"m": "unknown key"}
        )
        self.send_response(200 if known else 400)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture(scope="module")
def ecr() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Ecr)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def host(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def builds(docker: Docker, host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    folder = tmp_path_factory.mktemp("builds")
    (folder / "password").write_text(f"{PASSWORD}\n")
    settings = {
        "username": USER,
        "password_file": str(folder / "password"),
        "debian_slim": tiny_image(docker),
    }
    with building(docker, folder, repository=f"{host}/modal", **settings) as found:
        yield found


def test_what_is_built_is_pushed(builds: Builds, host: str) -> None:
    image = base.run_commands("echo pushed > /place")
    reference = build(image)
    assert reference.startswith(f"{host}/modal:")
    builds.asked()
    assert build(image) == reference and builds.asked() == []


def test_a_machine_that_lacks_a_layer_fetches_it(builds: Builds) -> None:
    image = base.run_commands("cat /proc/sys/kernel/random/uuid > /drawn")
    first = build(image)
    drawn = builds.cat(first, "/drawn")
    names = '{{join .RepoTags " "}} {{join .RepoDigests " "}}'
    found = builds.docker("image", "inspect", "--format", names, first).split()
    builds.docker("image", "rm", "--force", *found)
    more = build(image.run_commands("cat /drawn > /copied"))
    assert builds.cat(more, "/copied") == drawn


def private(builds: Builds, host: str, name: str) -> str:
    """Put an image into the registry and nowhere else."""
    tag = f"{host}/{name}:1"
    builds.docker("login", "--username", USER, "--password", PASSWORD, host)
    try:
        builds.docker("tag", tiny_image(builds.docker), tag)
        builds.docker("push", tag)
    finally:
        builds.docker("logout", host)
        builds.docker("image", "rm", tag)
    return tag


def test_a_private_image(builds: Builds, host: str) -> None:
    tag = private(builds, host, "mine")
    wrong = modal.Secret.from_dict({"REGISTRY_USERNAME": USER, "REGISTRY_PASSWORD": "wrong"})
    with pytest.raises(
        modal.exception.ImageBuildError,
        match=r"^the image .*/mine:1 cannot be fetched:(.|\n)*401 Unauthorized",
    ):
        build(modal.Image.from_registry(tag, secret=wrong))
    with pytest.raises(modal.exception.ImageBuildError, match="the Secret has no REGISTRY_PASSWORD"):
        half = modal.Secret.from_dict({"REGISTRY_USERNAME": USER})
        build(modal.Image.from_registry(tag, secret=half))
    right = modal.Secret.from_dict({"REGISTRY_USERNAME": USER, "REGISTRY_PASSWORD": PASSWORD})
    reference = build(modal.Image.from_registry(tag, secret=right).run_commands("echo mine > /whose"))
    assert builds.cat(reference, "/whose") == "mine"


def test_a_private_image_of_a_cloud(
    builds: Builds, host: str, ecr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    google = modal.Secret.from_dict({"SERVICE_ACCOUNT_JSON": GCP_KEY})
    tag = private(builds, host, "of-google")
    assert build(modal.Image.from_gcp_artifact_registry(tag, google)).startswith(f"{host}/modal:")
    keys = {"AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL_ECR": ecr}
    amazon = modal.Secret.from_dict({**keys, "AWS_ACCESS_KEY_ID": "key-of-aws"})
    tag = private(builds, host, "of-amazon")
    assert build(modal.Image.from_aws_ecr(tag, amazon)).startswith(f"{host}/modal:")
    stranger = modal.Secret.from_dict({**keys, "AWS_ACCESS_KEY_ID": "stranger"})
    with pytest.raises(
        modal.exception.ImageBuildError, match=r"of-amazon:1 .*\n.*AWS gives no .*unknown key"
    ):
        build(modal.Image.from_aws_ecr(tag, stranger).run_commands("true"))
