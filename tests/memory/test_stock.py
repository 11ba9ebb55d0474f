"""Memory that is made ready before it is asked for."""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
from collections.abc import Callable

import pytest

from kvgate.memory import PAGE_NBYTES, Arena
from kvgate.memory.segment import Segment

MiB = 1 << 20


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stocked(capacity_nbytes: int, segment_nbytes: int, prefault_nbytes: int) -> Arena:
    arena = Arena(capacity_nbytes, segment_nbytes, prefault_nbytes)
    arena.start(delay_s=0)
    return arena


def memfds() -> dict[int, int]:
    """The bytes of each memfd of arenas that this process has, whoever mapped it, by inode."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:kvgate"):
                stat = os.stat(f"/proc/self/fd/{name}")
                found[stat.st_ino] = stat.st_blocks * 512
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def memfd_nbytes() -> Callable[[], int]:
    """The memory in memfds that the test has made; views that other tests have left may keep theirs."""
    before = memfds().keys()
    return lambda: sum(nbytes for inode, nbytes in memfds().items() if inode not in before)


def pages_in_memory(segment: Segment) -> int:
    """How many pages of a segment have been populated."""
    pages = segment.nbytes // PAGE_NBYTES
    states = (ctypes.c_ubyte * pages)()
    start = (ctypes.c_char * segment.nbytes).from_buffer(segment.view)
    assert (
        ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(segment.nbytes), states)
        == 0
    )
    return sum(state & 1 for state in states)


def test_segment_from_the_stock_needs_no_first_touch_and_holds_zeros() -> None:
    arena = stocked(64 * MiB, 8 * MiB, 16 * MiB)
    wait_until(lambda: arena.ready_nbytes == 16 * MiB)
    with arena.reserve("a", MiB) as lease:
        (segment,) = arena.segments("a")
        assert pages_in_memory(segment) == segment.nbytes // PAGE_NBYTES
        assert all(view == bytes(len(view)) for view in lease.views)
    arena.close()


def test_without_prefault_memory_comes_when_it_is_touched() -> None:
    arena = stocked(64 * MiB, 8 * MiB, 0)
    with arena.reserve("a", MiB):
        (segment,) = arena.segments("a")
        assert pages_in_memory(segment) == 0
    assert not any(thread.name == "kvgate-stock" for thread in threading.enumerate())
    arena.close()


def test_stock_is_filled_up_again_and_never_over_the_capacity(memfd_nbytes: Callable[[], int]) -> None:
    arena = stocked(32 * MiB, 4 * MiB, 16 * MiB)
    leases = []
    for taken in range(1, 9):
        wait_until(lambda taken=taken: arena.ready_nbytes == min(16, 36 - 4 * taken) * MiB)  # type: ignore[misc]
        leases.append(arena.reserve("a", 4 * MiB))
        assert memfd_nbytes() <= 32 * MiB
    assert arena.ready_nbytes == 0
    assert arena.headroom("a") == 0
    assert memfd_nbytes() == 32 * MiB
    for lease in leases:
        lease.release()
    arena.close()
    assert memfd_nbytes() == 0


def test_burst_takes_what_is_being_populated_and_stays_within_the_capacity(memfd_nbytes: Callable[[], int]) -> None:
    arena = stocked(64 * MiB, 8 * MiB, 64 * MiB)
    leases = [arena.reserve("a", 8 * MiB) for _ in range(8)]
    for lease in leases:
        for view in lease.views:
            view[:] = b"x" * len(view)
    time.sleep(0.02)
    assert arena.ready_nbytes == 0
    assert memfd_nbytes() == 64 * MiB
    assert all(view == b"x" * len(view) for lease in leases for view in lease.views), "populating changes nothing"
    for lease in leases:
        lease.release()
    arena.close()


def test_capacity_goes_from_owner_to_owner_as_new_zeroed_segments() -> None:
    arena = stocked(16 * MiB, 2 * MiB, 8 * MiB)
    for owner in ("a", "b", "a"):
        with arena.reserve(owner, arena.headroom(owner)) as lease:
            assert lease.nbytes == 16 * MiB
            assert all(view == bytes(len(view)) for view in lease.views)
            for view in lease.views:
                view[:] = b"\xff" * len(view)
    arena.close()


def test_close_ends_the_thread_in_the_middle_of_its_work(memfd_nbytes: Callable[[], int]) -> None:
    arena = stocked(4096 * MiB, 512 * MiB, 4096 * MiB)
    wait_until(lambda: arena.ready_nbytes > 0)
    began = time.monotonic()
    arena.close()
    assert time.monotonic() - began < 0.5, "the rest of 4 GiB would take seconds"
    assert not any(thread.name == "kvgate-stock" for thread in threading.enumerate())
    assert memfd_nbytes() == 0


def test_populating_leaves_the_interpreter_to_others() -> None:
    """A thread that only counts gets on while another populates in one call."""
    segment = Segment(0, 256 * MiB)
    counted = 0
    populating = threading.Thread(target=segment.populate, args=(0, segment.nbytes))
    populating.start()
    while populating.is_alive():
        counted += 1
        time.sleep(0.0005)
    assert counted > 10
    populating.join()
    segment.close()


def test_segment_that_is_closed_meanwhile_is_left_alone() -> None:
    segment = Segment(0, 4 * MiB)
    segment.close()
    segment.populate(0, 4 * MiB)


def test_refusal_of_the_system_ends_the_stock_only(caplog: pytest.LogCaptureFixture) -> None:
    arena = Arena(64 * MiB, 8 * MiB, 16 * MiB)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        arena.start(delay_s=0)
        wait_until(lambda: not any(thread.name == "kvgate-stock" for thread in threading.enumerate()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "Too many open files" in caplog.text
    with arena.reserve("a", 64 * MiB) as lease:
        assert lease.nbytes == 64 * MiB
    arena.close()
