"""What an owner shares is read by whom it is shared with, and by nobody else, who learns nothing either."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config

from tests.gateways import ALPHA, BETA, RunningGateway, default_config
from tests.s3.clients import refused, s3_client

OWN, NAMED = "alpha-bucket", "alpha_alpha-bucket"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("sharing")
    gateway = RunningGateway(folder, default_config(folder)).start()
    alpha = s3_client(gateway, ALPHA)
    for key in ("for-beta/1", "for-beta/2", "for-all/1", "private/1"):
        alpha.put_object(Bucket=OWN, Key=key, Body=key.encode())
    alpha.put_object(Bucket=OWN, Key="public", Body=b"public", ACL="public-read")
    alpha.put_object(Bucket=OWN, Key="tenants", Body=b"tenants", ACL="authenticated-read")
    alpha.put_object(Bucket=OWN, Key="tagged", Body=b"tagged", Tagging="open=yes")
    statements = [
        statement("beta", "s3:GetObject", "for-beta/*"),
        statement("beta", "s3:ListBucket", condition={"StringLike": {"s3:prefix": "for-beta/*"}}),
        statement("*", "s3:GetObject", "for-all/*"),
        statement("*", "s3:GetObject", "*", condition={"StringEquals": {"s3:ExistingObjectTag/open": "yes"}}),
        {**statement("*", "s3:DeleteObject", "for-all/*"), "Effect": "Deny"},
    ]
    alpha.put_bucket_policy(Bucket=OWN, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    yield gateway
    gateway.kill()


def statement(who: str, action: str, keys: str = "", condition: Any = None) -> dict[str, Any]:
    resource = f"arn:aws:s3:::{OWN}" + (f"/{keys}" if keys else "")
    made = {"Effect": "Allow", "Principal": {"AWS": who}, "Action": action, "Resource": resource}
    return made | ({"Condition": condition} if condition else {})


def unsigned(gateway: RunningGateway) -> Any:
    config = Config(signature_version=UNSIGNED, retries={"total_max_attempts": 1})
    return boto3.client("s3", endpoint_url=gateway.url, region_name="us-east-1", config=config)


def read(client: Any, key: str, bucket: str = NAMED) -> bytes:
    return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())


def test_a_policy_shares_a_prefix_with_a_tenant(shared: RunningGateway) -> None:
    beta = s3_client(shared, BETA)
    assert read(beta, "for-beta/1") == b"for-beta/1"
    assert beta.head_object(Bucket=NAMED, Key="for-beta/1")["ContentLength"] == 10
    listed = beta.list_objects_v2(Bucket=NAMED, Prefix="for-beta/")["Contents"]
    assert [item["Key"] for item in listed] == ["for-beta/1", "for-beta/2"]
    for prefix in ("", "for-", "private/"):
        assert refused(beta.list_objects_v2, Bucket=NAMED, Prefix=prefix) == ("AccessDenied", 403)
    assert refused(beta.get_object, Bucket=NAMED, Key="private/1") == ("AccessDenied", 403)


def test_nobody_else_writes(shared: RunningGateway) -> None:
    beta = s3_client(shared, BETA)
    target = {"Bucket": NAMED, "Key": "for-beta/1"}
    for call, arguments in (
        (beta.put_object, {**target, "Body": b"x"}),
        (beta.delete_object, target),
        (beta.create_multipart_upload, target),
        (beta.delete_objects, {"Bucket": NAMED, "Delete": {"Objects": [{"Key": "for-beta/1"}]}}),
        (beta.get_bucket_policy, {"Bucket": NAMED}),
        (beta.put_bucket_policy, {"Bucket": NAMED, "Policy": "{}"}),
        (beta.delete_bucket, {"Bucket": NAMED}),
    ):
        assert refused(call, **arguments) == ("AccessDenied", 403)
    grant = {"Version": "2012-10-17", "Statement": [statement("beta", "s3:PutObject", "*")]}
    policy = {"Bucket": "shared-name", "Policy": json.dumps(grant).replace(OWN, "shared-name")}
    assert refused(s3_client(shared, ALPHA).put_bucket_policy, **policy) == ("MalformedPolicy", 400)


def test_unsigned_requests_read_what_is_for_everyone(shared: RunningGateway) -> None:
    anyone = unsigned(shared)
    assert read(anyone, "for-all/1") == b"for-all/1"
    assert read(anyone, "public") == b"public"
    assert read(anyone, "tagged") == b"tagged"
    for key in ("for-beta/1", "tenants", "private/1", "no-such-key"):
        assert refused(anyone.get_object, Bucket=NAMED, Key=key) == ("AccessDenied", 403)
    assert refused(anyone.put_object, Bucket=NAMED, Key="for-all/2", Body=b"x") == ("AccessDenied", 403)
    assert refused(anyone.list_objects_v2, Bucket=NAMED) == ("AccessDenied", 403)
    assert refused(anyone.list_buckets) == ("AccessDenied", 403)
    assert refused(anyone.get_object, Bucket=OWN, Key="public") == ("AccessDenied", 403)  # whose, it does not say


def test_object_acls(shared: RunningGateway) -> None:
    beta = s3_client(shared, BETA)
    assert read(beta, "tenants") == b"tenants"
    assert read(beta, "public") == b"public"
    assert "x-amz-acl" not in beta.head_object(Bucket=NAMED, Key="public")["ResponseMetadata"]["HTTPHeaders"]


def test_what_is_denied_to_all_is_denied_to_the_owner(shared: RunningGateway) -> None:
    alpha = s3_client(shared, ALPHA)
    assert refused(alpha.delete_object, Bucket=OWN, Key="for-all/1") == ("AccessDenied", 403)
    answer = alpha.delete_objects(Bucket=OWN, Delete={"Objects": [{"Key": "for-all/1"}]})
    assert [error["Code"] for error in answer["Errors"]] == ["AccessDenied"]
    assert read(alpha, "for-all/1", OWN) == read(alpha, "for-all/1", NAMED) == b"for-all/1"
    assert alpha.get_bucket_policy_status(Bucket=OWN)["PolicyStatus"]["IsPublic"] is True


def test_requests_that_name_the_version_need_the_action_on_versions(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()
    alpha, beta = s3_client(gateway, ALPHA), s3_client(gateway, BETA)
    alpha.put_object(Bucket=OWN, Key="k", Body=b"body")
    null = {"Bucket": NAMED, "Key": "k", "VersionId": "null"}
    copy = {"Bucket": "beta-bucket", "Key": "copy", "CopySource": {"Bucket": NAMED, "Key": "k", "VersionId": "null"}}

    def allow(*actions: str) -> None:
        statements = [statement("beta", action, "*") for action in actions]
        alpha.put_bucket_policy(Bucket=OWN, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))

    allow("s3:GetObject")
    assert read(beta, "k") == b"body"
    for call, arguments in ((beta.get_object, null), (beta.copy_object, copy)):
        assert refused(call, **arguments) == ("AccessDenied", 403)
    allow("s3:GetObject", "s3:GetObjectVersion")
    assert beta.get_object(**null)["Body"].read() == b"body"
    assert beta.copy_object(**copy)["ResponseMetadata"]["HTTPStatusCode"] == 200
    deny = {**statement("*", "s3:DeleteObjectVersion", "*"), "Effect": "Deny"}
    alpha.put_bucket_policy(Bucket=OWN, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    answer = alpha.delete_objects(Bucket=OWN, Delete={"Objects": [{"Key": "k", "VersionId": "null"}]})
    assert [error["Code"] for error in answer["Errors"]] == ["AccessDenied"]
    assert refused(alpha.delete_object, **(null | {"Bucket": OWN})) == ("AccessDenied", 403)
    alpha.delete_object(Bucket=OWN, Key="k")


def test_a_policy_survives_a_restart_and_goes_with_its_bucket(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    alpha, beta = s3_client(gateway, ALPHA), s3_client(gateway, BETA)
    alpha.put_object(Bucket=OWN, Key="k", Body=b"body")
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement("beta", "s3:GetObject", "*")]})
    assert refused(alpha.get_bucket_policy, Bucket=OWN) == ("NoSuchBucketPolicy", 404)
    alpha.put_bucket_policy(Bucket=OWN, Policy=policy)
    assert json.loads(alpha.get_bucket_policy(Bucket=OWN)["Policy"]) == json.loads(policy)
    gateway.restart()
    assert read(beta, "k") == b"body"
    alpha.delete_bucket_policy(Bucket=OWN)
    assert refused(beta.get_object, Bucket=NAMED, Key="k") == ("AccessDenied", 403)
    alpha.put_bucket_policy(Bucket=OWN, Policy=policy)
    alpha.delete_object(Bucket=OWN, Key="k")
    alpha.delete_bucket(Bucket=OWN)
    alpha.create_bucket(Bucket=OWN)
    alpha.put_object(Bucket=OWN, Key="k", Body=b"body")
    assert refused(beta.get_object, Bucket=NAMED, Key="k") == ("AccessDenied", 403)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_names_that_stand_for_nothing_answer_like_what_is_not_shared(shared: RunningGateway, method: str) -> None:
    seen = set()
    for path in (
        *(f"/{NAMED}/private/1", f"/{NAMED}/no-such-key", "/alpha_no-such-bucket/k", "/nobody_no-such-bucket/k"),
        *("/alpha_shared-name/k", "/beta_alpha-bucket/k", "/alpha-bucket/k", "/no-such-bucket/k"),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
        connection.request(method, path)
        answer = connection.getresponse()
        body = re.sub(rb"<Resource>.*</RequestId>", b"", answer.read())
        kept = [
            (name, value) for name, value in answer.getheaders() if name.lower() not in ("date", "x-amz-request-id")
        ]
        kept = [(name, "" if name == "Content-Length" else value) for name, value in kept]
        seen.add((answer.status, body, tuple(kept)))
        connection.close()
    assert len(seen) == 1
    assert next(iter(seen))[0] == 403


def test_the_only_tenant_is_whom_unsigned_requests_mean(start_gateway: Callable[..., RunningGateway]) -> None:
    alone = start_gateway()
    del alone.config["tenants"]["beta"]
    alone.restart()
    s3_client(alone, ALPHA).put_object(Bucket=OWN, Key="public", Body=b"public", ACL="public-read")
    assert read(unsigned(alone), "public", OWN) == b"public"
    assert refused(unsigned(alone).get_object, Bucket=OWN, Key="other") == ("AccessDenied", 403)
