"""The look at a bucket before it is mounted: real signatures, checked by a server that checks them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import get_session

from modal_nomad.worker._bucket_look import Credentials, Unusable, assume, look
from tests._s3 import s3_server


async def _user(address: str) -> Credentials:
    """Make a user that may do everything, in three requests."""
    ours = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    async with get_session().create_client("iam", endpoint_url=address, **ours) as iam:
        await iam.create_user(UserName="u")
        await iam.put_user_policy(UserName="u", PolicyName="all", PolicyDocument=json.dumps(allow))
        key = (await iam.create_access_key(UserName="u"))["AccessKey"]
    return Credentials(key["AccessKeyId"], key["SecretAccessKey"])


async def test_signatures_are_those_that_a_server_checks(tmp_path: Path) -> None:
    # What the making of the bucket and the user takes is not checked.
    with s3_server(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="4") as server:
        server.bucket("bucket")
        right = await _user(server.address)
        asked = ("bucket", server.address, "some prefix/ü&=+/", "eu-central-1")
        assert look(*asked, right, False) == "eu-central-1"
        assert look(*asked, right, True) == "eu-central-1"
        with pytest.raises(Unusable, match="does not belong to the access key: correct that"):
            look(*asked, right._replace(secret="wrong"), False)
        with pytest.raises(Unusable, match="does not know the access key"):
            look(*asked, right._replace(key_id="AKIAWRONG"), False)
        with pytest.raises(Unusable, match="there is no such bucket at http:"):
            look("absent", *asked[1:], right, False)


class _Answers(BaseHTTPRequestHandler):
    answers: list[tuple[int, str, dict[str, str]]]
    seen: list[tuple[str, Any]]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.path, self.headers))
        status, body, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = _answer

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def answering(*answers: tuple[int, str, dict[str, str]]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Yield the address of a server that gives these answers, and what it is asked."""
    handler = type("Handler", (_Answers,), {"answers": list(answers), "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", handler.seen
        finally:
            server.shutdown()
            thread.join()


def _error(code: str, more: str = "") -> str:
    return f"<Error><Code>{code}</Code><Message>told</Message>{more}</Error>"


@pytest.mark.parametrize(
    ("code", "keys", "words"),
    [
        ("AccessDenied", False, "it is not public: give the CloudBucketMount a secret"),
        ("AccessDenied", True, "allow them s3:ListBucket"),
        ("RequestTimeTooSkewed", True, "clock differs"),
        ("ExpiredToken", True, "have expired"),
        ("Odd", True, "refused it: see its own log \\(Odd: told\\)"),
    ],
)
def test_refusals_in_words(code: str, keys: bool, words: str) -> None:
    credentials = Credentials("key", "do-not-show", "token") if keys else Credentials()
    with answering((400, _error(code), {})) as (address, seen), pytest.raises(Unusable, match=words) as told:
        look("b", address, "", "us-east-1", credentials, True)
    assert "do-not-show" not in str(told.value)
    _, headers = seen[0]
    assert headers["x-amz-request-payer"] == "requester"
    assert ("authorization" in headers) == keys and (headers["x-amz-security-token"] == "token") == keys


def test_the_region_is_where_the_service_says_it_is() -> None:
    moved = (400, _error("AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>"), {})
    with answering(moved, (200, "", {})) as (address, seen):
        assert look("b", address, "", "us-east-1", Credentials("k", "s"), False) == "eu-west-3"
    assert "/eu-west-3/s3/aws4_request" in seen[1][1]["authorization"]


def test_a_service_that_stumbles_is_asked_again_and_one_that_is_away_is_told() -> None:
    with answering((503, "", {}), (200, "", {})) as (address, seen):
        assert look("b", address, "", "auto", Credentials(), False) == "auto" and len(seen) == 2
    with pytest.raises(Unusable, match=f"{address} does not answer"):
        look("b", address, "", "auto", Credentials(), False)


def test_a_role_that_is_not_trusted_is_told() -> None:
    with (
        answering((403, _error("AccessDenied"), {})) as (address, _),
        pytest.raises(Unusable, match="does not let this allocation take on arn:x: see the role's trust"),
    ):
        assume("arn:x", "jwt", "ta-1", address)
