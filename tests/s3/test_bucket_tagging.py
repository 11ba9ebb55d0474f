"""The tags of a bucket as boto3 sees them, against a running gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.gateways import RunningGateway
from tests.s3.clients import refused, s3_client

BUCKET = "alpha-bucket"


def tagging(count: int) -> Any:
    return {"TagSet": [{"Key": f"key {number:02}", "Value": f"ü={number}"} for number in range(count)]}


def test_a_bucket_has_tags(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    client = s3_client(gateway)
    assert refused(client.get_bucket_tagging, Bucket=BUCKET) == ("NoSuchTagSet", 404)
    client.put_bucket_tagging(Bucket=BUCKET, Tagging=tagging(50))
    gateway.restart()
    client = s3_client(gateway)
    assert client.get_bucket_tagging(Bucket=BUCKET)["TagSet"] == tagging(50)["TagSet"]
    client.put_bucket_tagging(Bucket=BUCKET, Tagging=tagging(1))
    assert refused(client.put_bucket_tagging, Bucket=BUCKET, Tagging=tagging(51)) == ("InvalidTag", 400)
    wrong = {"TagSet": [{"Key": "aws:x", "Value": "1"}]}
    assert refused(client.put_bucket_tagging, Bucket=BUCKET, Tagging=wrong) == ("InvalidTag", 400)
    assert refused(client.put_bucket_tagging, Bucket="never-made", Tagging=tagging(1)) == ("NoSuchBucket", 404)
    assert client.get_bucket_tagging(Bucket=BUCKET)["TagSet"] == tagging(1)["TagSet"]
    for _ in range(2):
        answer = client.delete_bucket_tagging(Bucket=BUCKET)
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert refused(client.get_bucket_tagging, Bucket=BUCKET) == ("NoSuchTagSet", 404)
