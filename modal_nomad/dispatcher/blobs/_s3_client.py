"""How a bucket is reached, and what its refusals mean in words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from modal_nomad.dispatcher.blobs.base import BlobStoreError
from modal_nomad.dispatcher.blobs.s3_settings import S3Settings

try:
    import aiobotocore.session
    from aiobotocore.config import AioConfig
    from botocore import exceptions as boto
except ImportError:
    raise BlobStoreError(
        "[s3] needs aiobotocore, which is not installed beside the dispatcher: pip install 'modal-nomad[s3]'"
    ) from None

FAILURES = (boto.ClientError, boto.BotoCoreError, aiohttp.ClientError, OSError, asyncio.TimeoutError)
"""Whatever a request to a service may end in."""

_ABSENT = frozenset({"404", "NoSuchKey", "NoSuchUpload", "NotFound"})
_DENIED = (
    "the credentials may not do that in bucket {bucket!r}: allow them to get, put, list and delete its"
    " objects"
)
_WORDS: Mapping[str, str] = {
    "NoSuchBucket": "there is no bucket {bucket!r} at {where}: create it, or correct [s3] bucket",
    "InvalidBucketName": "{bucket!r} can be no bucket's name: correct [s3] bucket",
    "InvalidAccessKeyId": "{where} does not know the access key: correct [s3] access_key_id, or"
    " AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: correct [s3]"
    " secret_access_key, or AWS_SECRET_ACCESS_KEY",
    "AccessDenied": _DENIED,
    # What an answer without a body says of itself.
    "403": _DENIED,
    "RequestTimeTooSkewed": "this machine's clock differs too much from that of {where}: set it, by NTP say",
    "RequestExpired": "this machine's clock differs too much from that of {where}: set it, by NTP say",
    "ExpiredToken": "the credentials have expired: give the dispatcher new ones",
    "PermanentRedirect": "bucket {bucket!r} is in another region: correct [s3] region",
    "AuthorizationHeaderMalformed": "bucket {bucket!r} is in another region: correct [s3] region",
    "SlowDown": "{where} asks for fewer requests: try again in a while",
}


@contextlib.asynccontextmanager
async def open_client(settings: S3Settings) -> AsyncIterator[Any]:
    """Give an S3 client of aiobotocore. Raises BlobStoreError for settings that cannot be used."""
    session = aiobotocore.session.get_session()
    config = AioConfig(
        signature_version="s3v4",
        # Each body is part of its request's signature: what is damaged on its way is refused.
        s3={"payload_signing_enabled": True, "addressing_style": "path" if settings.path_style else "auto"},
        # Checksums of a newer kind are refused by many services that are no AWS.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 4},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=64,
    )
    async with contextlib.AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(
                session.create_client(
                    "s3",
                    region_name=settings.region or session.get_config_variable("region") or "us-east-1",
                    endpoint_url=settings.endpoint or None,
                    aws_access_key_id=settings.access_key_id or None,
                    aws_secret_access_key=settings.secret_access_key or None,
                    verify=settings.ca_file or None,
                    config=config,
                )
            )
        except (*FAILURES, ValueError) as error:
            raise BlobStoreError(f"[s3] cannot be used: {error}") from error
        yield client


def is_absent(error: BaseException) -> bool:
    """Tell whether an answer means that there is no such object."""
    return isinstance(error, boto.ClientError) and error.response.get("Error", {}).get("Code") in _ABSENT


def refusal(error: BaseException, settings: S3Settings) -> str:
    """Return one line that says what went wrong with the bucket and what is to be done."""
    place = {"bucket": settings.bucket, "where": settings.where}
    if isinstance(error, boto.ClientError):
        told = error.response.get("Error", {})
        code = str(told.get("Code", ""))
        text = _WORDS.get(code, "{where} refused a request about bucket {bucket!r}: see its own log")
        said = told.get("Message") or ""
        return f"{text.format(**place)} ({code}{': ' if said else ''}{said})"
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return (
            "there are no credentials for the bucket: give [s3] access_key_id and secret_access_key, or"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, boto.SSLError):
        return f"{settings.where} is not trusted: give its certificate's authority as [s3] ca_file ({error})"
    return "{where} does not answer: see whether it runs, or correct [s3] endpoint ({error})".format(
        **place, error=" ".join(str(error).split()) or type(error).__name__
    )
