"""SIGKILL while objects move between four tiers and a scrubber reads them: no wrong byte, and usage stays exact.

KVGATE_KILLS says how often; 200 take about ten minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from kvgate.tiers.disk_file import describe_file
from tests.gateways import ALPHA, RunningGateway

KILLS = int(os.environ.get("KVGATE_KILLS", "12"))
SCAN_EVERY = 4
BUCKET = "alpha-bucket"
OPAQUE, SHARED = 16, 60
SIZES = [0, 5000, 300_000, 1 << 20, 2_500_000]


def shared_key(number: int) -> str:
    """A key of LMCache, whose object may lie in a tier that gateways share; its body follows from it."""
    return f"model@1@0@{number:064x}@half"


def body_of(name: str, version: int = 0) -> bytes:
    generator = random.Random(f"{name}:{version}")
    nbytes = SIZES[(sum(name.encode()) + version) % len(SIZES)]
    return f"{name}|{version}|".encode() + generator.randbytes(nbytes)


def check(key: str, body: bytes) -> None:
    name, version, _ = body.split(b"|", 2)
    assert name.decode() == key, f"{key} holds the bytes of {name!r}"
    assert body == body_of(key, int(version)), f"{key} holds bytes that were never written"


class Load:
    """Threads that write and read, and so move objects up and down, until the gateway dies under them."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.failures = url, list[AssertionError]()
        self.requests = 0
        self._stopped = threading.Event()
        jobs = [(self._write, seed), (self._read, seed + 1), (self._read, seed + 2)]
        self._threads = [threading.Thread(target=self._run, args=job) for job in jobs]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def _run(self, work: Callable[[Client, random.Random], None], seed: int) -> None:
        generator = random.Random(seed)
        with Client(self.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=5) as client:
            while not self._stopped.is_set():
                try:
                    work(client, generator)
                    self.requests += 1
                except GatewayError:
                    if self._stopped.wait(0.05):
                        return
                except AssertionError as error:
                    self.failures.append(error)
                    return

    def _write(self, client: Client, generator: random.Random) -> None:
        if generator.random() < 0.4:
            key, version = f"opaque-{generator.randrange(OPAQUE)}", generator.randrange(1_000_000)
        else:
            key, version = shared_key(generator.randrange(SHARED)), 0
        client.put(BUCKET, key, [memoryview(body_of(key, version))])

    def _read(self, client: Client, generator: random.Random) -> None:
        kind = generator.random()
        key = f"opaque-{generator.randrange(OPAQUE)}" if kind < 0.3 else shared_key(generator.randrange(SHARED))
        body = client.get(BUCKET, key).body
        if body is not None:
            check(key, body)


def verify(gateway: RunningGateway) -> int:
    """Everything that is listed is right; usage is the sum of it. How many objects there are."""
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20) as client:
        listed = list(client.list(BUCKET))
        stats = client.stats()
        assert (stats.objects, stats.nbytes) == (len(listed), sum(each.nbytes for each in listed))
        for each in listed:
            body = client.get(BUCKET, each.key).body
            assert body is not None, f"{each.key} is listed and cannot be read"
            check(each.key, body)
    return len(listed)


def scan(gateway: RunningGateway, folders: dict[str, Path]) -> None:
    """What each private tier says that a tenant has there is what its files hold."""
    deadline = time.monotonic() + 60
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20) as client:
        while True:
            found = {}
            for name, folder in folders.items():
                records = []
                for path in (folder / "objects").glob("*/*"):
                    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # it goes meanwhile
                        records.append(describe_file(file.fileno()).record)
                found[name] = (len(records), sum(record.nbytes for record in records))
            stats = client.stats()
            said = {name: (stats.tiers[name].objects, stats.tiers[name].nbytes) for name in folders}
            if said == found:
                return
            assert time.monotonic() < deadline, f"the tiers say {said}, their files hold {found}"
            time.sleep(0.3)  # for objects that are still on their way, and files of unfinished writes


@pytest.mark.timeout(120 + 30 * KILLS)
def test_kills_while_objects_move(start_gateway: Callable[..., RunningGateway], tmp_path: Path) -> None:
    folders = {"disk": tmp_path / "disk", "slow": tmp_path / "slow"}
    gateway = start_gateway(
        store={"window": "1MiB", "scrub": {"rate": "64MiB"}},
        tiers={
            "host": {"capacity": "8MiB", "prefault": 0},
            "disk": {"path": str(folders["disk"]), "capacity": "24MiB"},
            "slow": {"kind": "disk", "path": str(folders["slow"]), "capacity": "48MiB", "write": "on-evict"},
            "fs": {"path": str(tmp_path / "fs"), "keep_free": 0},
        },
    )
    choose = random.Random(20261126)
    requests = present = 0
    for kill in range(KILLS):
        load = Load(gateway.url, kill * 10)
        time.sleep(choose.uniform(0.05, 1.5))
        gateway.kill()
        load.join()
        requests += load.requests
        gateway.start()
        present += verify(gateway)
        if kill % SCAN_EVERY == 0:
            scan(gateway, folders)
    assert present > KILLS * 10, "hardly anything was there to be lost"
    assert requests > KILLS * 5, "hardly anything was done"
