"""The AWS Common Runtime's S3 client, which LMCache's S3 connector and mountpoint-s3 are built on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from awscrt.auth import AwsCredentialsProvider
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup
from awscrt.s3 import (
    S3ChecksumAlgorithm,
    S3ChecksumConfig,
    S3ChecksumLocation,
    S3Client,
    S3RequestTlsMode,
    S3RequestType,
    create_default_s3_signing_config,
)

from tests.gateways import ALPHA, RunningGateway

Crt = tuple[Callable[..., None], Callable[..., bytes]]


@pytest.fixture(scope="module", params=[1 << 30, 8 << 20], ids=["at once", "in parts"])
def crt(gateway: RunningGateway, request: pytest.FixtureRequest) -> Crt:
    """Put a file, and get an object; files longer than the parameter go up in parts."""
    credentials = AwsCredentialsProvider.new_static(ALPHA.access_key, ALPHA.secret_key)
    group = EventLoopGroup(1)
    client = S3Client(
        bootstrap=ClientBootstrap(group, DefaultHostResolver(group)),
        region="us-east-1",
        tls_mode=S3RequestTlsMode.DISABLED,
        signing_config=create_default_s3_signing_config(region="us-east-1", credential_provider=credentials),
        part_size=8 << 20,
        multipart_upload_threshold=request.param,
        throughput_target_gbps=10,
    )
    host = f"127.0.0.1:{gateway.port}"

    def put(path: str, source: Path, checksum: S3ChecksumConfig | None = None) -> None:
        headers = HttpHeaders([("host", host), ("content-length", str(source.stat().st_size))])
        request = client.make_request(
            request=HttpRequest("PUT", path, headers),
            type=S3RequestType.PUT_OBJECT,
            send_filepath=str(source),
            checksum_config=checksum,
        )
        request.finished_future.result(30)

    def get(path: str, checksum: S3ChecksumConfig | None = None) -> bytes:
        pieces: dict[int, bytes] = {}
        request = client.make_request(
            request=HttpRequest("GET", path, HttpHeaders([("host", host)])),
            type=S3RequestType.GET_OBJECT,
            checksum_config=checksum,
            on_body=lambda chunk, offset, **_: pieces.__setitem__(offset, chunk),
        )
        request.finished_future.result(30)
        return b"".join(pieces[offset] for offset in sorted(pieces))

    return put, get


@pytest.mark.parametrize("nbytes", [0, 1000, 3 << 20, (20 << 20) + 5])
@pytest.mark.parametrize("location", [None, S3ChecksumLocation.HEADER, S3ChecksumLocation.TRAILER])
def test_objects_go_there_and_back(crt: Crt, tmp_path: Path, nbytes: int, location: S3ChecksumLocation | None) -> None:
    put, get = crt
    source = tmp_path / "source"
    source.write_bytes(os.urandom(nbytes))
    sending = S3ChecksumConfig(S3ChecksumAlgorithm.CRC64NVME, location) if location else None
    path = f"/alpha-bucket/crt/{nbytes}-{location}"
    put(path, source, sending)
    assert get(path) == source.read_bytes()
    assert get(path, S3ChecksumConfig(validate_response=True)) == source.read_bytes()
