"""Shards in S3-compatible storage: boto3 signs requests; the rest is plain HTTP.

boto3 finds credentials, region and endpoint as it always does (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, an
instance's role, ...). Each request gets a URL of its own, signed for a few minutes, that is used and never shown.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from leoclr.datasets.errors import DataError
from leoclr.datasets.storage.addresses import shown
from leoclr.datasets.storage.http import HttpStorage
from leoclr.datasets.storage.retries import Patience

_SIGNED_SECONDS = 900
_ACCESS_HINT = "renew the AWS credentials, or ask for s3:GetObject on this bucket"


def open_s3(address: str, identity: str = "", patience: Patience | None = None) -> HttpStorage:
    """The storage behind `s3://BUCKET/KEY`. Nothing is asked for yet.

    Raises:
        DataError: boto3 is not installed.
    """
    bucket, _, key = address.partition("://")[2].partition("/")
    _require_boto3(address)
    return HttpStorage(address, identity, patience, lambda: _signed(address, bucket, key), _ACCESS_HINT)


def _signed(address: str, bucket: str, key: str) -> str:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        url = _client(os.getpid()).generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_SIGNED_SECONDS
        )
    except (BotoCoreError, ClientError, ValueError) as error:
        raise DataError(f"{shown(address)}: {_reason(error)}") from None
    return str(url)


@functools.cache
def _client(process: int) -> Any:
    """One client for a process; a forked one makes its own."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client("s3", config=Config(signature_version="s3v4"))


def _require_boto3(address: str) -> None:
    try:
        import boto3  # noqa: F401
    except ImportError:
        raise DataError(f"{shown(address)}: s3:// needs boto3; pip install 'leoclr-cli[s3]'") from None


def _reason(error: Exception) -> str:
    """boto3's errors by name, not by text, which may quote what it was given."""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return "no AWS credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID (public data needs https:// only)"
    if name == "NoRegionError":
        return "no AWS region is set; set AWS_REGION"
    return f"boto3 cannot sign a request ({name})"
