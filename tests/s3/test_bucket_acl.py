"""GetBucketAcl, PutBucketAcl and the ACL of a CreateBucket as boto3 sees them, against a running gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.gateways import BETA, RunningGateway
from tests.s3.clients import refused, s3_client

EVERYONE = "http://acs.amazonaws.com/groups/global/AllUsers"


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Any:
    return s3_client(gateway)


def grants(client: Any, bucket: str) -> list[str]:
    answer = client.get_bucket_acl(Bucket=bucket)
    assert answer["Owner"]["ID"] == "alpha"
    return [grant["Grantee"].get("ID") or grant["Grantee"]["URI"] for grant in answer["Grants"]]


def test_a_bucket_is_made_with_an_acl_and_gets_another(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    client, beta = s3_client(gateway), s3_client(gateway, BETA)
    client.create_bucket(Bucket="listed", ACL="public-read")
    client.put_object(Bucket="listed", Key="k", Body=b"x")
    gateway.restart()
    assert grants(client, "listed") == ["alpha", EVERYONE]
    assert [item["Key"] for item in beta.list_objects_v2(Bucket="alpha_listed")["Contents"]] == ["k"]
    assert [item["Key"] for item in beta.list_object_versions(Bucket="alpha_listed")["Versions"]] == ["k"]
    assert refused(beta.get_object, Bucket="alpha_listed", Key="k") == ("AccessDenied", 403), "it lists, and no more"
    client.create_bucket(Bucket="listed")
    assert grants(client, "listed") == ["alpha", EVERYONE]
    client.put_bucket_acl(Bucket="listed", ACL="private")
    assert grants(client, "listed") == ["alpha"]
    assert refused(beta.list_objects_v2, Bucket="alpha_listed") == ("AccessDenied", 403)
    client.put_bucket_acl(Bucket="listed", ACL="authenticated-read")
    assert beta.list_objects_v2(Bucket="alpha_listed")["KeyCount"] == 1
    client.create_bucket(Bucket="listed", ACL="private")
    assert refused(beta.list_objects_v2, Bucket="alpha_listed") == ("AccessDenied", 403)
    client.delete_object(Bucket="listed", Key="k")
    client.put_bucket_acl(Bucket="listed", ACL="public-read")
    client.delete_bucket(Bucket="listed")
    client.create_bucket(Bucket="listed")
    assert grants(client, "listed") == ["alpha"], "an ACL goes with its bucket"


def test_grants_become_an_acl_again(client: Any) -> None:
    client.create_bucket(Bucket="acl-one", ACL="public-read")
    client.create_bucket(Bucket="acl-two")
    answer = client.get_bucket_acl(Bucket="acl-one")
    policy = {"Owner": answer["Owner"], "Grants": answer["Grants"]}
    client.put_bucket_acl(Bucket="acl-two", AccessControlPolicy=policy)
    assert grants(client, "acl-two") == ["alpha", EVERYONE]
    for name in ("acl-one", "acl-two"):
        client.delete_bucket(Bucket=name)


def test_what_cannot_be_granted_is_refused(client: Any) -> None:
    bucket = {"Bucket": "alpha-bucket"}
    assert refused(client.put_bucket_acl, **bucket, ACL="public-read-write") == ("NotImplemented", 501)
    assert refused(client.put_bucket_acl, **bucket, GrantWrite='id="beta"') == ("NotImplemented", 501)
    assert refused(client.put_bucket_acl, **bucket) == ("InvalidRequest", 400)
    assert refused(client.create_bucket, Bucket="acl-wrong", ACL="public-read-write") == ("NotImplemented", 501)
    assert refused(client.head_bucket, Bucket="acl-wrong") == ("404", 404)
    assert refused(client.get_bucket_acl, Bucket="never-made") == ("NoSuchBucket", 404)
    assert refused(client.put_bucket_acl, Bucket="never-made", ACL="private") == ("NoSuchBucket", 404)
    assert grants(client, "alpha-bucket") == ["alpha"]
