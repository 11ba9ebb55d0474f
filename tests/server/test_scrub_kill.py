"""A gateway that is killed while it scrubs, sets bad files aside and writes them anew."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.gateways import ALPHA, RunningGateway

BUCKET = "alpha-bucket"
OBJECTS = 12
KILLS = 4


def client_of(gateway: RunningGateway) -> Client:
    return Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30)


def files(gateway: RunningGateway) -> list[Path]:
    return [path for path in (gateway.disk / "objects").rglob("*") if path.is_file()]


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        at = random.randrange(path.stat().st_size)
        file.seek(at)
        octet = file.read(1)[0]
        file.seek(at)
        file.write(bytes([octet ^ 1 << random.randrange(8)]))


def test_no_wrong_byte_and_no_wrong_count_wherever_a_scrub_is_killed(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(store={"scrub": {"rate": "1GiB", "interval": "10ms"}})
    bodies = {f"k{number}": os.urandom((1 << 20) + number) for number in range(OBJECTS)}
    for _ in range(KILLS):
        with client_of(gateway) as client:
            for key, body in bodies.items():
                client.put(BUCKET, key, body)
        gateway.restart()
        with client_of(gateway) as client:
            for key in random.sample(sorted(bodies), OBJECTS // 2):  # in memory too: these can be mended
                client.get(BUCKET, key)
        for path in random.sample(files(gateway), OBJECTS // 3):
            flip_a_bit(path)
        time.sleep(random.uniform(0, 0.1))
        gateway.kill()
        gateway.start()
        time.sleep(random.uniform(0, 0.3))
        gateway.kill()
        gateway.start()
        with client_of(gateway) as client:
            held = 0
            for key, body in bodies.items():
                try:
                    assert client.get(BUCKET, key).body == body
                except GatewayError:  # refused, or cut where the bad block is
                    assert client.explain_keys(BUCKET, [key]).objects[0].status != "present"
                else:
                    held += len(body)
            assert client.stats().nbytes == held
            assert sum(entry.nbytes for entry in client.list(BUCKET)) == held
