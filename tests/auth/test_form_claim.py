from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

import boto3
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth import sigv4
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.errors import (
    AccessDenied,
    ClockSkew,
    ExpiredRequest,
    InvalidArgument,
    InvalidPolicyDocument,
    KVGateError,
    MalformedAuthorization,
    SignatureMismatch,
    UnknownAccessKey,
)

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"

VERSIONS = pytest.mark.parametrize("version", [None, "s3v4"])


def signed(
    version: str | None = None, *, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, expires_s: int = 3600
) -> dict[str, str]:
    """The fields of a form that boto3 signs; by Signature Version 2 where nobody has told it how."""
    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9000",
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(signature_version=version) if version else None,
    )
    fields = client.generate_presigned_post("bucket", "key", ExpiresIn=expires_s)["fields"]
    return {name.lower(): value for name, value in fields.items()}


@VERSIONS
def test_accepts_what_boto3_signs(authenticator: Authenticator, version: str | None) -> None:
    fields = signed(version)
    assert ("x-amz-signature" in fields) is (version == "s3v4")
    tenant, policy = authenticator.authenticate_form(fields)
    assert tenant.name == "acme"
    policy.check(fields | {"bucket": "bucket"})
    with pytest.raises(AccessDenied, match="key"):
        policy.check(fields | {"bucket": "bucket", "key": "other"})


def test_signature_of_the_s3_documentation() -> None:
    # https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-post-example.html, whose policy has CRLF line ends
    document = "\r\n".join(
        [
            '{ "expiration": "2015-12-30T12:00:00.000Z",',
            '  "conditions": [',
            '    {"bucket": "sigv4examplebucket"},',
            '    ["starts-with", "$key", "user/user1/"],',
            '    {"acl": "public-read"},',
            '    {"success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html"},',
            '    ["starts-with", "$Content-Type", "image/"],',
            '    {"x-amz-meta-uuid": "14365123651274"},',
            '    {"x-amz-server-side-encryption": "AES256"},',
            '    ["starts-with", "$x-amz-meta-tag", ""],',
            "",
            '    {"x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request"},',
            '    {"x-amz-algorithm": "AWS4-HMAC-SHA256"},',
            '    {"x-amz-date": "20151229T000000Z" }',
            "  ]",
            "}",
        ]
    )
    fields = {
        "policy": base64.b64encode(document.encode()).decode(),
        "x-amz-algorithm": "AWS4-HMAC-SHA256",
        "x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request",
        "x-amz-date": "20151229T000000Z",
        "x-amz-signature": "8afdbf4008c03f22c2cd3cdb72e4afbb1f6a588f3255ac628749a66d7f09699e",
    }
    keys = (AccessKeyConfig(ACCESS_KEY, Secret(SECRET_KEY)),)
    at_the_time = Authenticator(Tenants({"acme": TenantConfig(keys)}), lambda: 1_451_347_200.0)
    assert at_the_time.authenticate_form(fields)[0].name == "acme"


# --- what is kept out -------------------------------------------------------------------------------------------------


@VERSIONS
def test_a_changed_policy_or_signature_is_refused(authenticator: Authenticator, version: str | None) -> None:
    fields = signed(version)
    document = json.loads(base64.b64decode(fields["policy"]))
    document["conditions"].append(["starts-with", "$acl", ""])
    name = "x-amz-signature" if version else "signature"
    for change in (
        {"policy": base64.b64encode(json.dumps(document).encode()).decode()},
        {"policy": fields["policy"] + "\n"},
        {name: fields[name].swapcase()},
        {name: "é"},
        {name: fields[name][:-1]},
    ):
        with pytest.raises(SignatureMismatch):
            authenticator.authenticate_form(fields | change)


@VERSIONS
def test_wrong_secret_and_unknown_key_are_refused(authenticator: Authenticator, version: str | None) -> None:
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate_form(signed(version, secret_key="x" * 40))
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate_form(signed(version, access_key="second-key"))
    with pytest.raises(UnknownAccessKey):
        authenticator.authenticate_form(signed(version, access_key="nobody"))


@VERSIONS
def test_a_form_expires(authenticator: Authenticator, clock: Any, version: str | None) -> None:
    fields = signed(version, expires_s=60)
    clock.now += 58
    assert authenticator.authenticate_form(fields)
    clock.now += 4
    with pytest.raises(ExpiredRequest, match="Policy expired"):
        authenticator.authenticate_form(fields)


