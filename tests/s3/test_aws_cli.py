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


def test_files_go_up_and_come_down(aws: Aws, tmp_path: Path) -> None:
    source, back = tmp_path / "source file", tmp_path / "back"
    source.write_bytes(os.urandom(3 << 20))
    aws("s3", "cp", str(source), "s3://alpha-bucket/cli/some file+1")
    assert "some file+1" in aws("s3", "ls", "s3://alpha-bucket/cli/")
    aws("s3", "cp", "s3://alpha-bucket/cli/some file+1", str(back))
    assert back.read_bytes() == source.read_bytes()
    aws("s3", "rm", "s3://alpha-bucket/cli/some file+1")
    assert aws("s3", "ls", "s3://alpha-bucket/").find("cli/") == -1


def test_a_large_object_comes_down_in_ranges(aws: Aws, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(20 << 20))
    aws("s3api", "put-object", "--bucket", "alpha-bucket", "--key", "cli-large", "--body", str(source))
    aws("s3", "cp", "s3://alpha-bucket/cli-large", str(back))
    assert back.read_bytes() == source.read_bytes()


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


def test_folders_are_synchronised_and_removed(aws: Aws, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("a", "b/c", "b/d e"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "large").write_bytes(os.urandom(20 << 20))
    aws("s3", "mb", "s3://cli-bucket")
    aws("s3", "sync", str(folder), "s3://cli-bucket/x")
    assert aws("s3", "sync", str(folder), "s3://cli-bucket/x") == ""
    aws("s3", "sync", "s3://cli-bucket/x", str(tmp_path / "back"))
    assert (tmp_path / "back/b/d e").read_text() == "b/d e"
    assert (tmp_path / "back/large").read_bytes() == (folder / "large").read_bytes()
    assert aws("s3", "ls", "--recursive", "s3://cli-bucket").count("\n") == 4
    aws("s3", "rb", "--force", "s3://cli-bucket")
    assert "cli-bucket" not in aws("s3", "ls")


def test_s3api_describes_an_object(aws: Aws, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"123456789")
    put = ("--body", str(tmp_path / "body"), "--checksum-algorithm", "CRC64NVME", "--metadata", "a=1")
    target = ("--bucket", "alpha-bucket", "--key", "cli-head")
    aws("s3api", "put-object", *target, *put)
    head = json.loads(aws("s3api", "head-object", *target, "--checksum-mode", "ENABLED"))
    assert (head["ContentLength"], head["Metadata"], head["ChecksumCRC64NVME"]) == (9, {"a": "1"}, "rosUhgp5mIg=")
