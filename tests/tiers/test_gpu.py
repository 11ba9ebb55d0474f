"""The GPU tier on a device whose memory is the host's: everything but the GPU. `make gpu` runs it on a real one."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from kvgate.config import Size
from kvgate.errors import ConfigError, CorruptCopy, NotInTier, TierError, TierFull
from kvgate.kernels.cupy_device import CupyDevice
from kvgate.kernels.device import Copy, Device, DeviceError, NoDevice
from kvgate.kernels.pieces import Extent
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.tiers.base import Exporting, Tier
from kvgate.tiers.gpu import GpuConfig, GpuTier, facing
from tests.contracts.tier import TierContract, content, describe, filled
from tests.kernels.on_cpu import CpuDevice

CAPACITY = 64 << 20


async def started(open_device: Callable[[int], Device], **options: int) -> GpuTier:
    config = GpuConfig(capacity=Size(CAPACITY), segment=Size(8 << 20), **options)
    tier = GpuTier(config, open_device)
    await tier.start(lambda _: None)
    return tier


def exported(tier: GpuTier, device: CpuDevice, segment_id: int) -> bytes:
    """A whole segment, as an engine finds it that maps its handle."""
    found = tier.hand_on(segment_id)
    assert found is not None
    nbytes, handle = found
    address = device.open_export(handle)
    shown = ctypes.string_at(address, nbytes)
    device.close_export(address)
    tier.take_back(segment_id)
    return shown


class TestGpuTierOnTheCpu(TierContract):
    survives = False
    capacity_nbytes = CAPACITY

    @pytest.fixture
    def device(self) -> CpuDevice:
        return CpuDevice()

    @pytest.fixture
    async def tier(self, device: CpuDevice) -> AsyncIterator[Tier]:
        tier = await started(lambda _: device)
        yield tier
        await tier.close()
        await tier.close()
        assert not device.allocations
        assert not device.registrations

    async def test_flipped_bit_is_noticed(self, tier: GpuTier, arena: Arena, device: CpuDevice) -> None:
        record, copy = await self.put(tier, arena, "k", bytes(2 * BLOCK_NBYTES))
        (address,) = device.allocations
        ctypes.memset(address + BLOCK_NBYTES + 5, 1, 1)
        with pytest.raises(CorruptCopy):
            await self.get(tier, arena, record, copy)
        assert await self.get(tier, arena, record, copy, 0, BLOCK_NBYTES) == bytes(BLOCK_NBYTES)

    async def test_memory_of_one_tenant_is_never_shown_to_another(
        self, tier: GpuTier, arena: Arena, device: CpuDevice
    ) -> None:
        record, copy = await self.put(tier, arena, "k", b"\xff" * (60 << 20))
        await tier.delete(record, copy)
        upload = await tier.begin("another", CAPACITY)
        with filled(arena, b"x") as lease:
            await upload.write(lease, 0, 1)
        other = await upload.finish(record, copy.blocks)
        lease, _ = tier.lend(other)
        assert lease.owner == "another"
        for segment_id, _, _ in lease.extents:
            assert exported(tier, device, segment_id).strip(b"\0") in (b"x", b"")
        lease.release()
        await tier.delete(record, other)

    async def test_what_is_lent_lies_where_it_lay_until_it_is_released(
        self, tier: GpuTier, arena: Arena, device: CpuDevice
    ) -> None:
        body = bytes(range(256)) * 40_000
        record, copy = await self.put(tier, arena, "k", body)
        assert isinstance(tier, Exporting)
        lease, blocks = tier.lend(copy)
        await tier.delete(record, copy)
        used = tier.usage().nbytes
        shown = b"".join(
            exported(tier, device, each.segment_id)[each.offset : each.offset + each.nbytes] for each in lease.extents
        )
        assert shown[: len(body)] == body
        assert blocks == copy.blocks
        lease.release()
        lease.release()
        assert tier.usage().nbytes == used - -(-len(body) // 4096) * 4096
        with pytest.raises(NotInTier):
            tier.lend(copy)

    async def test_memory_that_an_engine_may_map_is_not_given_back(
        self, tier: GpuTier, arena: Arena, device: CpuDevice
    ) -> None:
        record, copy = await self.put(tier, arena, "k", b"\xff" * (60 << 20))
        lease, _ = tier.lend(copy)
        engines = 2
        handed = {each.segment_id for each in lease.extents}
        for segment_id in [*handed] * engines:
            assert tier.hand_on(segment_id) is not None
            assert not tier.is_retired(segment_id)
        lease.release()
        await tier.delete(record, copy)
        before = set(device.allocations)

        async def write_as_another() -> None:
            upload = await tier.begin("another", CAPACITY)
            try:
                with filled(arena, b"x") as some:
                    await upload.write(some, 0, 1)
            finally:
                await upload.abort()

        for engine in range(engines):
            with pytest.raises(TierFull, match="still map"):
                await write_as_another()
            assert set(device.allocations) >= before
            assert all(tier.is_retired(segment_id) for segment_id in handed)
            for segment_id in handed if engine == 0 else list(handed)[:-1]:
                tier.take_back(segment_id)
        with pytest.raises(TierFull, match="still map"):
            await write_as_another()
        assert len(before & set(device.allocations)) == 1
        tier.take_back(list(handed)[-1])
        await write_as_another()
        assert not before & set(device.allocations)
        assert all(tier.is_retired(segment_id) for segment_id in handed)

    async def test_no_allocation_is_one_that_cuda_may_put_beside_another(self, arena: Arena) -> None:
        device = CpuDevice()
        tier = GpuTier(GpuConfig(capacity=Size((9 << 20) + 4096), segment=Size(5 << 20)), lambda _: device)
        await tier.start(lambda _: None)
        assert tier.limit() == 8 << 20
        kept = [await self.put(tier, arena, f"k{number}", bytes(1 << 20)) for number in range(8)]
        assert sorted(device.allocations.values()) == [2 << 20, 6 << 20]
        for record, copy in kept:
            await tier.delete(record, copy)
            self.items.remove((record, copy))
        await tier.close()

    async def test_host_memory_is_page_locked_once_and_as_long_as_it_is_mapped(
        self, tier: GpuTier, arena: Arena, device: CpuDevice
    ) -> None:
        for number in range(3):
            await self.put(tier, arena, f"k{number}", bytes(1000))
        assert len(device.registrations) == arena.segment_count == 1
        with arena.reserve("someone else", arena.headroom("someone else")):
            while device.registrations:
                await asyncio.sleep(0.01)

    async def test_copies_of_scattered_memory_are_handed_over_together(
        self, tier: GpuTier, arena: Arena, device: CpuDevice
    ) -> None:
        leases = [arena.reserve("tenant", 4096) for _ in range(9)]
        for lease in leases[::2]:
            lease.release()
        while arena.headroom("tenant") > 5 * 4096:
            leases.append(arena.reserve("tenant", min(8 << 20, arena.headroom("tenant") - 5 * 4096)))
        body = bytes(range(256)) * 80
        record, blocks = describe("k", body)
        with filled(arena, body) as lease:
            assert len(lease.extents) > 3
            upload = await tier.begin("tenant", len(body))
            await upload.write(lease, 0, len(body))
            assert device.batches[-1] == len(lease.extents)
        for lease in leases:
            lease.release()
        copy = await upload.finish(record, blocks)
        self.items.append((record, copy))
        assert await self.get(tier, arena, record, copy) == body

    async def test_gpu_that_has_no_memory_left_is_a_full_tier_until_it_has(
        self, tier: GpuTier, arena: Arena, device: CpuDevice
    ) -> None:
        device.capacity_nbytes = 0
        upload = await tier.begin("tenant", 1000)
        with filled(arena, bytes(1000)) as lease, pytest.raises(TierFull, match="lower the capacity"):
            await upload.write(lease, 0, 1000)
        await upload.abort()
        assert tier.usage().nbytes == 0
        device.capacity_nbytes = CAPACITY
        await self.put(tier, arena, "k", bytes(1000))


class Refusing(CpuDevice):
    """A GPU whose driver refuses what `refused` names."""

    refused = ""

    def register(self, address: int, nbytes: int) -> None:
        if self.refused == "register":
            raise DeviceError("refused")
        super().register(address, nbytes)

    def copy(self, copies: Sequence[Copy], stream: int) -> None:
        if self.refused == "copy":
            raise DeviceError("refused")
        if self.refused == "register":
            for copy in copies:
                ctypes.memmove(copy.target, copy.source, copy.nbytes)
            return
        super().copy(copies, stream)

    def export(self, address: int) -> bytes:
        if self.refused == "export":
            raise DeviceError("refused")
        return super().export(address)


class TestRefusals:
    @pytest.fixture
    def device(self) -> Refusing:
        return Refusing()

    @pytest.fixture
    async def tier(self, device: Refusing) -> AsyncIterator[GpuTier]:
        tier = await started(lambda _: device, threads=1)
        yield tier
        assert tier.usage().nbytes == 0
        await tier.close()
        assert not device.allocations

    async def test_memory_that_cannot_be_page_locked_is_copied_all_the_same(
        self, tier: GpuTier, device: Refusing, caplog: pytest.LogCaptureFixture
    ) -> None:
        device.refused = "register"
        arena = Arena(16 << 20)
        record, blocks = describe("k", b"body")
        for _ in range(2):
            upload = await tier.begin("tenant", 4)
            with filled(arena, b"body") as lease:
                await upload.write(lease, 0, 4)
            copy = await upload.finish(record, blocks)
            reader = tier.open(record, copy)
            with arena.reserve("tenant", 4) as lease:
                await reader.read_into(0, lease, 4)
                assert content(lease) == b"body"
            await reader.close()
            await tier.delete(record, copy)
        assert len(caplog.records) == 1
        arena.close()

    async def test_copies_that_the_driver_refuses_are_an_error_of_the_tier(
        self, tier: GpuTier, device: Refusing
    ) -> None:
        arena = Arena(16 << 20)
        device.refused = "copy"
        upload = await tier.begin("tenant", 4)
        with filled(arena, b"body") as lease, pytest.raises(TierError, match="refused"):
            await upload.write(lease, 0, 4)
        assert arena.lease_count == 0
        await upload.abort()
        arena.close()

    async def test_memory_that_the_driver_does_not_export_is_not_handed_on(
        self, tier: GpuTier, device: Refusing
    ) -> None:
        arena = Arena(16 << 20)
        device.refused = "export"
        record, blocks = describe("k", b"body")
        upload = await tier.begin("tenant", 4)
        with filled(arena, b"body") as lease:
            await upload.write(lease, 0, 4)
        copy = await upload.finish(record, blocks)
        lease, _ = tier.lend(copy)
        assert tier.hand_on(lease.extents[0].segment_id) is None
        lease.release()
        await tier.delete(record, copy)
        arena.close()


class TestGpuTierOnAGpu(TierContract):
    """The contract once more, where there is a GPU."""

    survives = False
    capacity_nbytes = CAPACITY

    @pytest.fixture
    async def tier(self) -> AsyncIterator[Tier]:
        try:
            tier = await started(CupyDevice)
        except TierError as error:
            pytest.skip(str(error))
        yield tier
        await tier.close()


async def test_without_a_gpu_the_tier_does_not_start_and_says_why() -> None:
    def no_device(index: int) -> Device:
        raise NoDevice(f"there is no GPU {index} here")

    tier = GpuTier(GpuConfig(device=3), no_device)
    with pytest.raises(TierError, match="the tier gpu: there is no GPU 3 here"):
        await tier.start(lambda _: None)
    await tier.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("capacity", Size(1000)),
        ("segment", Size(1 << 20)),
        ("segment", Size(0)),
        ("device", -1),
        ("threads", 0),
        ("threads", 65),
    ],
)
def test_options_that_cannot_be_are_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=key):
        GpuConfig(**{key: value})


def test_runs_that_face_each_other_are_cut_at_either_side() -> None:
    here = [Extent(1000, 10), Extent(2000, 10), Extent(3000, 10)]
    there = [Extent(500, 3), Extent(600, 12)]
    assert list(facing(here, 8, there)) == [(1008, 500, 2), (2000, 502, 1), (2001, 600, 9), (3000, 609, 3)]