def test_a_signature_is_good_for_a_week(authenticator: Authenticator, clock: Any) -> None:
    month_s = 30 * 24 * 3600
    with pytest.raises(AccessDenied, match="604800"):
        authenticator.authenticate_form(signed(expires_s=month_s))
    fields = signed("s3v4", expires_s=month_s)
    clock.now += sigv4.MAX_EXPIRES_S - 5
    assert authenticator.authenticate_form(fields)
    clock.now += 10
    with pytest.raises(ExpiredRequest, match="604800"):
        authenticator.authenticate_form(fields)


def test_a_form_of_the_future_is_refused(authenticator: Authenticator, clock: Any) -> None:
    fields = signed("s3v4")
    clock.now -= 950
    with pytest.raises(ClockSkew):
        authenticator.authenticate_form(fields)


def test_an_unsigned_form_is_refused(authenticator: Authenticator) -> None:
    with pytest.raises(AccessDenied, match="not signed"):
        authenticator.authenticate_form({"key": "k", "acl": "public-read"})


@VERSIONS
def test_fields_that_sign_are_all_needed(authenticator: Authenticator, version: str | None) -> None:
    fields = signed(version)
    names = {"policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"}
    for name in names if version else {"policy", "awsaccesskeyid", "signature"}:
        for changed in ({other: value for other, value in fields.items() if other != name}, fields | {name: ""}):
            with pytest.raises(InvalidArgument, match=name):
                authenticator.authenticate_form(changed)


def test_two_signatures_are_refused(authenticator: Authenticator) -> None:
    with pytest.raises(MalformedAuthorization, match="one of them"):
        authenticator.authenticate_form(signed() | signed("s3v4"))


def test_session_tokens_are_refused(authenticator: Authenticator) -> None:
    for version in (None, "s3v4"):
        with pytest.raises(MalformedAuthorization, match="session token"):
            authenticator.authenticate_form(signed(version) | {"x-amz-security-token": "t"})


@pytest.mark.parametrize(
    "change",
    [
        {"x-amz-algorithm": "AWS4-ECDSA-P256-SHA256"},
        {"x-amz-credential": ACCESS_KEY},
        {"x-amz-credential": f"{ACCESS_KEY}/20200101/us-east-1/s3/aws4_request"},
        {"x-amz-credential": f"{ACCESS_KEY}/20260127/us-east-1/sqs/aws4_request"},
        {"x-amz-date": "now"},
        {"x-amz-date": "20201301T000000Z"},
    ],
)
def test_malformed_fields_are_refused(authenticator: Authenticator, change: dict[str, str]) -> None:
    with pytest.raises(AccessDenied) as caught:
        authenticator.authenticate_form(signed("s3v4") | change)
    assert not isinstance(caught.value, SignatureMismatch)


def test_a_policy_that_is_signed_must_be_one(authenticator: Authenticator) -> None:
    fields = signed("s3v4")
    date, scope = fields["x-amz-date"], fields["x-amz-credential"].split("/")
    key = sigv4.signing_key(SECRET_KEY, sigv4.Scope(date[:8], scope[2]))
    for text in ("e30=", "no policy"):
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        with pytest.raises(InvalidPolicyDocument):
            authenticator.authenticate_form(fields | {"policy": text, "x-amz-signature": signature})


def test_version_2_can_be_switched_off() -> None:
    keys = (AccessKeyConfig(ACCESS_KEY, Secret(SECRET_KEY)),)
    authenticator = Authenticator(Tenants({"acme": TenantConfig(keys)}), time.time, sigv2=False)
    assert authenticator.authenticate_form(signed("s3v4"))
    with pytest.raises(MalformedAuthorization, match="signature_version='s3v4'"):
        authenticator.authenticate_form(signed())


NAMES = st.sampled_from(
    [
        *("policy", "signature", "awsaccesskeyid", "x-amz-signature", "x-amz-credential", "x-amz-algorithm"),
        *("x-amz-date", "x-amz-security-token", "key"),
    ]
)
VALUES = st.text(max_size=8) | st.sampled_from(
    [
        *(ACCESS_KEY, "AWS4-HMAC-SHA256", f"{ACCESS_KEY}/20260127/us-east-1/s3/aws4_request", "20260127T100000Z"),
        *("e30=", "0" * 64),
    ]
)


@given(st.dictionaries(NAMES, VALUES))
def test_whatever_is_sent_is_refused_in_the_words_of_the_domain(fields: dict[str, str]) -> None:
    keys = (AccessKeyConfig(ACCESS_KEY, Secret(SECRET_KEY)),)
    authenticator = Authenticator(Tenants({"acme": TenantConfig(keys)}), lambda: 1_769_508_000.0)
    with pytest.raises(KVGateError):
        authenticator.authenticate_form(fields)
