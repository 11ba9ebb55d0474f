"""The clients over HTTPS: some of them send a body there without its length, in chunks with a checksum behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.gateways import RunningGateway, default_config
from tests.s3_clients.clients import BUCKET, Client, Session, offering

MiB = 1 << 20


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate of an authority, and a certificate of 127.0.0.1 from it, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "gateway.pem")
    return folder


@pytest.fixture(scope="module")
def gateway(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("gateway")
    config = default_config(folder)
    config["tenants"]["alpha"]["buckets"].append(BUCKET)
    pem = str(certificates / "gateway.pem")
    config["listen"] |= {"tls_certificate": pem, "tls_key": pem}
    running = RunningGateway(folder, config).start()
    yield running
    running.kill()


BODIES = [(client, operation) for operation in ("put", "upload") for client in offering(operation)]


@pytest.mark.parametrize(
    ("client", "operation"), BODIES, ids=[f"{operation}-{client.name}" for client, operation in BODIES]
)
def test_bodies_go_there_and_back(
    gateway: RunningGateway,
    certificates: Path,
    run_client: Callable[..., Session],
    client: Client,
    operation: str,
    tmp_path: Path,
) -> None:
    session = run_client(client, gateway.url.replace("http:", "https:"), str(certificates / "ca.pem"))
    source, back = tmp_path / "source", tmp_path / "back"
    for nbytes in (0, 1000, 9 * MiB + 17) if operation == "put" else (2 * client.part_nbytes + 5,):
        key = f"{client.name}/{operation}/{nbytes}"
        source.write_bytes(os.urandom(nbytes))
        session.call(operation, key=key, path=source)
        assert session.get(key, nbytes, back) == source.read_bytes()
