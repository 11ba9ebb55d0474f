"""A gateway that is killed while it compresses and decompresses: every object is whole, and room is counted exactly."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from kvgate.client.sync import Client
from kvgate.client.values import Chosen
from kvgate.errors import GatewayError
from kvgate.tiers.disk_file import describe_file
from kvgate.tiers.disk_streams import footprint
from tests.gateways import ALPHA, RunningGateway

BUCKET = "alpha-bucket"
OBJECTS = 16
KILLS = int(os.environ.get("KVGATE_KILLS", "6"))
SWEEP_S = 60


def client_of(gateway: RunningGateway) -> Client:
    return Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30)


def on_disk(gateway: RunningGateway) -> tuple[int, int, int]:
    """The files, those of them that are encoded, and the room that they take."""
    found = []
    for path in (gateway.disk / "objects").glob("*/*"):
        try:
            with path.open("rb") as file:
                found.append(describe_file(file.fileno()))
        except FileNotFoundError:
            continue
    stored = [each.record.nbytes if each.encoding is None else each.encoding.stored_nbytes for each in found]
    return len(found), sum(each.encoding is not None for each in found), sum(map(footprint, stored))


def test_no_wrong_byte_and_exact_room_wherever_it_is_killed(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway, choose = start_gateway(), random.Random(11)
    bodies = {f"k{number}": choose.randbytes(1000) + b"words " * 200_000 + bytes([number]) for number in range(OBJECTS)}
    with client_of(gateway) as client:
        for key, body in bodies.items():
            client.put(BUCKET, key, body)
    gateway.restart()
    states = set()
    for number in range(KILLS):
        with client_of(gateway) as client:
            client.start_job(("compress", "decompress")[number % 2], Chosen(BUCKET, prefix=""))
        time.sleep(choose.uniform(0, 0.25))
        gateway.kill()
        gateway.start()
        deadline = time.monotonic() + SWEEP_S
        while True:  # until the files of unfinished work are gone
            files, encoded, nbytes = on_disk(gateway)
            used = gateway.metrics()['kvgate_tier_used_bytes{tier="disk"}']
            if (files, nbytes) == (OBJECTS, used):
                break
            assert time.monotonic() < deadline, f"{files} files take {nbytes} bytes, the gateway says {used}"
            time.sleep(0.1)
        states.add(encoded)
        with client_of(gateway) as client:
            for key, body in bodies.items():
                assert client.get(BUCKET, key).body == body
        gateway.restart()
    assert len(states) > 1, "nothing was done before any of the kills"
    with client_of(gateway) as client:
        for kind, expected in (("compress", OBJECTS), ("decompress", 0)):
            job = client.start_job(kind, Chosen(BUCKET, prefix=""))
            while not job.has_ended:
                job = client.job(job.id)
                time.sleep(0.02)
            assert job.state == "done"
            assert on_disk(gateway)[1] == expected
        with pytest.raises(GatewayError, match="zstd-split"):
            client.start_job("compress", Chosen(BUCKET, prefix=""), codec="none")
