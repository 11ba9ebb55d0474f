from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from kvgate.config import Secret, Size, build
from kvgate.errors import ConfigError, TierError
from kvgate.tiers.s3 import S3Tier
from kvgate.tiers.s3_config import S3Config, connect
from kvgate.tiers.s3_credentials import FoundIdentity

PAIR = {"access_key": "AKIDEXAMPLE", "secret_key": Secret("sesame")}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "bucket: this key is required"),
        ({"bucket": "b/c"}, "bucket: expected the name of a bucket"),
        ({"bucket": "bucket", "prefix": "/a"}, "prefix: expected parts"),
        ({"bucket": "bucket", "prefix": "a//b"}, "prefix: expected parts"),
        ({"bucket": "bucket", "prefix": ".."}, "prefix: expected parts"),
        ({"bucket": "bucket", "endpoint": "s3.example.com"}, "endpoint must be http"),
        ({"bucket": "bucket", "endpoint": "http://u:p@host"}, "endpoint must hold"),
        ({"bucket": "bucket", "access_key": "a"}, "a key pair needs both"),
        ({"bucket": "bucket", "session_token": "t"}, "it goes with access_key"),
        ({"bucket": "bucket", "profile": "p", "access_key": "a", "secret_key": "s"}, "instead of access_key"),
        ({"bucket": "bucket", "part": "1MiB"}, "part: expected whole MiB, at least 5MiB"),
        ({"bucket": "bucket", "part": 5242881}, "part: expected whole MiB"),
        ({"bucket": "bucket", "transfers": 0}, "transfers: expected 1 to 256"),
        ({"bucket": "bucket", "request_timeout": "0s"}, "request_timeout: expected more than 0"),
    ],
)
def test_what_cannot_be_used_is_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build(S3Config, options)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({}, "s3://bucket/kvgate/ at https://bucket.s3.us-east-1.amazonaws.com"),
        ({"region": "eu-west-1"}, "s3://bucket/kvgate/ at https://bucket.s3.eu-west-1.amazonaws.com"),
        ({"bucket": "my.bucket"}, "s3://my.bucket/kvgate/ at https://s3.us-east-1.amazonaws.com"),
        ({"addressing": "path"}, "s3://bucket/kvgate/ at https://s3.us-east-1.amazonaws.com"),
        ({"endpoint": "http://store:8333", "prefix": ""}, "s3://bucket/ at http://store:8333"),
        ({"endpoint": "http://store:8333", "addressing": "virtual"}, "s3://bucket/kvgate/ at http://bucket.store:8333"),
    ],
)
def test_place_follows_from_region_endpoint_and_addressing(
    options: dict[str, Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    found, calls = connect(S3Config(**({"bucket": "bucket"} | PAIR | options)))
    calls.close()
    assert found == place


def test_region_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    assert connect(S3Config(bucket="bucket", **PAIR))[0].endswith("https://bucket.s3.ap-south-1.amazonaws.com")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert connect(S3Config(bucket="bucket", **PAIR))[0].endswith("https://bucket.s3.eu-north-1.amazonaws.com")


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=f"ca: {path}"):
            S3Tier(S3Config(bucket="bucket", endpoint="https://host", ca=path))


def test_secrets_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    config = S3Config(bucket="bucket", **PAIR, session_token=Secret("open"))
    with caplog.at_level(logging.DEBUG):
        _, calls = connect(config)
    request = calls._signed("GET", "k", {}, {}, (), "UNSIGNED-PAYLOAD")
    assert b"x-amz-security-token: open\r\n" in request.head
    shown = f"{config!r} {request!r} {calls._identities.get()!r} {caplog.text}"
    assert "sesame" not in shown
    assert "open" not in shown.replace("_open", "")


async def test_capacity_bounds_what_one_object_may_have() -> None:
    tier = S3Tier(S3Config(bucket="bucket", **PAIR, capacity=Size(1 << 20)))
    assert tier.limit() < 1 << 20
    await tier.close()


# --- what AWS's tools would find --------------------------------------------------------------------------------------


@pytest.fixture
def aws_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shared files, and no other credentials anywhere."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


def test_credentials_come_from_the_environment(aws_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret of the environment")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    identity = FoundIdentity(None).get()
    assert identity.credential.access_key == "AKIDENV"
    assert identity.credential.secret_key == "secret of the environment"
    assert identity.session_token == "token"


def test_credentials_come_from_a_profile(aws_home: Path) -> None:
    (aws_home / "credentials").write_text(
        "[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key = one\n"
        "[cache]\naws_access_key_id = AKIDCACHE\naws_secret_access_key = two\n"
    )
    assert FoundIdentity(None).get().credential.access_key == "AKIDDEFAULT"
    assert FoundIdentity("cache").get().credential.access_key == "AKIDCACHE"


def test_no_credentials_name_where_they_could_be(aws_home: Path) -> None:
    with pytest.raises(TierError, match="no AWS credentials were found; set access_key") as raised:
        FoundIdentity("nobody").get()
    assert not raised.value.transient
