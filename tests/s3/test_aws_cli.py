"""aws-cli with default settings against a running gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gateways import ALPHA, RunningGateway

Aws = Callable[..., str]


@pytest.fixture
def aws(gateway: RunningGateway, tmp_path: Path) -> Aws:
    """Runs `aws` and gives its output."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": ALPHA.access_key,
        "AWS_SECRET_ACCESS_KEY": ALPHA.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": gateway.url,
        "AWS_EC2_METADATA_DISABLED": "true",
    }

    def run(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("aws")), *arguments]
        done = subprocess.run(
            command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_large_file_goes_up_in_parts(aws: Aws, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(20 << 20))
    aws("s3", "cp", str(source), "s3://alpha-bucket/cli-parts")
    aws("s3", "cp", "s3://alpha-bucket/cli-parts", str(back))
    assert back.read_bytes() == source.read_bytes()
    head = json.loads(
        aws("s3api", "head-object", "--bucket", "alpha-bucket", "--key", "cli-parts", "--checksum-mode", "ENABLED")
    )
    assert (head["ContentLength"], head["ChecksumType"]) == (20 << 20, "COMPOSITE")


def test_buckets_are_made_and_removed_with_all_that_they_hold(aws: Aws, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    aws("s3", "mb", "s3://cli-bucket")
    aws("s3", "cp", str(tmp_path / "file"), "s3://cli-bucket/a/b c")
    aws("s3", "rb", "--force", "s3://cli-bucket")
    assert "cli-bucket" not in aws("s3", "ls")


def test_s3api_describes_an_object(aws: Aws, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"123456789")
    put = ("--body", str(tmp_path / "body"), "--checksum-algorithm", "CRC64NVME", "--metadata", "a=1")
    target = ("--bucket", "alpha-bucket", "--key", "cli-head")
    aws("s3api", "put-object", *target, *put)
    head = json.loads(aws("s3api", "head-object", *target, "--checksum-mode", "ENABLED"))
    assert (head["ContentLength"], head["Metadata"], head["ChecksumCRC64NVME"]) == (9, {"a": "1"}, "rosUhgp5mIg=")


def test_objects_are_copied_moved_and_synchronised_within_the_gateway(aws: Aws, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 << 20))
    (tmp_path / "small").write_text("small")
    aws("s3", "mb", "s3://cli-copy")
    aws("s3", "cp", str(source), "s3://cli-copy/a/large +1")
    aws("s3", "cp", str(tmp_path / "small"), "s3://cli-copy/a/small", "--metadata", "m=1", "--content-type", "a/b")
    tags = '{"TagSet": [{"Key": "team", "Value": "a b"}]}'
    aws("s3api", "put-object-tagging", "--bucket", "cli-copy", "--key", "a/small", "--tagging", tags)
    aws("s3", "cp", "--recursive", "s3://cli-copy/a/", "s3://cli-copy/b/")
    aws("s3", "mv", "s3://cli-copy/b/large +1", "s3://cli-copy/c/large +1")
    assert aws("s3", "ls", "s3://cli-copy/b/").count("\n") == 1
    aws("s3", "sync", "s3://cli-copy/a", "s3://cli-copy/d")
    assert aws("s3", "sync", "s3://cli-copy/a", "s3://cli-copy/d") == ""
    for key in ("c/large +1", "d/large +1"):
        aws("s3", "cp", f"s3://cli-copy/{key}", str(tmp_path / "back"))
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
    for key in ("b/small", "d/small"):
        target = ("--bucket", "cli-copy", "--key", key)
        head = json.loads(aws("s3api", "head-object", *target))
        assert (head["ContentType"], head["Metadata"]) == ("a/b", {"m": "1"})
        found = json.loads(aws("s3api", "get-object-tagging", *target))
        assert found["TagSet"] == [{"Key": "team", "Value": "a b"}]
    aws("s3", "rb", "--force", "s3://cli-copy")
