"""The tier's threads: urgent calls first, stores in half of them at most, and every call made or dropped once."""

from __future__ import annotations

import threading

from engine_adapters.vllm.tier.pool import Pool, Urgency

LIMIT_S = 30.0


def test_stores_that_hang_leave_threads_to_loads() -> None:
    pool, release, loaded = Pool(4), threading.Event(), threading.Event()
    for _ in range(8):
        pool.submit(Urgency.STORE, lambda dropped: dropped or release.wait(LIMIT_S))
    pool.submit(Urgency.LOAD, lambda dropped: loaded.set())
    assert loaded.wait(LIMIT_S)
    release.set()
    pool.close()


def test_what_is_urgent_overtakes() -> None:
    pool, begun = Pool(2), threading.Barrier(3)
    release, release_other = threading.Event(), threading.Event()
    order: list[str] = []

    def occupy_until(released: threading.Event) -> None:
        begun.wait(LIMIT_S)
        released.wait(LIMIT_S)

    pool.submit(Urgency.LOAD, lambda dropped: occupy_until(release))
    pool.submit(Urgency.LOAD, lambda dropped: occupy_until(release_other))
    begun.wait(LIMIT_S)
    pool.submit(Urgency.STORE, lambda dropped: (order.append("store"), release_other.set()))
    pool.submit(Urgency.LOAD, lambda dropped: order.append("load"))
    pool.submit(Urgency.LOOKUP, lambda dropped: order.append("lookup"))
    release.set()
    pool.wait_idle()
    assert order == ["lookup", "load", "store"]
    pool.close()


def test_close_drops_what_waits_and_waits_for_what_runs() -> None:
    pool, begun, release = Pool(2), threading.Event(), threading.Event()
    seen: list[tuple[str, bool]] = []

    def run(dropped: bool) -> None:
        begun.set()
        release.wait(LIMIT_S)
        seen.append(("first", dropped))

    pool.submit(Urgency.STORE, run)
    pool.submit(Urgency.STORE, lambda dropped: seen.append(("second", dropped)))
    assert begun.wait(LIMIT_S)
    closing = threading.Thread(target=pool.close)
    closing.start()
    while ("second", True) not in seen:
        threading.Event().wait(0.01)
    assert closing.is_alive()
    release.set()
    closing.join(LIMIT_S)
    pool.submit(Urgency.LOAD, lambda dropped: seen.append(("third", dropped)))
    assert seen == [("second", True), ("first", False), ("third", True)]


def test_a_call_that_raises_ends_no_thread(caplog) -> None:
    pool, done = Pool(2), threading.Event()

    def fail(dropped: bool) -> None:
        raise RuntimeError("a defect")

    for _ in range(4):
        pool.submit(Urgency.LOAD, fail)
    pool.wait_idle()
    pool.submit(Urgency.LOAD, lambda dropped: done.set())
    assert done.wait(LIMIT_S)
    pool.close()
    assert caplog.text.count("a defect") >= 4
