"""Every way in which a request can say which bucket it is for, and what it comes through."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import trustme
from botocore.config import Config

from kvgate.auth import sigv4
from kvgate.errors import ConfigError
from kvgate.server.config import ListenConfig, ListenerConfig
from tests.gateways import ALPHA, BETA, Credential, RunningGateway, free_port
from tests.wire import raw_exchange, send, signed_head

BETA_CREDENTIAL = sigv4.Credential(BETA.access_key, BETA.secret_key)

Start = Callable[..., RunningGateway]


def client(url: str, credential: Credential = ALPHA, verify: str | None = None, **options: Any) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=credential.access_key,
        aws_secret_access_key=credential.secret_key,
        verify=verify,
        config=Config(retries={"total_max_attempts": 1}, **options),
    )


def put(gateway: RunningGateway, path: str, body: bytes, port: int | None = None, host: str = "") -> int:
    headers = {"content-length": str(len(body))} | ({"host": host} if host else {})
    return send(gateway, "PUT", path, headers, body, port=port)[0]


def test_a_bound_listener_takes_the_whole_path_as_the_key(start_gateway: Start) -> None:
    port = free_port()
    gateway = start_gateway(listeners=[{"port": port, "bucket": "shared-name"}])
    for path in ("/model@1@0@abc@bf16", "/alpha-bucket/x", "/_kv/v1/match", "//double"):
        assert put(gateway, path, b"body of " + path.encode(), port) == 200, path
    s3 = client(gateway.url)
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket="shared-name")["Contents"]]
    assert keys == ["/double", "_kv/v1/match", "alpha-bucket/x", "model@1@0@abc@bf16"]
    status, headers, body = send(gateway, "GET", "/alpha-bucket/x", {"range": "bytes=0-8388607"}, port=port)
    assert (status, headers["content-range"], body) == (206, "bytes 0-22/23", b"body of /alpha-bucket/x")
    assert send(gateway, "GET", "/", query="list-type=2&prefix=model", port=port)[2].count(b"<Contents>") == 1


def test_a_bound_listener_serves_the_bucket_of_whoever_signs(start_gateway: Start) -> None:
    port = free_port()
    gateway = start_gateway(listeners=[{"port": port, "bucket": "shared-name"}])
    client(gateway.url, ALPHA).put_object(Bucket="shared-name", Key="mine", Body=b"alpha's")
    client(gateway.url, BETA).put_object(Bucket="shared-name", Key="mine", Body=b"beta's")
    assert send(gateway, "GET", "/mine", port=port)[2] == b"alpha's"
    assert send(gateway, "GET", "/mine", port=port, credential=BETA_CREDENTIAL)[2] == b"beta's"


def test_virtual_hosts(start_gateway: Start) -> None:
    gateway = start_gateway(listen={"domains": ["s3.example.com", "example.com"]})
    headers = {"host": "alpha-bucket.S3.example.com:9000"}
    assert put(gateway, "/a/b", b"by host", host=headers["host"]) == 200
    assert send(gateway, "GET", "/alpha-bucket/a/b")[2] == b"by host"
    assert send(gateway, "GET", "/alpha-bucket/a/b", {"host": "s3.example.com"})[2] == b"by host"
    assert send(gateway, "GET", "/_kv/v1/stats", headers)[0] == 404  # a key like any other
    assert b"<Name>alpha-bucket</Name>" in send(gateway, "GET", "/", headers, query="list-type=2")[2]
    assert b"NoSuchBucket" in send(gateway, "GET", "/k", {"host": "beta-bucket.s3.example.com"})[2]
    assert b"InvalidBucketName" in send(gateway, "GET", "/k", {"host": "_uploads.s3.example.com"})[2]


def test_boto3_with_virtual_addressing(start_gateway: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **options: resolve("127.0.0.1", *rest, **options))
    gateway = start_gateway(listen={"domains": ["s3.test"]})
    s3 = client(f"http://s3.test:{gateway.port}", s3={"addressing_style": "virtual"})
    asked: list[str] = []
    s3.meta.events.register("before-send.s3", lambda request, **_: asked.append(request.url))
    s3.put_object(Bucket="alpha-bucket", Key="a b+c@d=é", Body=b"virtual")
    assert asked[-1].startswith("http://alpha-bucket.s3.test:")
    assert send(gateway, "GET", "/alpha-bucket/a%20b%2Bc%40d%3D%C3%A9")[2] == b"virtual"


def test_absolute_form_targets(gateway: RunningGateway) -> None:
    path = "/alpha-bucket/absolute"
    assert put(gateway, path, b"whole") == 200
    head = signed_head("GET", path, {"host": f"127.0.0.1:{gateway.port}", "connection": "close"})
    absolute = head.replace(b"GET /", f"GET http://127.0.0.1:{gateway.port}/".encode(), 1)
    answer = raw_exchange(gateway, absolute)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"whole")


def test_exact_ranges_are_all_or_nothing(start_gateway: Start) -> None:
    port = free_port()
    gateway = start_gateway(listeners=[{"port": port, "bucket": "alpha-bucket", "exact_ranges": True}])
    assert put(gateway, "/alpha-bucket/ten", b"0123456789") == 200

    def ranged(wanted: str, where: int) -> tuple[int, bytes]:
        path = "/ten" if where == port else "/alpha-bucket/ten"
        status, _, body = send(gateway, "GET", path, {"range": wanted}, port=where)
        return status, body

    assert ranged("bytes=4-9", port) == (206, b"456789")
    assert ranged("bytes=4-", port) == (206, b"456789")
    assert ranged("bytes=-20", port) == (206, b"0123456789")
    status, body = ranged("bytes=4-10", port)
    assert status == 416
    assert b"<ActualObjectSize>10</ActualObjectSize>" in body
    assert ranged("bytes=4-10", gateway.port) == (206, b"456789")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(folder / "gateway.pem")
    return folder


def test_https(start_gateway: Start, certificates: Path) -> None:
    cert, pem = str(certificates / "ca.pem"), str(certificates / "gateway.pem")
    port = free_port()
    gateway = start_gateway(
        listen={"tls_certificate": pem, "tls_key": pem}, listeners=[{"port": port, "bucket": "alpha-bucket"}]
    )
    s3 = client(f"https://127.0.0.1:{gateway.port}", verify=cert)
    body = bytes(range(256)) * 40_000
    s3.put_object(Bucket="alpha-bucket", Key="k", Body=body)
    assert s3.get_object(Bucket="alpha-bucket", Key="k")["Body"].read() == body
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=ssl.create_default_context(cafile=cert))
    connection.request("GET", "/k")
    assert connection.getresponse().status == 403
    connection.close()
    with pytest.raises(http.client.BadStatusLine):
        send(gateway, "GET", "/alpha-bucket/k")


def test_listeners_that_cannot_be_are_refused_by_name(start_gateway: Start, tmp_path: Path) -> None:
    for bucket in ("Upper", "_uploads", "acme_", "x"):
        with pytest.raises(ConfigError, match="bucket"):
            ListenerConfig(port=1, bucket=bucket)
    with pytest.raises(ConfigError, match="domains"):
        ListenConfig(domains=("Example.com",))
    with pytest.raises(ConfigError, match="tls_key"):
        ListenConfig(tls_certificate="cert.pem")
    with pytest.raises(AssertionError, match="tls_certificate"):
        start_gateway(listen={"tls_certificate": str(tmp_path / "none"), "tls_key": str(tmp_path / "none")})
    with pytest.raises(AssertionError, match="expected a port of its own"):
        start_gateway(listeners=[{"port": 9321, "bucket": "b-1"}, {"port": 9321, "bucket": "b-2"}])
