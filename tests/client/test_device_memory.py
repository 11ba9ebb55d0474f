"""What a client maps of a GPU's memory, in every order of what gateway and engine do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvgate.client.local.device_memory import DeviceMemory
from kvgate.client.local.gpu import Gpu
from kvgate.errors import GatewayUnavailable
from kvgate.kernels.device import DeviceError
from kvgate.kernels.pieces import Extent
from kvgate.memory.allocator import Extent as Place
from tests.kernels.on_cpu import CpuDevice

NBYTES = 8 * 4096


class Mapping(CpuDevice):
    """A GPU that maps other processes' memory: an address for each handle."""

    def __init__(self) -> None:
        super().__init__()
        self.mapped: dict[int, bytes] = {}
        self.refuses = False

    def open_export(self, handle: bytes) -> int:
        if self.refuses:
            raise DeviceError("refused")
        assert handle not in self.mapped.values(), "CUDA would count a second one"
        address = int.from_bytes(handle, "big") * (1 << 30)
        self.mapped[address] = handle
        return address

    def close_export(self, address: int) -> None:
        del self.mapped[address]


def handle_of(segment_id: int) -> bytes:
    return (segment_id + 1).to_bytes(8, "big")


class Machine(RuleBasedStateMachine):
    """Segments by number; each has been handed on, and may be gone; grants in use lie in some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Mapping()
        self.told: list[int] = []
        self.ended = 0
        self.memory = DeviceMemory(Gpu(self.device), self.told.extend)
        self.handed = 0
        self.gone: set[int] = set()
        self.grants: list[list[Place]] = []
        self.closed = False

    @precondition(lambda self: not self.closed)
    @rule()
    def hand_on(self) -> None:
        self.memory.add(self.handed, NBYTES, handle_of(self.handed))
        self.handed += 1

    @precondition(lambda self: not self.closed and len(self.gone) < self.handed)
    @rule(data=st.data())
    def grant(self, data: Any) -> None:
        there = sorted(set(range(self.handed)) - self.gone)
        chosen = data.draw(st.lists(st.sampled_from(there), min_size=1, max_size=3))
        places = [Place(segment_id, 4096 * (index + 1), 4096) for index, segment_id in enumerate(chosen)]
        nbytes = 4096 * len(places) - data.draw(st.integers(0, 4095))
        extents = self.memory.map(places, nbytes)
        assert sum(extent.nbytes for extent in extents) == nbytes
        for extent, place in zip(extents, places, strict=True):
            assert self.device.mapped[extent.address - place.offset] == handle_of(place.segment_id)
        self.grants.append(places)

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        self.memory.unmap(self.grants.pop(data.draw(st.integers(0, len(self.grants) - 1))))

    @precondition(lambda self: not self.closed and self.handed)
    @rule(data=st.data())
    def tell_gone(self, data: Any) -> None:
        gone = data.draw(st.sets(st.integers(0, self.handed - 1)))
        self.memory.gone(gone | {10_000})
        self.gone |= gone

    @rule()
    def close(self) -> None:
        def end() -> None:
            self.ended += 1

        self.memory.close(end)
        self.closed = True

    @invariant()
    def nothing_is_unmapped_that_is_used_and_the_gateway_hears_the_rest(self) -> None:
        used = {place.segment_id for grant in self.grants for place in grant}
        mapped = set(self.device.mapped.values())
        assert {handle_of(segment_id) for segment_id in used} <= mapped
        if self.closed:
            assert mapped == {handle_of(segment_id) for segment_id in used}
            assert self.ended == (not used), "the connection ends with the last use"
        else:
            assert sorted(self.told) == sorted(self.gone - used), "each is told once, and only when it is unmapped"
            assert len(self.memory) == self.handed - len(self.told)


TestDeviceMemory = Machine.TestCase
TestDeviceMemory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_was_not_handed_on_or_is_too_small_is_refused_and_not_counted_as_used() -> None:
    device, told = Mapping(), list[int]()
    memory = DeviceMemory(Gpu(device), told.extend)
    memory.add(1, NBYTES, handle_of(1))
    for places, nbytes in (
        ([Place(2, 0, 4096)], 10),
        ([Place(1, 0, 4096), Place(2, 0, 4096)], 5000),
        ([Place(1, 0, 4096)], 4097),
        ([Place(1, NBYTES - 4096, 8192)], 8192),
    ):
        with pytest.raises(GatewayUnavailable):
            memory.map(places, nbytes)
    device.refuses = True
    memory.add(3, NBYTES, handle_of(3))
    with pytest.raises(DeviceError):
        memory.map([Place(1, 0, 4096), Place(3, 0, 4096)], 8192)
    memory.gone([1, 3])
    assert sorted(told) == [1, 3]
    assert not device.mapped


def test_extents_end_with_the_object() -> None:
    memory = DeviceMemory(Gpu(Mapping()), lambda _: None)
    memory.add(0, NBYTES, handle_of(0))
    extents = memory.map([Place(0, 4096, 4096), Place(0, 16384, 4096)], 5000)
    assert extents == [Extent((1 << 30) + 4096, 4096), Extent((1 << 30) + 16384, 904)]
