"""The S3 tier over HTTPS, with the bucket in the host name, against another gateway."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from kvgate.errors import TierError
from kvgate.memory.arena import Arena
from kvgate.tiers.base import HERE
from kvgate.tiers.s3 import S3Tier
from kvgate.tiers.s3_config import S3Config
from tests.contracts.shared_tier import name_of
from tests.contracts.tier import content, describe, filled
from tests.gateways import ALPHA, RunningGateway


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with the certificate of an authority, and one of s3.localhost and the names below it from it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    served = authority.issue_cert("s3.localhost", "*.s3.localhost")
    served.private_key_and_cert_chain_pem.write_to_path(tmp_path / "gateway.pem")
    return tmp_path


@pytest.fixture
def secured(certificates: Path, start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    pem = str(certificates / "gateway.pem")
    return start_gateway(listen={"tls_certificate": pem, "tls_key": pem, "domains": ["s3.localhost"]})


@pytest.fixture
def names_of_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names below localhost are this machine, as systems with systemd's resolver have it."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        return look_up("127.0.0.1" if host.endswith(".localhost") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 << 20)
    yield arena
    assert arena.lease_count == 0
    arena.close()


def config(gateway: RunningGateway, **options: object) -> S3Config:
    endpoint = gateway.url.replace("http://127.0.0.1", "https://s3.localhost")
    keys = {"access_key": ALPHA.access_key, "secret_key": ALPHA.secret_key}
    return S3Config(**({"bucket": "alpha-bucket", "endpoint": endpoint} | keys | options))


@pytest.mark.parametrize("addressing", ["path", "virtual"])
async def test_bodies_go_there_and_back(
    secured: RunningGateway, certificates: Path, names_of_localhost: None, arena: Arena, addressing: str
) -> None:
    body = os.urandom((20 << 20) + 3)
    record, blocks = describe("a b/é", body)
    tier = S3Tier(config(secured, ca=certificates / "ca.pem", addressing=addressing))
    await tier.start(lambda _: None)
    upload = await tier.begin("tenant", len(body))
    with filled(arena, body) as lease:
        await upload.write(lease, 0, len(body))
    await upload.finish(record, blocks)
    assert await tier.lookup([name_of(record)]) == [record]
    with arena.reserve("tenant", len(body)) as lease:
        await tier.open(record, HERE).read_into(0, lease, len(body))
        assert content(lease) == body
    await tier.close()


async def test_certificate_of_an_unknown_authority_is_not_trusted(
    secured: RunningGateway, names_of_localhost: None
) -> None:
    tier = S3Tier(config(secured))
    with pytest.raises(TierError, match=r"certificate verify failed.*; mend: ca$") as raised:
        await tier.lookup([name_of(describe("k", b"")[0])])
    assert not raised.value.transient
    await tier.close()
