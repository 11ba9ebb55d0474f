"""Uploads behind the engine's back."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

import time
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from engine_adapters.breaker import Breaker
from engine_adapters.transformers.background_store import BackgroundStore, NewChunks
from engine_adapters.transformers.space import LiveSpace
from engine_adapters.transformers.stats import Ledger
from kvgate.chunk.chain import chain_hashes, root
from kvgate.client.sync import Client
from tests.engine_adapters.tcp_proxy import Proxy, Silent
from tests.engine_adapters.tiny import CHUNK_TOKENS, prompt, tiny_model, tiny_tokenizer
from tests.gateways import ALPHA, RunningGateway

pytestmark = pytest.mark.engine

CHUNKS = 3
JOB_NBYTES = 2 * 2 * 2 * CHUNKS * CHUNK_TOKENS * 16 * 4


def new_chunks(seed: int, salt: bytes = b"") -> NewChunks:
    space = LiveSpace(tiny_model(seed=seed), tiny_tokenizer(), chunk_tokens=CHUNK_TOKENS).now()
    chain = [root(space.digest, salt)]
    chain += chain_hashes(chain[0], prompt(seed, CHUNKS * CHUNK_TOKENS), CHUNK_TOKENS)
    kv = torch.randn(2, 2, 1, 2, CHUNKS * CHUNK_TOKENS, 16)
    return NewChunks(space, chain, 0, [(keys, values) for keys, values in kv])


def store_to(url: str, ledger: Ledger, **options: Any) -> BackgroundStore:
    client = Client(url, ALPHA.access_key, ALPHA.secret_key)
    values = {"max_held_nbytes": 10 * JOB_NBYTES, "put_deadline_s": 10.0}
    return BackgroundStore(client, "alpha-bucket", Breaker(), ledger, **(values | options))


def test_what_is_stored_once_is_not_stored_twice(gateway: RunningGateway) -> None:
    ledger = Ledger()
    store = store_to(gateway.url, ledger)
    job = new_chunks(300)
    for _ in range(2):
        assert store.submit(job)
        assert store.flush(20)
    store.close(1)
    assert ledger.totals().stored_chunks == CHUNKS
    assert ledger.totals().present_chunks == CHUNKS
    assert not ledger.totals().failed_chunks


def test_a_full_background_drops_at_once_and_counts() -> None:
    ledger = Ledger()
    with Silent() as server:
        store = store_to(server.url, ledger, max_held_nbytes=2 * JOB_NBYTES, put_deadline_s=2.0)
        job = new_chunks(301)
        start_s = time.monotonic()
        taken = [store.submit(job) for _ in range(5)]
        assert time.monotonic() - start_s < 2  # the deadline of its first request, for which it must not wait
        assert taken == [True, True, False, False, False]
        assert ledger.totals().dropped_chunks == {"background full": 3 * CHUNKS}
        assert store.flush(10)
        store.close(1)
    assert ledger.totals().failed_chunks == {"DeadlineExceeded": 1}
    assert ledger.totals().dropped_chunks["gateway unavailable"] == 2 * CHUNKS - 1


def test_flush_gives_up_in_time() -> None:
    with Silent() as server:
        store = store_to(server.url, Ledger(), put_deadline_s=2.0)
        store.submit(new_chunks(302))
        start_s = time.monotonic()
        assert not store.flush(0.2)
        assert time.monotonic() - start_s < 2
        store.close(5)


def test_close_drops_what_is_left_and_takes_no_more() -> None:
    ledger = Ledger()
    with Silent() as server:
        store = store_to(server.url, ledger, put_deadline_s=1.0)
        for job in [new_chunks(303) for _ in range(3)]:  # made before the first one's deadline begins
            store.submit(job)
        store.close(0.1)
        assert not store.submit(new_chunks(303))
        assert store.flush(5)
        store.close(0.1)
    assert ledger.totals().failed_chunks == {"DeadlineExceeded": 1}
    assert ledger.totals().dropped_chunks["closed"] == 3 * CHUNKS
    assert sum(ledger.totals().dropped_chunks.values()) == 4 * CHUNKS - 1


def test_a_gateway_that_lost_the_manifest_gets_it_again(gateway: RunningGateway) -> None:
    ledger = Ledger()
    store = store_to(gateway.url, ledger)
    job = new_chunks(304)
    store._writer._manifests.add(job.space.id)
    assert store.submit(job)
    assert store.flush(20)
    store.close(1)
    assert ledger.totals().stored_chunks == CHUNKS


def test_a_refusal_ends_the_job_and_is_counted_by_its_code(gateway: RunningGateway) -> None:
    ledger = Ledger()
    client = Client(gateway.url, ALPHA.access_key, ALPHA.secret_key)
    store = BackgroundStore(client, "no-such-bucket", Breaker(), ledger, max_held_nbytes=1 << 30, put_deadline_s=5)
    store.submit(new_chunks(305))
    assert store.flush(20)
    store.close(1)
    assert ledger.totals().failed_chunks == {"NoSuchBucket": 1}
    assert ledger.totals().dropped_chunks == {"NoSuchBucket": CHUNKS - 1}


def test_memory_is_let_go_once_it_is_sent(gateway: RunningGateway) -> None:
    import weakref

    store = store_to(gateway.url, Ledger())
    job = new_chunks(306)
    tensor = weakref.ref(job.layers[0][0])
    store.submit(job)
    del job
    assert store.flush(20)
    assert tensor() is None
    store.close(1)


def test_the_engine_does_not_wait_for_a_slow_gateway(gateway: RunningGateway) -> None:
    def slowly(piece: bytes) -> bytes:
        time.sleep(0.2)
        return piece

    ledger = Ledger()
    job = new_chunks(307)
    with Proxy(gateway.port, slowly) as proxy:
        store = store_to(proxy.url, ledger)
        store.submit(job)
        assert ledger.totals().stored_chunks == 0, "it has waited for the first chunk"
        assert store.flush(20)
        store.close(1)
    assert ledger.totals().stored_chunks == CHUNKS


def test_a_defect_does_not_end_the_thread(gateway: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    store = store_to(gateway.url, ledger)
    broken = new_chunks(308)
    broken.layers[0][0].resize_(0)
    store.submit(broken)
    store.submit(new_chunks(309))
    assert store.flush(20)
    store.close(1)
    assert "new chunks are not stored" in caplog.text
    assert ledger.totals().failed_chunks.total() == 1
    assert ledger.totals().dropped_chunks == {"defect": CHUNKS - 1}
    assert ledger.totals().stored_chunks == CHUNKS
