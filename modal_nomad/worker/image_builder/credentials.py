"""What a registry is told: a Secret's own user and password, or what a cloud gives for its keys."""

import base64
import datetime
import hashlib
import hmac
import json
import os
from typing import Dict, Mapping, Tuple

from modal_nomad.exception import ImageBuildError

_TARGET = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"


def credentials(cloud: str, values: Mapping[str, str]) -> Tuple[str, str]:
    """Return user and password for a registry.

    Args:
        cloud: ``gcp``, ``aws``, or empty for a registry of any other kind.
        values: the variables of the Secret.

    Raises:
        ImageBuildError: the Secret lacks one, or the cloud gives nothing for them.
    """
    if cloud == "gcp":
        return "_json_key", _needed(values, "SERVICE_ACCOUNT_JSON")
    if cloud == "aws":
        return _ecr(values)
    return _needed(values, "REGISTRY_USERNAME"), _needed(values, "REGISTRY_PASSWORD")


def _needed(values: Mapping[str, str], name: str) -> str:
    if not values.get(name):
        raise ImageBuildError(
            f"the Secret has no {name}: add it with `modal-nomad secret create ... --force`"
        )
    return values[name]


def _ecr(values: Mapping[str, str]) -> Tuple[str, str]:
    """Ask AWS for a password, which is good for some hours."""
    from urllib.error import HTTPError
    from urllib.parse import urlsplit
    from urllib.request import Request, urlopen

    key_id, secret = _needed(values, "AWS_ACCESS_KEY_ID"), _needed(values, "AWS_SECRET_ACCESS_KEY")
    region = _needed(values, "AWS_REGION")
    url = values.get("AWS_ENDPOINT_URL_ECR") or os.environ.get("AWS_ENDPOINT_URL_ECR")
    url = url or f"https://api.ecr.{region}.amazonaws.com"
    body = b"{}"
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": urlsplit(url).netloc,
        "x-amz-date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ"),
        "x-amz-target": _TARGET,
    }
    if values.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = values["AWS_SESSION_TOKEN"]
    headers["authorization"] = _signature(headers, body, key_id, secret, region)
    try:
        with urlopen(Request(f"{url}/", body, headers, method="POST"), timeout=60) as answer:
            found = json.load(answer)["authorizationData"][0]["authorizationToken"]
    except HTTPError as error:
        said = error.read().decode("utf-8", "replace")[:500]
        raise ImageBuildError(f"AWS gives no credentials for its registry: {error.code} {said}") from None
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ImageBuildError(f"AWS cannot be asked for credentials at {url}: {error!r}") from None
    user, _, password = base64.b64decode(found).decode().partition(":")
    return user, password


def _signature(headers: Dict[str, str], body: bytes, key_id: str, secret: str, region: str) -> str:
    day, names = headers["x-amz-date"][:8], ";".join(sorted(headers))
    canonical = "\n".join(
        [
            "POST",
            "/",
            "",
            *(f"{name}:{headers[name]}" for name in sorted(headers)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        ]
    )
    scope = f"{day}/{region}/ecr/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, digest])
    key = f"AWS4{secret}".encode()
    for part in (day, region, "ecr", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return f"AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
