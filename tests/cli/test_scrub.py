"""`scrub` against a real gateway whose files go bad."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvgate.client.sync import Client
from tests.gateways import ALPHA, RunningGateway, free_port

if TYPE_CHECKING:
    from .conftest import Kvgate

BUCKET = "alpha-bucket"


def put_and_restart(gateway: RunningGateway, **bodies: bytes) -> None:
    """Store objects, so that they are on disk alone."""
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        for key, body in bodies.items():
            client.put(BUCKET, key, body)
    gateway.restart()


def file_with(gateway: RunningGateway, body: bytes) -> Path:
    return next(
        path
        for path in (gateway.disk / "objects").rglob("*")
        if path.is_file() and path.read_bytes()[: len(body)] == body
    )


def test_scrub_finds_what_is_bad_and_keeps_it_for_people_to_look_at(
    kvgate: Kvgate, start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway(store={"scrub": {"rate": "1GiB", "interval": "0"}})
    bodies = {f"k{number}": os.urandom(3 << 20) for number in range(4)}
    put_and_restart(gateway, **bodies)
    admin = ("--admin-url", gateway.admin_url)
    assert "only when asked" in kvgate("scrub", *admin).stdout
    good = kvgate("scrub", "--start", "--wait", *admin)
    assert (good.returncode, good.stderr) == (0, "")
    assert "4 copies verified, 12.0 MiB" in good.stdout
    path = file_with(gateway, bodies["k2"])
    with path.open("r+b") as file:
        file.seek(2_500_000)
        octet = file.read(1)[0]
        file.seek(2_500_000)
        file.write(bytes([octet ^ 0x10]))
    bad = kvgate("scrub", "--start", "--wait", *admin)
    assert bad.returncode == 1
    assert "1 corrupt" in bad.stdout
    assert "1 lost" in bad.stdout
    assert "Kept in the quarantine of disk: 1 files" in bad.stdout
    report = json.loads(kvgate("scrub", "--json", *admin).stdout)
    (finding,) = report["last"]["findings"]
    assert (finding["kind"], finding["tier"], finding["what"], finding["outcome"]) == (
        *("object", "disk", "corrupt", "lost"),
    )
    assert "k2" not in json.dumps(report)
    assert len(list((gateway.disk / "quarantine").iterdir())) == 1
    metrics = gateway.metrics()
    assert metrics["kvgate_scrub_passes_total"] == 2
    assert metrics['kvgate_quarantine_bytes{tier="disk"}'] > 3 << 20
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        assert client.explain_keys(BUCKET, ["k2"]).objects[0].status == "corrupt"
        for key in ("k0", "k1", "k3"):
            assert client.get(BUCKET, key).body == bodies[key]


def test_scrub_of_a_gateway_that_is_off_is_told(kvgate: Kvgate, start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(store={"scrub": {"rate": "0"}})
    assert "is off" in kvgate("scrub", "--admin-url", gateway.admin_url).stdout
    answer = kvgate("scrub", "--start", "--admin-url", gateway.admin_url)
    assert (answer.returncode, "store.scrub.rate" in answer.stderr) == (2, True)


def test_a_page_of_another_site_cannot_begin_a_scrub(gateway: RunningGateway) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        connection = http.client.HTTPConnection("127.0.0.1", gateway.config["listen"]["admin_port"], timeout=10)
        connection.request("POST", "/scrub", b"{}", headers)
        assert connection.getresponse().status == 415
        connection.close()


@pytest.mark.parametrize(
    ("url", "status"),
    [("ftp://x:1", 2), ("http://127.0.0.1", 2), (f"http://127.0.0.1:{free_port()}", 1)],
    ids=["no http", "no port", "nobody there"],
)
def test_scrub_without_a_gateway_fails_in_one_line(kvgate: Kvgate, url: str, status: int) -> None:
    answer = kvgate("scrub", "--admin-url", url)
    assert answer.returncode == status
    assert answer.stderr.count("\n") == 1
