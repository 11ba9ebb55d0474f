"""Real S3 clients for a running gateway, as their users configure them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.gateways import ALPHA, Credential, RunningGateway


def s3_client(gateway: RunningGateway, credential: Credential = ALPHA, **options: Any) -> Any:
    """boto3 that tries once, with default settings otherwise, save what `options` say in botocore's Config."""
    return boto3.client(
        "s3",
        endpoint_url=gateway.url,
        region_name="us-east-1",
        aws_access_key_id=credential.access_key,
        aws_secret_access_key=credential.secret_key,
        config=Config(**{"retries": {"total_max_attempts": 1}, **options}),
    )


def refused(call: Callable[..., Any], **arguments: Any) -> tuple[str, int]:
    """The code and status of the error that a call gives."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]
