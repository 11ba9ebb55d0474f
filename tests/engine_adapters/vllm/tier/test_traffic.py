"""The tier's calls to real gateways: whole chunks or none, a result for every job, and a deadline that is paid once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from engine_adapters.vllm.tier.config import TierConfig
from engine_adapters.vllm.tier.lookups import Question
from engine_adapters.vllm.tier.traffic import Answer, Finished, GroupSpace, Job, Traffic
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from tests.client.chunks import SPACE
from tests.faults.proxy import NONE, Bandwidth, Blackhole, Corrupt, FaultProxy, Status
from tests.gateways import ALPHA, RunningGateway, free_port

BUCKET = "alpha-bucket"
ROW_NBYTES = 64 * 1024
LIMIT_S = 60.0
LATE_S = 0.5

_numbers = count()


def space(packing: str) -> Space:
    opaque = {"dtype": "U8", "layers": 1, "kv_heads": 1, "attention": "mla", "chunk_tokens": 32}
    shape = {"head_dim": ROW_NBYTES // 32, "packing": packing, "layer_set": "all", "codec": "raw"}
    scheme = {"hash_scheme": "vllm-sha256-cbor-v1", "layout_version": 2}
    return Space.from_manifest(SPACE.manifest() | opaque | shape | scheme)


SPACES = {
    0: GroupSpace(space("vllm-offload-a"), sees_all=True),
    1: GroupSpace(space("vllm-offload-b"), sees_all=False),
}


@contextmanager
def traffic_to(url: str, **options: Any) -> Iterator[Traffic]:
    config = TierConfig(bucket=BUCKET, **({"lookup_deadline": LATE_S, "load_deadline": LATE_S * 4} | options))
    traffic = Traffic(Client(url, ALPHA.access_key, ALPHA.secret_key, max_connections=8), config, SPACES)
    try:
        yield traffic
    finally:
        traffic.close()


def new_keys(number: int, group: int = 0) -> tuple[bytes, ...]:
    """OffloadKeys that no other test has: a hash, and the group of layers."""
    return tuple(os.urandom(32) + group.to_bytes(4, "big") for _ in range(number))


def job(keys: Sequence[bytes], memory: bytearray, *, is_load: bool) -> Job:
    view = memoryview(memory)
    rows = tuple(view[index * ROW_NBYTES : (index + 1) * ROW_NBYTES] for index in range(len(keys)))
    return Job(next(_numbers), tuple(keys), rows, is_load, time.monotonic())


def ask(traffic: Traffic, *keys: bytes) -> Answer:
    traffic.ask(Question(int.from_bytes(keys[0][-4:], "big"), keys))
    return traffic.answers.get(timeout=LIMIT_S)


def store(traffic: Traffic, keys: Sequence[bytes]) -> tuple[bytearray, Finished]:
    memory = bytearray(os.urandom(len(keys) * ROW_NBYTES))
    traffic.store(job(keys, memory, is_load=False))
    return memory, traffic.finished.get(timeout=LIMIT_S)


def load(traffic: Traffic, keys: Sequence[bytes]) -> tuple[bytearray, Finished]:
    memory = bytearray(len(keys) * ROW_NBYTES)
    traffic.load(job(keys, memory, is_load=True))
    return memory, traffic.finished.get(timeout=LIMIT_S)


def outcomes(traffic: Traffic) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    while not traffic.events.empty():
        for outcome, number in traffic.events.get().items():
            counts[outcome] = counts.get(outcome, 0) + number
    return counts


def test_what_is_stored_is_found_and_loaded_into_its_rows(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    keys = new_keys(6) + new_keys(3, group=1)
    with traffic_to(gateway.url) as traffic:
        assert not ask(traffic, *keys[:6]).present
        written, finished = store(traffic, keys)
        assert finished.new == set(keys)
        found = ask(traffic, *keys[:6])
        assert found.present == set(keys[:6])
        (lease,) = found.leases
        assert lease.keys == set(keys[:6])
        read, finished = load(traffic, keys)
        assert (read, finished.done) == (written, set(keys))
        traffic.release([lease.name])
        traffic.drain()
        assert outcomes(traffic) == {
            ("lookup", "absent"): 6,
            ("lookup", "present"): 6,
            ("store", "stored"): 9,
            ("load", "loaded"): 9,
        }
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        assert client.stats().leases == 0


def test_the_first_writer_wins_and_the_second_is_no_failure(gateway: RunningGateway) -> None:
    keys = new_keys(2)
    with traffic_to(gateway.url) as traffic:
        written, _ = store(traffic, keys)
        _, finished = store(traffic, keys)  # other bytes
        assert (finished.done, finished.new) == (set(keys), set())
        assert load(traffic, keys)[0] == written


def test_a_group_that_sees_a_window_finds_chunks_behind_gaps(gateway: RunningGateway) -> None:
    keys = new_keys(5, group=1)
    with traffic_to(gateway.url) as traffic:
        store(traffic, [keys[1], keys[2], keys[4]])
        found = ask(traffic, *keys)
        assert found.present == {keys[1], keys[2], keys[4]}
        whole = new_keys(5)
        store(traffic, [whole[0], whole[2]])
        assert ask(traffic, *whole).present == {whole[0]}, "a group that sees all tokens has no use for more"


def test_a_gateway_that_is_away_is_asked_once(gateway: RunningGateway) -> None:
    with traffic_to(f"http://127.0.0.1:{free_port()}") as traffic:
        assert not ask(traffic, *new_keys(3)).present
        assert not traffic.may_look_up
        _, finished = store(traffic, new_keys(2))
        assert not finished.done
        _, finished = store(traffic, new_keys(2))
        assert outcomes(traffic) == {("lookup", "unavailable"): 3, ("store", "unavailable"): 2, ("store", "dropped"): 2}


def test_a_gateway_that_is_silent_costs_the_deadline_once(gateway: RunningGateway) -> None:
    with FaultProxy(gateway.port) as proxy, traffic_to(f"http://127.0.0.1:{proxy.port}") as traffic:
        proxy.fault = Blackhole()
        start_s = time.monotonic()
        assert not ask(traffic, *new_keys(1)).present
        assert time.monotonic() - start_s >= LATE_S
        assert not traffic.may_look_up
        assert not ask(traffic, *new_keys(1)).present
        assert outcomes(traffic) == {("lookup", "unavailable"): 1, ("lookup", "dropped"): 1}
        proxy.fault = NONE


def test_a_load_that_is_late_ends_with_its_deadline_and_nothing_is_looked_up_for_a_while(
    gateway: RunningGateway,
) -> None:
    keys = new_keys(8)
    with FaultProxy(gateway.port) as proxy, traffic_to(f"http://127.0.0.1:{proxy.port}") as traffic:
        written, _ = store(traffic, keys)
        proxy.fault = Bandwidth(nbytes_per_s=ROW_NBYTES)
        memory, finished = load(traffic, keys)
        assert len(finished.done) < 8
        assert finished.seconds < LATE_S * 4 + LIMIT_S / 4
        seen = bytes(memory)
        for index, key in enumerate(keys):
            part = slice(index * ROW_NBYTES, (index + 1) * ROW_NBYTES)
            assert key not in finished.done or seen[part] == written[part]
        assert not traffic.may_look_up
        proxy.fault = NONE
        time.sleep(0.2)
        assert bytes(memory) == seen, "somebody wrote into the rows of a job that had ended"


def test_corrupted_chunks_are_not_done(gateway: RunningGateway) -> None:
    keys = new_keys(8)
    with FaultProxy(gateway.port) as proxy, traffic_to(f"http://127.0.0.1:{proxy.port}") as traffic:
        written, _ = store(traffic, keys)
        proxy.fault = Corrupt(every=3 * ROW_NBYTES)
        memory, finished = load(traffic, keys)
        assert len(finished.done) < 8
        for index, key in enumerate(keys):
            part = slice(index * ROW_NBYTES, (index + 1) * ROW_NBYTES)
            assert key not in finished.done or memory[part] == written[part]
        assert outcomes(traffic)["load", "broken"] >= 1


def test_a_gateway_that_is_full_is_left_alone_for_a_while(gateway: RunningGateway) -> None:
    keys = new_keys(3)
    with FaultProxy(gateway.port) as proxy, traffic_to(f"http://127.0.0.1:{proxy.port}") as traffic:
        store(traffic, new_keys(1))
        proxy.fault = Status(503)
        store(traffic, keys)
        store(traffic, new_keys(3))
        told = outcomes(traffic)
        assert told["store", "dropped"] == 3
        assert traffic.may_look_up, "what is full can be read"


def test_every_job_has_a_result_when_the_tier_is_closed(gateway: RunningGateway) -> None:
    with FaultProxy(gateway.port) as proxy:
        proxy.fault = Blackhole()
        with traffic_to(f"http://127.0.0.1:{proxy.port}", threads=2, store_deadline=1.0, load_deadline=1.0) as traffic:
            for _ in range(5):
                traffic.load(job(new_keys(1), bytearray(ROW_NBYTES), is_load=True))
                traffic.store(job(new_keys(1), bytearray(ROW_NBYTES), is_load=False))
        assert traffic.finished.qsize() == 10
        proxy.fault = NONE


def test_a_drain_gives_up_what_has_not_begun_and_the_tier_goes_on(gateway: RunningGateway) -> None:
    keys = new_keys(20)
    with traffic_to(gateway.url, threads=2) as traffic:
        memories = [bytearray(os.urandom(ROW_NBYTES)) for _ in keys]
        for key, memory in zip(keys, memories, strict=True):
            traffic.store(job([key], memory, is_load=False))
        traffic.drain()
        assert traffic.finished.qsize() == 20
        _, finished = store(traffic, new_keys(1))
        assert finished
