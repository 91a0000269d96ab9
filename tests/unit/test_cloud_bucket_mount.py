"""``CloudBucketMount`` as it is declared, and as it stands in a specification and a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad._volume_mounts import check_volumes
from modal_nomad.exception import ExecutionError, InvalidError
from modal_nomad.render import RenderSettings, render_function
from modal_nomad.wire.mounts import BucketMount, SecretRef
from modal_nomad.wire.secret_values import merge
from modal_nomad.wire.spec import FunctionSpec
from modal_nomad.worker import _bucket_tools as tools
from modal_nomad.worker._bucket_look import Credentials
from modal_nomad.worker._buckets import Buckets

R2 = "https://account.r2.cloudflarestorage.com"
GCS = "https://storage.googleapis.com"


def test_what_is_given_stands_there() -> None:
    secret = modal.Secret.from_name("aws")
    mount = modal.CloudBucketMount("b", R2, "p/", secret, read_only=True, requester_pays=True)
    assert (mount.bucket_name, mount.bucket_endpoint_url, mount.key_prefix) == ("b", R2, "p/")
    assert (mount.secret, mount.oidc_auth_role_arn) == (secret, None)
    assert mount.read_only and mount.requester_pays
    # The same one may be shown twice.
    assert len(check_volumes({"/a": mount, "/b": mount})) == 2


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"key_prefix": "a"}, ValueError, "must end in a '/'"),
        ({"requester_pays": True}, ValueError, "give a secret"),
        ({"key_prefix": "/a/"}, InvalidError, "no key begins so"),
        ({"key_prefix": "../"}, InvalidError, "no directory can be called"),
        ({"key_prefix": "a/../../other/"}, InvalidError, "no directory can be called"),
        ({"key_prefix": "a//"}, InvalidError, "no directory can be called"),
        ({"bucket_name": ".."}, InvalidError, "give the name of a bucket"),
        ({"bucket_name": ""}, InvalidError, "give the name of a bucket"),
        ({"bucket_name": "b/c"}, InvalidError, "without a path"),
        ({"bucket_endpoint_url": "storage"}, InvalidError, "give a URL"),
        ({"bucket_endpoint_url": "https://u:p@host"}, InvalidError, "give a URL"),
        ({"secret": "aws"}, InvalidError, "give a modal.Secret"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        modal.CloudBucketMount(**{"bucket_name": "b", **given})


def test_a_secret_and_a_role_exclude_each_other() -> None:
    with pytest.raises(InvalidError, match="not both"):
        modal.CloudBucketMount("b", secret=modal.Secret.from_name("s"), oidc_auth_role_arn="arn:x")


@pytest.mark.parametrize("path", ["/", "/tmp", "relative"])
def test_paths_are_those_of_volumes(path: str) -> None:
    with pytest.raises(InvalidError):
        check_volumes({path: modal.CloudBucketMount("b")})


def _spec(*mounts: BucketMount) -> FunctionSpec:
    return FunctionSpec("a", "f", secrets=(SecretRef("own"),), buckets=mounts)


def test_its_secret_is_asked_for_beside_the_functions_own() -> None:
    mount = modal.CloudBucketMount("b", secret=modal.Secret.from_name("aws"))
    spec = _spec(BucketMount("/x", "other"), mount._mount("/y", SecretRef("aws")))
    assert FunctionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    own, of_bucket = spec.secret_refs
    assert (own.name, own.prefix) == ("own", "")
    assert (of_bucket.name, of_bucket.prefix) == ("aws", "MODAL_BUCKET_1_")
    assert of_bucket.required == ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    google = modal.CloudBucketMount("b", GCS, secret=modal.Secret.from_name("g"))
    assert google._mount("/z", SecretRef("g")).secret == SecretRef("g")

    settings = RenderSettings(server_url="http://d", runtime_sha="0" * 64, vault_mount="secret")
    [task] = render_function(spec, settings)["TaskGroups"][0]["Tasks"]
    template = task["Templates"][0]["EmbeddedTmpl"]
    assert template.count('"prefix": "MODAL_BUCKET_1_"') == 1 and "/main/aws" in template
    values = {"AWS_ACCESS_KEY_ID": "x"}
    assert merge([{"values": values, "keys": {}, "prefix": "MODAL_BUCKET_1_"}], ()) == {
        "MODAL_BUCKET_1_AWS_ACCESS_KEY_ID": "x"
    }


def test_a_role_asks_for_an_identity() -> None:
    settings = RenderSettings(server_url="http://d", runtime_sha="0" * 64)

    def identities(*mounts: BucketMount) -> list[Any]:
        [task] = render_function(_spec(*mounts), settings)["TaskGroups"][0]["Tasks"]
        return [(x["Name"], x["Audience"], x["File"]) for x in task["Identities"]]

    ours = ("modal", ["modal-nomad"], True)
    assert identities(BucketMount("/x", "b")) == [ours]
    lent = ("buckets", ["sts.amazonaws.com"], True)
    assert identities(BucketMount("/x", "b", role_arn="arn:x")) == [ours, lent]


def test_credentials_are_taken_out_of_the_environment() -> None:
    environ = {
        "MODAL_BUCKET_0_AWS_ACCESS_KEY_ID": "k",
        "MODAL_BUCKET_0_AWS_REGION": "eu-west-1",
        "MODAL_BUCKET_1_X": "y",
        "NOMAD_SECRETS_DIR": "/s",
        "PATH": "/p",
    }
    buckets = Buckets([BucketMount("/a", "a"), BucketMount("/b", "b")], environ)
    assert environ == {"NOMAD_SECRETS_DIR": "/s", "PATH": "/p"}
    assert buckets._buckets[0].variables == {"AWS_ACCESS_KEY_ID": "k", "AWS_REGION": "eu-west-1"}
    one, other = buckets._buckets
    assert tools.region_of(*one) == "eu-west-1" and tools.region_of(*other) == "us-east-1"


@pytest.mark.parametrize(
    ("endpoint", "provider"),
    [("", "AWS"), ("https://s3.eu-west-1.amazonaws.com", "AWS"), (R2, "Cloudflare"), (GCS, "GCS")],
)
def test_the_services_host_decides_what_it_is(endpoint: str, provider: str) -> None:
    assert tools.provider(BucketMount("/a", "a", endpoint)) == provider


def test_no_command_line_holds_credentials() -> None:
    mount = BucketMount("/a", "b", "http://s3", "p/", "", SecretRef("s"), True, True)
    rclone, s3fs = tools.rclone("rclone", mount, "/a"), tools.s3fs("s3fs", mount, "/a", "auto")
    assert "bucket:b/p" in rclone and "--read-only" in rclone
    assert s3fs[1] == "b:/p" and "ro,requester_pays" in s3fs[-1] and "use_path_request_style" in s3fs[-1]


def test_a_machine_without_fuse_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> Any:
        def refusing(path: str, flags: int) -> int:
            raise OSError(number, "refused", path)

        return refusing

    monkeypatch.setattr(tools.shutil, "which", lambda name, path: f"/usr/bin/{name}")
    for number, words in ((2, "load the module fuse on the node"), (13, "let the task's user open it")):
        monkeypatch.setattr(tools.os, "open", refuse(number))
        with pytest.raises(ExecutionError, match=f"the bucket 'b' at /a: /dev/fuse cannot be used.*{words}"):
            tools.tool_for(BucketMount("/a", "b"), {})


def test_roles_are_taken_on_where_the_bucket_is() -> None:
    for endpoint, region, url in (
        ("", "eu-west-3", "https://sts.eu-west-3.amazonaws.com"),
        ("https://s3.eu-west-3.amazonaws.com", "eu-west-3", "https://sts.eu-west-3.amazonaws.com"),
        ("", "cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn"),
        ("https://minio.example", "us-east-1", "https://minio.example"),
    ):
        mount = BucketMount("/a", "b", endpoint, role_arn="arn:x")
        told = tools.rclone_variables(mount, Credentials(), region, "/s", "ta-1")
        assert tools.sts_url(mount, region) == told["RCLONE_CONFIG_BUCKET_STS_ENDPOINT"] == url
        assert ("AWS_STS_REGIONAL_ENDPOINTS" in told) == ("minio" not in endpoint)


def test_path_style_is_for_aws_too() -> None:
    mount = modal.CloudBucketMount("b.with.dots", force_path_style=True)._mount("/a", None)
    told = tools.rclone_variables(mount, Credentials(), "eu-west-3", "/s", "ta-1")
    assert told["RCLONE_CONFIG_BUCKET_PROVIDER"] == "Other"
    assert told["RCLONE_CONFIG_BUCKET_ENDPOINT"] == "https://s3.eu-west-3.amazonaws.com"
    assert "use_path_request_style" in tools.s3fs("s3fs", mount, "/a", "eu-west-3")[-1]


def test_whom_the_look_trusts_the_tools_trust(tmp_path: Path) -> None:
    both = {"MODAL_CA_BUNDLE": str(tmp_path / "own"), "SSL_CERT_FILE": str(tmp_path / "theirs")}
    for file in both.values():
        Path(file).write_text(Path(file).name)
    told = tools.base_variables(both, str(tmp_path))
    assert Path(told["SSL_CERT_FILE"]).read_text() == "theirs\nown\n"
    told = tools.base_variables({"MODAL_CA_BUNDLE": "/ca.pem", "https_proxy": "http://p", "X": "y"}, "/s")
    assert told["SSL_CERT_FILE"] == told["CURL_CA_BUNDLE"] == "/ca.pem"
    assert told["https_proxy"] == "http://p" and told["HOME"] == "/s" and "X" not in told


@pytest.mark.parametrize(("version", "named"), [("1.60.1-DEV", True), ("1.70.0", False), ("", False)])
def test_an_rclone_that_names_an_acl_names_one_that_aws_takes_everywhere(
    tmp_path: Path, version: str, named: bool
) -> None:
    tool = tmp_path / "rclone"
    tool.write_text(f"#!/bin/sh\n{f'echo rclone v{version}' if version else 'exit 1'}\n")
    tool.chmod(0o755)
    own, other = BucketMount("/a", "b"), BucketMount("/a", "b", endpoint=R2)
    assert tools.names_acl(str(tool), own, {}) is named
    assert not tools.names_acl(str(tool), BucketMount("/a", "b", read_only=True), {})
    assert not tools.names_acl("/usr/bin/s3fs", own, {})
    for mount, acl in ((own, "bucket-owner-full-control"), (other, None)):
        told = tools.rclone_variables(mount, Credentials(), "eu-west-3", "/s", "ta-1", named)
        assert told.get("RCLONE_CONFIG_BUCKET_ACL") == (acl if named else None)


def test_google_is_written_to_by_who_names_no_acl(tmp_path: Path) -> None:
    for name, words in (("rclone", "echo rclone v1.60.1"), ("s3fs", ""), ("fusermount3", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/bin:/usr/bin"}
    google = BucketMount("/a", "b", endpoint=GCS)
    try:
        assert tools.tool_for(google, environ) == str(tmp_path / "s3fs")
        assert tools.tool_for(BucketMount("/a", "b"), environ) == str(tmp_path / "rclone")
        read_only = BucketMount("/a", "b", endpoint=GCS, read_only=True)
        assert tools.tool_for(read_only, environ) == str(tmp_path / "rclone")
    except ExecutionError as error:
        # Where nothing can be mounted that is said before.
        assert "/dev/fuse" in str(error)
