"""Engines that are killed, stopped and starved while they read and write the gateway's memory.

Numbers of kills are for a minute of two cores.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from kvgate.client.local import Grant
from kvgate.client.sync import Client
from kvgate.errors import GatewayError, GatewayUnavailable
from kvgate.http.deadline import Deadline
from tests.gateways import ALPHA, RunningGateway
from tests.server.shm.engine import BUCKET, body_of, is_whole
from tests.server.shm.engine_process import Engine

KEYS = 12
ROUNDS = 40
SMALL = {"host": {"capacity": "36MiB"}}


@pytest.fixture
def start_engine() -> Iterator[Callable[..., Engine]]:
    """Starts engines, and kills those that are left at the end."""
    started: list[Engine] = []

    def start(gateway: RunningGateway, what: str, seed: object) -> Engine:
        started.append(Engine("tests.server.shm.engine", gateway, what, KEYS, seed))
        return started[-1]

    yield start
    for engine in started:
        engine.kill()


def fill(gateway: RunningGateway) -> None:
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        for key in range(KEYS):
            client.put(BUCKET, f"key-{key}", body_of(key, 0))


def verify(gateway: RunningGateway) -> None:
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        for key in range(KEYS):
            body = client.get(BUCKET, f"key-{key}").body
            assert body is not None
            assert is_whole(key, body), f"key {key} holds bytes that were never written"


def quiet(gateway: RunningGateway, attempts: int = 40) -> dict[str, float]:
    """The metrics once no grant is left."""
    for _ in range(attempts):
        metrics = gateway.metrics()
        if metrics["kvgate_shm_grants"] == metrics["kvgate_shm_engines"] == 0:
            return metrics
        time.sleep(0.1)
    raise AssertionError("grants or engines are left")


def test_readers_and_writers_that_are_killed_leave_nothing_behind(start_shm, start_engine) -> None:
    """Under pressure: the keys do not all fit into memory, so that slots are reused all the time."""
    gateway = start_shm(tiers=SMALL)
    fill(gateway)
    choose = random.Random(20261125)
    engines = {what: start_engine(gateway, what, f"{what}0") for what in ("read", "write")}
    done: list[str] = []
    for number in range(ROUNDS):
        what = choose.choice(("read", "write"))
        if choose.random() < 0.8:
            engines[what].wait_for(what[:2] if what == "read" else "wrote")
        time.sleep(choose.uniform(0, 0.08))
        done += engines[what].kill()
        engines[what] = start_engine(gateway, what, f"{what}{number + 1}")
    for engine in engines.values():
        done += engine.kill()
    assert done.count("read") > ROUNDS // 4
    assert done.count("wrote") > ROUNDS // 4
    metrics = quiet(gateway)
    assert metrics["kvgate_leases"] == 0
    verify(gateway)
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        for key in range(KEYS):
            client.delete(BUCKET, f"key-{key}")
        assert client.stats().nbytes == 0
    time.sleep(0.5)
    assert gateway.metrics()['kvgate_tier_used_bytes{tier="host"}'] == 0
    assert not metrics.get('kvgate_corrupt_copies_total{tier="host"}')


def test_reader_that_sleeps_past_its_lease_finds_its_copy_void(start_shm, start_engine, attach) -> None:
    gateway = start_shm(listen={"shm_lease": 1.5}, tiers=SMALL)
    fill(gateway)
    for number in range(4):
        engine = start_engine(gateway, "hold", number)
        engine.wait_for("held")
        engine.process.send_signal(signal.SIGSTOP)
        attachment = attach(gateway)
        with attachment.reserve(BUCKET, "key-0", 3_000_000, Deadline(5)) as reservation:
            reservation.fill([memoryview(body_of(0, 4))], Deadline(5))
            reservation.commit(Deadline(5))
        time.sleep(2.2)
        assert gateway.metrics()["kvgate_shm_expired_total"] >= number + 1
        fill(gateway)  # where the sleeper was to copy from
        engine.process.send_signal(signal.SIGCONT)
        engine.wait_for("void")
        engine.wait_for("read")  # its connection goes on, with a new grant
        engine.kill()
        attachment.close()
    quiet(gateway)


def test_writer_that_sleeps_past_its_lease_is_cut_and_writes_into_nobodys_chunk(start_shm, attach) -> None:
    gateway = start_shm(listen={"shm_lease": 1.0}, tiers=SMALL)
    fill(gateway)
    attachment = attach(gateway)
    reservation = attachment.reserve(BUCKET, "key-0", 3_000_000, Deadline(5))
    views = reservation.views
    time.sleep(1.8)
    with pytest.raises(GatewayUnavailable):
        attachment.ping(Deadline(5))
    fill(gateway)
    for _ in range(20):
        for view in views:
            view[:] = b"\xff" * len(view)
        verify(gateway)
    with pytest.raises(GatewayUnavailable):
        reservation.commit(Deadline(5))


def test_writer_that_goes_on_after_its_commit_is_caught(start_shm, attach) -> None:
    gateway = start_shm()
    attachment, reader = attach(gateway), attach(gateway, write=False)
    body = os.urandom(3_000_000)
    reservation = attachment.reserve(BUCKET, "key", len(body), Deadline(5))
    views = reservation.views
    reservation.fill([memoryview(body)], Deadline(5))
    reservation.commit(Deadline(5))
    views[0][1_500_000] ^= 1
    grant = reader.get(BUCKET, "key", Deadline(5))
    assert isinstance(grant, Grant)
    with grant, pytest.raises(GatewayError) as raised:
        grant.copy_into(memoryview(bytearray(len(body))), Deadline(5))
    assert raised.value.code == "BadDigest"
    found = body
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client, contextlib.suppress(GatewayError):
        found = client.get(BUCKET, "key").body  # from disk, where it went before the byte was changed, or nowhere
    assert found == body
    assert gateway.metrics()['kvgate_corrupt_copies_total{tier="host"}'] == 1


def test_contents_stay_right_while_memory_is_evicted_under_readers(start_shm, start_engine) -> None:
    gateway = start_shm(tiers=SMALL)
    fill(gateway)
    engines = [start_engine(gateway, what, number) for number, what in enumerate(("read", "read", "write"))]
    time.sleep(6)
    counts = [engine.kill() for engine in engines]
    assert sum(lines.count("read") for lines in counts) > 50
    assert counts[2].count("wrote") > 10
    assert gateway.metrics()['kvgate_evicted_objects_total{tier="host"}'] > 10
    quiet(gateway)
    verify(gateway)
