"""The arena with real memory: owners, the system's refusal, threads, and its end."""

from __future__ import annotations

import os
import random
import resource
import sys
import threading
from collections.abc import Iterator

import pytest

from kvgate.errors import ArenaFull
from kvgate.memory import PAGE_NBYTES, Arena, Lease
from kvgate.memory.owner import engine_owner

PAGE = PAGE_NBYTES
MiB = 1 << 20


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def same_descriptors_before_and_after() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def test_next_owner_of_the_capacity_never_sees_old_bytes() -> None:
    arena = Arena(4 * MiB, MiB // 2)
    for owner in ("a", "b", "a"):
        with arena.reserve(owner, arena.headroom(owner)) as lease:
            assert lease.nbytes == 4 * MiB
            assert all(view == bytes(len(view)) for view in lease.views)
            for view in lease.views:
                view[:] = b"\xff" * len(view)
    arena.close()


def test_segments_never_serve_two_owners() -> None:
    arena = Arena(8 * MiB, MiB)
    leases = [arena.reserve(owner, PAGE) for owner in "abc" for _ in range(3)]
    for owner in "abc":
        (segment,) = arena.segments(owner)
        assert {extent.segment_id for lease in leases if lease.owner == owner for extent in lease.extents} == {
            segment.id
        }
        assert os.fstat(segment.fd).st_size == segment.nbytes == MiB
    assert arena.segments("nobody") == []
    assert arena.segment_count == 3
    assert arena.headroom("a") == 6 * MiB - 3 * PAGE
    assert arena.headroom("nobody") == 5 * MiB
    for lease in leases:
        lease.release()
    arena.close()


def test_memory_of_a_retired_segment_goes_back_to_the_system() -> None:
    arena = Arena(MiB, MiB)
    with arena.reserve("a", MiB) as lease:
        for view in lease.views:
            view[:] = b"x" * len(view)
        engines = [os.dup(segment.fd) for segment in arena.segments("a")]
    assert sum(os.fstat(fd).st_blocks for fd in engines) * 512 == MiB
    arena.reserve("b", MiB).release()
    arena.close()
    assert sum(os.fstat(fd).st_blocks for fd in engines) == 0
    for fd in engines:
        os.close(fd)


def test_what_engines_of_a_tenant_fill_is_the_tenants() -> None:
    arena = Arena(8 * MiB, MiB)
    with arena.reserve("acme", MiB) as own, arena.reserve(engine_owner("acme", 7), 5000), arena.reserve("acm", MiB):
        assert arena.used_by("acme") == MiB + 2 * PAGE
        own.trim(1)
        assert arena.used_by("acme") == 3 * PAGE
    assert arena.used_by("acme") == arena.used_by("nobody") == 0
    arena.close()


def test_small_arena_has_room_for_several_owners() -> None:
    arena = Arena(8 * MiB + 1)
    leases = [arena.reserve(f"tenant-{i}", 1) for i in range(7)]
    assert arena.capacity_nbytes == 8 * MiB
    assert arena.headroom("another") > 0
    for lease in leases:
        lease.release()
    arena.close()


@pytest.mark.parametrize(("capacity_nbytes", "segment_nbytes"), [(0, PAGE), (PAGE - 1, PAGE), (PAGE, 0), (-PAGE, PAGE)])
def test_arena_of_less_than_a_page_is_refused(capacity_nbytes: int, segment_nbytes: int) -> None:
    with pytest.raises(ValueError, match="at least 4096"):
        Arena(capacity_nbytes, segment_nbytes)


def test_negative_reservation_is_refused() -> None:
    arena = Arena(MiB)
    with pytest.raises(ValueError, match="-1 bytes"):
        arena.reserve("a", -1)
    arena.close()


@pytest.mark.parametrize("spare_descriptors", range(6))
def test_refusal_of_the_system_takes_nothing(spare_descriptors: int) -> None:
    """Three segments are needed, of two descriptors each; the process runs out before each of the six."""
    arena = Arena(8 * MiB, MiB)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = [os.dup(0)]  # in every gap below the highest number, which other tests have left
    while fillers[-1] < highest:
        fillers.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + spare_descriptors, limits[1]))
    try:
        with pytest.raises(ArenaFull, match="Too many open files"):
            arena.reserve("a", 3 * MiB)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)
    assert arena.used_nbytes == arena.lease_count == 0
    assert arena.segment_count == spare_descriptors // 2
    assert arena.headroom("a") == arena.headroom("b") == 8 * MiB
    with arena.reserve("b", 8 * MiB) as lease:
        assert lease.nbytes == 8 * MiB
    arena.close()


def test_close_tolerates_open_leases_and_living_views() -> None:
    arena = Arena(8 * MiB, MiB)
    lease = arena.reserve("a", 2 * MiB)
    (piece,) = lease.slices(5, 9)
    arena.close()
    arena.close()
    piece[:] = b"late"
    assert b"".join(lease.slices(5, 9)) == b"late"
    with pytest.raises(ArenaFull, match="closed"):
        arena.reserve("a", 1)
    with pytest.raises(ArenaFull, match="closed"):
        lease.extend(1)
    assert arena.headroom("a") == 0
    assert arena.segments("a") == []
    lease.trim(MiB)
    with lease.share() as sharer:
        assert sharer.nbytes == MiB
    lease.release()
    assert bytes(piece) == b"late"
    piece.release()


def test_threads_share_the_arena() -> None:
    """Four threads reserve, share, resize and release; every slot keeps the bytes that its thread wrote."""
    arena = Arena(16 * MiB, MiB)
    failures: list[BaseException] = []

    def mark(lease: Lease, tag: bytes) -> None:
        for view in lease.views:
            view[:8] = view[-8:] = tag

    def intact(lease: Lease, tag: bytes) -> bool:
        return all(view[:8] == view[-8:] == tag for view in lease.views)

    def work(number: int) -> None:
        random_ = random.Random(number)
        held: list[tuple[Lease, bytes]] = []
        try:
            for step in range(1500):
                tag = number.to_bytes(4) + step.to_bytes(4)
                if len(held) < 8:
                    try:
                        lease = arena.reserve(f"tenant-{number % 3}", PAGE * random_.randint(1, 200))
                    except ArenaFull:
                        continue
                    mark(lease, tag)
                    held.append((lease, tag))
                else:
                    lease, old_tag = held.pop(random_.randrange(len(held)))
                    assert intact(lease, old_tag)
                    if random_.random() < 0.5:
                        with lease.share() as sharer:
                            lease.release()
                            assert intact(sharer, old_tag)
                    else:
                        lease.trim(lease.nbytes // PAGE // 2 * PAGE)
                        lease.release()
        except BaseException as error:
            failures.append(error)
        finally:
            for lease, _ in held:
                lease.release()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert arena.used_nbytes == arena.lease_count == 0
    assert arena.headroom("another") == 16 * MiB
    arena.close()
