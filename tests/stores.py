"""Real S3 stores for the tests: SeaweedFS in a process of its own, on ports and a folder of its own."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from gateway import ACCESS_KEY, BUCKET, SECRET_KEY
from peers.base import Absent
from peers.seaweedfs import SeaweedFS

from kvgate.tiers.s3_config import S3Config

READY_S = 30.0


@dataclass(frozen=True)
class Store:
    """Where an S3 store is, and who may use a bucket of it."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str

    def config(self, **options: Any) -> S3Config:
        keys = {"access_key": self.access_key, "secret_key": self.secret_key} if "profile" not in options else {}
        return S3Config(**({"bucket": self.bucket, "endpoint": self.endpoint} | keys | options))

    def boto3(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )


class Seaweed:
    """SeaweedFS with one bucket. After `kill` it can be started again on what it has kept."""

    def __init__(self, folder: Path) -> None:
        self._server = SeaweedFS(folder)
        self.store = Store(f"http://127.0.0.1:{self._server.port}", BUCKET, ACCESS_KEY, SECRET_KEY)

    @property
    def pid(self) -> int:
        return self._server.pid

    def start(self) -> None:
        """Return when it takes objects. Where it is not installed, the test is skipped, and fails in CI."""
        try:
            self._server.start()
        except Absent as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        client = self.store.boto3()
        deadline = time.monotonic() + READY_S
        while True:
            try:
                client.create_bucket(Bucket=self.store.bucket)
            except client.exceptions.BucketAlreadyExists:
                pass
            except (ClientError, BotoCoreError):
                pass
            try:
                client.put_object(Bucket=self.store.bucket, Key="ready", Body=b"1")
                return
            except (ClientError, BotoCoreError):
                assert time.monotonic() < deadline, "SeaweedFS takes no objects"
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL and wait, also when it has ended."""
        process = self._server._process
        if process is not None:
            process.kill()
            process.wait()
