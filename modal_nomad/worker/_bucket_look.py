"""A look at a bucket before it is mounted: the tools that mount say little of why they cannot.

One signed request lists at most one key. What it ends in is told in words.
"""

import base64
import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING, Dict, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import quote, unquote, urlencode, urlsplit

if TYPE_CHECKING:
    from http.client import HTTPConnection

_SECONDS = 15.0
_ATTEMPTS = 4
_EMPTY = hashlib.sha256(b"").hexdigest()
_WORDS = {
    "NoSuchBucket": "there is no such bucket at {where}: create it, or correct bucket_name",
    "InvalidBucketName": "no bucket can be called so: correct bucket_name",
    "InvalidAccessKeyId": "{where} does not know the access key of its Secret: correct that",
    "SignatureDoesNotMatch": "the secret key of its Secret does not belong to the access key: correct that",
    "ExpiredToken": "the credentials of its Secret have expired: renew them",
    "InvalidToken": "{where} does not take the session token of its Secret: renew it",
    "RequestTimeTooSkewed": "this node's clock differs too much from that of {where}: set it, by NTP say",
    "InvalidIdentityToken": "{where} does not trust Nomad's identities: make Nomad an OIDC provider there",
}
_DENIED = {
    True: "its credentials may not list it: allow them s3:ListBucket",
    False: "it is not public: give the CloudBucketMount a secret",
}


class Credentials(NamedTuple):
    """What requests are signed with; all empty for none."""

    key_id: str = ""
    secret: str = ""
    token: str = ""


class Unusable(Exception):
    """The bucket cannot be used; the text says why and what is to be done."""


def aws_url(service: str, region: str) -> str:
    """Return where a service of AWS is in a region."""
    return f"https://{service}.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def look(
    bucket: str, endpoint: str, prefix: str, region: str, credentials: Credentials, requester_pays: bool
) -> str:
    """Check that a bucket can be listed, and return its region.

    Raises:
        Unusable: naming the remedy.
    """
    where = endpoint or "AWS"
    for _ in range(2):
        url = endpoint.rstrip("/") or aws_url("s3", region)
        query = urlencode(
            sorted({"list-type": "2", "max-keys": "1", "prefix": prefix}.items()), quote_via=quote
        )
        path = f"{urlsplit(url).path}/{quote(bucket)}"
        headers = {"host": urlsplit(url).netloc}
        if requester_pays:
            headers["x-amz-request-payer"] = "requester"
        if credentials.key_id:
            _sign(headers, path, query, region, credentials)
        status, answer, text = _get(url, f"{path}?{query}", headers, where)
        other = answer.get("x-amz-bucket-region") or _element(text, "Region")
        if status in (301, 307, 400) and other and other != region:
            # AWS says where the bucket is to whoever asks elsewhere.
            region = other
            continue
        break
    if status == 200:
        return region
    code = _element(text, "Code") or str(status)
    words = _WORDS.get(code)
    if code == "AccessDenied" or (words is None and status == 403):
        words = _DENIED[bool(credentials.key_id)]
    if words is None:
        words = "{where} refused it: see its own log"
    said = _element(text, "Message")
    raise Unusable(f"{words.format(where=where)} ({code}{': ' if said else ''}{said})")


def assume(role: str, token: str, session: str, url: str) -> Credentials:
    """Take on a role with an identity's token, at the service of this URL. Raises Unusable."""
    url = url.rstrip("/")
    asked = {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": "2011-06-15",
        "RoleArn": role,
        "RoleSessionName": session[-64:],
        "WebIdentityToken": token,
    }
    headers = {"host": urlsplit(url).netloc, "content-type": "application/x-www-form-urlencoded"}
    status, _, text = _get(url, f"{urlsplit(url).path}/", headers, url, urlencode(asked).encode())
    if status != 200:
        code, said = _element(text, "Code") or str(status), _element(text, "Message")
        words = _WORDS.get(code, "{where} does not let this allocation take on {role}: see the role's trust")
        raise Unusable(f"{words.format(where=url, role=role)} ({code}{': ' if said else ''}{said})")
    return Credentials(
        _element(text, "AccessKeyId"), _element(text, "SecretAccessKey"), _element(text, "SessionToken")
    )


def _get(
    url: str, target: str, headers: Mapping[str, str], where: str, body: Optional[bytes] = None
) -> Tuple[int, Dict[str, str], str]:
    from http.client import HTTPException

    failure: Exception = OSError("no answer")
    for attempt in range(_ATTEMPTS):
        time.sleep((0, 0.2, 1, 3)[attempt])
        connection, before = _connection(url)
        try:
            connection.request("POST" if body is not None else "GET", before + target, body, dict(headers))
            answer = connection.getresponse()
            text = answer.read(1 << 20).decode("utf-8", "replace")
            if answer.status < 500:
                return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text
            failure = OSError(f"status {answer.status}")
        except (OSError, HTTPException) as error:
            failure = error
        finally:
            connection.close()
    raise Unusable(
        f"{where} does not answer ({failure}): see whether this node reaches it, or correct"
        " bucket_endpoint_url"
    )


def _connection(url: str) -> Tuple["HTTPConnection", str]:
    """Return a connection to a service, and what stands before the path of its requests.

    It goes by the proxies that the variables name, as the tools that mount do.
    """
    from http.client import HTTPConnection, HTTPSConnection
    from urllib.request import getproxies_environment, proxy_bypass

    from ..wire.tls import client_context

    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = urlsplit(getproxies_environment().get(parts.scheme, ""))
    near = host == "localhost" or host.startswith("127.") or host == "::1"
    if not proxy.hostname or near or proxy_bypass(host):
        if parts.scheme == "https":
            return HTTPSConnection(parts.netloc, timeout=_SECONDS, context=client_context()), ""
        return HTTPConnection(parts.netloc, timeout=_SECONDS), ""
    at = (proxy.hostname, proxy.port or 80)
    if parts.scheme == "https":
        secure = HTTPSConnection(*at, timeout=_SECONDS, context=client_context())
        secure.set_tunnel(host, parts.port or 443, _to_proxy(proxy.username, proxy.password))
        return secure, ""
    plain = HTTPConnection(*at, timeout=_SECONDS)
    return plain, f"http://{parts.netloc}"


def _to_proxy(user: Optional[str], password: Optional[str]) -> Dict[str, str]:
    if user is None:
        return {}
    known = base64.b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()
    return {"Proxy-Authorization": f"Basic {known}"}


def _sign(headers: Dict[str, str], path: str, query: str, region: str, credentials: Credentials) -> None:
    """Add the headers of AWS's signature, version 4, to a request without a body."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers.update({"x-amz-date": moment, "x-amz-content-sha256": _EMPTY})
    if credentials.token:
        headers["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    request = hashlib.sha256(f"GET\n{path}\n{query}\n{lines}\n{names}\n{_EMPTY}".encode()).hexdigest()
    key = f"AWS4{credentials.secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{request}".encode(), hashlib.sha256)
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope}, SignedHeaders={names}, "
        f"Signature={signature.hexdigest()}"
    )


def _element(text: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", text)
    return found.group(1) if found else ""
