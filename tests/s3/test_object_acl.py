"""GetObjectAcl and PutObjectAcl as boto3 sees them, against a running gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.gateways import BETA, RunningGateway
from tests.s3.clients import refused, s3_client

BUCKET, NAMED = "alpha-bucket", "alpha_alpha-bucket"
ALL, TENANTS = (f"http://acs.amazonaws.com/groups/global/{name}" for name in ("AllUsers", "AuthenticatedUsers"))


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Any:
    return s3_client(gateway)


def grants(client: Any, key: str) -> list[tuple[str, str]]:
    answer = client.get_object_acl(Bucket=BUCKET, Key=key)
    assert answer["Owner"]["ID"] == "alpha"
    return [(grant["Grantee"].get("ID") or grant["Grantee"]["URI"], grant["Permission"]) for grant in answer["Grants"]]


def test_a_canned_acl_becomes_grants(gateway: RunningGateway, client: Any) -> None:
    beta = s3_client(gateway, BETA)
    put = client.put_object(Bucket=BUCKET, Key="acl/canned", Body=b"x", Metadata={"a": "1"}, Tagging="t=1")
    own = ("alpha", "FULL_CONTROL")
    assert grants(client, "acl/canned") == [own]
    for acl, granted in (
        ("public-read", [(ALL, "READ")]),
        ("authenticated-read", [(TENANTS, "READ")]),
        ("private", []),
    ):
        client.put_object_acl(Bucket=BUCKET, Key="acl/canned", ACL=acl)
        assert grants(client, "acl/canned") == [own, *granted]
        if granted:
            assert beta.get_object(Bucket=NAMED, Key="acl/canned")["Body"].read() == b"x"
        else:
            assert refused(beta.get_object, Bucket=NAMED, Key="acl/canned") == ("AccessDenied", 403)
    found = client.head_object(Bucket=BUCKET, Key="acl/canned")
    assert (found["ETag"], found["Metadata"], found["TagCount"]) == (put["ETag"], {"a": "1"}, 1)


def test_grants_become_an_acl_again(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="acl/grants", Body=b"x", ACL="public-read")
    answer = client.get_object_acl(Bucket=BUCKET, Key="acl/grants")
    policy = {"Owner": answer["Owner"], "Grants": answer["Grants"]}
    client.put_object(Bucket=BUCKET, Key="acl/other", Body=b"x")
    client.put_object_acl(Bucket=BUCKET, Key="acl/other", AccessControlPolicy=policy)
    assert client.get_object_acl(Bucket=BUCKET, Key="acl/other")["Grants"] == answer["Grants"]


def test_what_cannot_be_granted_is_refused(gateway: RunningGateway, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="acl/refused", Body=b"x")
    target = {"Bucket": BUCKET, "Key": "acl/refused"}
    assert refused(client.put_object_acl, **target, ACL="public-read-write") == ("NotImplemented", 501)
    assert refused(client.put_object_acl, **target, GrantRead='id="beta"') == ("NotImplemented", 501)
    assert refused(client.put_object_acl, **target) == ("InvalidRequest", 400)
    never = {"Bucket": BUCKET, "Key": "acl/never"}
    assert refused(client.put_object_acl, **never, ACL="private") == ("NoSuchKey", 404)
    assert refused(client.get_object_acl, **never) == ("NoSuchKey", 404)
    assert refused(client.get_object_acl, **target, VersionId="3") == ("NoSuchVersion", 404)
    client.put_object_acl(**target, ACL="public-read", VersionId="null")
    beta = s3_client(gateway, BETA)
    assert refused(beta.put_object_acl, Bucket=NAMED, Key="acl/refused", ACL="private") == ("AccessDenied", 403)
    assert refused(beta.get_object_acl, Bucket=NAMED, Key="acl/refused") == ("AccessDenied", 403)


def test_an_acl_survives_a_restart(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    client = s3_client(gateway)
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    client.put_object_acl(Bucket=BUCKET, Key="k", ACL="public-read")
    gateway.restart()
    assert s3_client(gateway, BETA).get_object(Bucket=NAMED, Key="k")["Body"].read() == b"x"
