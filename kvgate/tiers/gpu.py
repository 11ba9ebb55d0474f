"""The GPU tier: copies in a GPU's memory, which other processes on the same GPU can map through CUDA IPC."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from kvgate.config import MiB, Size, option
from kvgate.errors import ArenaFull, ConfigError, CorruptCopy, NotInTier, TierError, TierFull
from kvgate.kernels.cupy_device import CupyDevice
from kvgate.kernels.device import Copy as DeviceCopy
from kvgate.kernels.device import Device, DeviceError, NoDevice
from kvgate.kernels.pieces import Extent
from kvgate.kernels.registered import Registered
from kvgate.memory.digest import span_of_blocks, verify_blocks
from kvgate.memory.holding import run_holding
from kvgate.memory.lease import Lease
from kvgate.memory.threads import started_threads
from kvgate.tiers.base import Arrived, Copy, Record, Usage
from kvgate.tiers.gpu_pool import GRANULE_NBYTES, GpuLease, GpuPool


@dataclass(frozen=True)
class GpuConfig:
    """How much memory of which GPU holds chunks."""

    device: int = option(default=0, help="which GPU, as CUDA counts them from 0")
    capacity: Size = option(default=Size(1 << 30), help="bytes of the GPU's memory for chunks, taken when needed")
    segment: Size = option(
        default=Size(64 * MiB), help="bytes of memory that a tenant gets at a time; tenants never share a segment"
    )
    threads: int = option(default=2, help="copies to and from the GPU at a time, each on a stream of its own")

    def __post_init__(self) -> None:
        for key, nbytes in (("capacity", self.capacity), ("segment", self.segment)):
            if nbytes < GRANULE_NBYTES:
                raise ConfigError(f"{key}: expected at least {GRANULE_NBYTES // MiB}MiB, got {nbytes} bytes")
        if not 0 <= self.device < 1024:
            raise ConfigError(f"device: expected the number of a GPU, from 0, got {self.device}")
        if not 1 <= self.threads <= 64:
            raise ConfigError(f"threads: expected from 1 to 64, got {self.threads}")


@dataclass(slots=True)
class GpuCopy:
    """An object in the GPU's memory; `lease` is None once the copy is deleted."""

    lease: GpuLease | None
    blocks: array[int]


class GpuTier:
    """Objects in a GPU's memory. A copy's room is free when the tier, every reader and every engine have let go.

    open_device: what drives the GPU of this number; called once, by `start`
    """

    name = "gpu"
    shared = False
    read_only = False
    Config = GpuConfig

    def __init__(self, config: GpuConfig, open_device: Callable[[int], Device] = CupyDevice) -> None:
        self._config = config
        self._open_device = open_device
        self._gpu: _Gpu | None = None

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """See Tier. Nothing in a GPU's memory survives. Raises TierError where there is no GPU, or no CuPy."""
        try:
            device = await asyncio.to_thread(self._open_device, self._config.device)
        except NoDevice as error:
            raise TierError(f"the tier {self.name}: {error}") from error
        self._gpu = _Gpu(device, self._config)

    async def close(self) -> None:
        """See Tier."""
        gpu, self._gpu = self._gpu, None
        if gpu is not None:
            await asyncio.to_thread(gpu.close)

    @property
    def gpu(self) -> _Gpu:
        """What the tier has while it is started."""
        assert self._gpu is not None, "the tier is not started"
        return self._gpu

    def usage(self) -> Usage:
        """See Tier."""
        return Usage(self.gpu.pool.used_nbytes, self.gpu.pool.capacity_nbytes)

    def room(self, tenant: str) -> int:
        """See Tier."""
        return self.gpu.pool.headroom(tenant)

    def limit(self) -> int:
        """See Tier."""
        return self.gpu.pool.capacity_nbytes

    async def begin(self, tenant: str, nbytes: int | None) -> GpuUpload:
        """See Tier."""
        try:
            return GpuUpload(self.gpu, self.gpu.pool.reserve(tenant, nbytes or 0))
        except ArenaFull as error:
            raise TierFull(str(error)) from error

    async def publish(self, record: Record, copy: GpuCopy) -> None:
        """See Tier. What is in a GPU's memory is not reported after a start."""

    def open(self, record: Record, copy: GpuCopy) -> GpuReader:
        """See Tier."""
        return GpuReader(self.gpu, record, copy)

    async def blocks(self, record: Record, copy: GpuCopy) -> array[int]:
        """See Digested."""
        return copy.blocks

    async def delete(self, record: Record, copy: GpuCopy) -> None:
        """See Tier."""
        if copy.lease is not None:
            copy.lease.release()
            copy.lease = None

    # --- Exporting: engines on the same GPU ---------------------------------------------------------------------------

    @property
    def device_uuid(self) -> bytes:
        """See Exporting."""
        return self.gpu.device.uuid

    def lend(self, copy: GpuCopy) -> tuple[GpuLease, array[int]]:
        """See Exporting."""
        if copy.lease is None:
            raise NotInTier("the copy is gone")
        return copy.lease.share(), copy.blocks

    def hand_on(self, segment_id: int) -> tuple[int, bytes] | None:
        """See Exporting."""
        return self.gpu.pool.hand_on(segment_id)

    def take_back(self, segment_id: int) -> None:
        """See Exporting."""
        if self._gpu is not None:
            self._gpu.pool.take_back(segment_id)

    def is_retired(self, segment_id: int) -> bool:
        """See Exporting."""
        return self.gpu.pool.is_retired(segment_id)


class GpuUpload:
    """A copy that is being filled."""

    def __init__(self, gpu: _Gpu, lease: GpuLease) -> None:
        self._gpu = gpu
        self._lease: GpuLease | None = lease
        self._offset = 0

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        """See Upload."""
        assert self._lease is not None, "the upload has ended"
        end = self._offset + stop - start
        if end > self._lease.nbytes:
            try:
                self._lease.extend(end - self._lease.nbytes)
            except ArenaFull as error:
                raise TierFull(str(error)) from error
        await self._gpu.move(self._lease, self._offset, lease, start, stop, into_gpu=True)
        self._offset = end

    async def finish(self, record: Record, blocks: array[int]) -> GpuCopy:
        """See Upload."""
        lease, self._lease = self._lease, None
        return GpuCopy(lease, blocks)

    async def abort(self) -> None:
        """See Upload."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None


class GpuReader:
    """One open copy."""

    def __init__(self, gpu: _Gpu, record: Record, copy: GpuCopy) -> None:
        self._gpu = gpu
        self._record = record
        self._blocks = copy.blocks
        self._lease = copy.lease.share() if copy.lease is not None else None

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """See Reader."""
        if self._lease is None:
            raise NotInTier("the copy is gone")
        stop = start + nbytes
        if nbytes:
            await self._gpu.move(self._lease, start, lease, 0, nbytes, into_gpu=False)
        await run_holding(lease, self._gpu.threads, _verify, lease, self._record, self._blocks, start, stop)
        return self._blocks[span_of_blocks(start, stop)]

    async def close(self) -> None:
        """See Reader."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None


class _Gpu:
    """What a started tier has: the device, its pool, threads that copy, a stream for each of them."""

    def __init__(self, device: Device, config: GpuConfig) -> None:
        self.device = device
        self.pool = GpuPool(device, config.capacity, config.segment)
        self.threads = started_threads(config.threads, "kvgate-gpu")
        self._registered = Registered(device)
        self._streams: list[int] = []
        self._own = threading.local()

    async def move(
        self, gpu_lease: GpuLease, offset: int, lease: Lease, start: int, stop: int, *, into_gpu: bool
    ) -> None:
        """Copy the bytes [start, stop) of a lease to `offset` of a slot, or from there. Raises TierFull, TierError."""
        move = partial(self._move, gpu_lease, offset, lease, start, stop, into_gpu=into_gpu)
        try:
            await run_holding([gpu_lease, lease], self.threads, move)
        except DeviceError as error:
            raise TierError(str(error)) from error

    def close(self) -> None:
        """End all copies and give everything back."""
        self.threads.shutdown()
        self._registered.close()
        for stream in self._streams:
            with suppress(DeviceError):
                self.device.close_stream(stream)
        self.pool.close()

    def _move(self, gpu_lease: GpuLease, offset: int, lease: Lease, start: int, stop: int, *, into_gpu: bool) -> None:
        stream = self._stream()
        here = self.pool.extents(gpu_lease, stream)
        there = self._registered.extents(lease, start, stop)
        copies = [
            DeviceCopy(gpu, host, nbytes) if into_gpu else DeviceCopy(host, gpu, nbytes)
            for gpu, host, nbytes in facing(here, offset, there)
        ]
        try:
            self.device.copy(copies, stream)
        finally:
            # What was taken on before an error must not go on in memory that others get.
            self.device.record(stream).wait()

    def _stream(self) -> int:
        stream: int | None = getattr(self._own, "stream", None)
        if stream is None:
            stream = self._own.stream = self.device.open_stream()
            self._streams.append(stream)
        return stream


def facing(here: Sequence[Extent], offset: int, there: Iterable[Extent]) -> Iterator[tuple[int, int, int]]:
    """(address, address, length) of runs: the bytes of `there`, in order, beside those of `here` from `offset` on."""
    begin, index = 0, 0
    for address, nbytes in there:
        at = 0
        while at < nbytes:
            while offset >= begin + here[index].nbytes:
                begin += here[index].nbytes
                index += 1
            count = min(nbytes - at, begin + here[index].nbytes - offset)
            yield here[index].address + offset - begin, address + at, count
            offset += count
            at += count


def _verify(lease: Lease, record: Record, blocks: array[int], start: int, stop: int) -> None:
    if not verify_blocks(lease.slices(0, stop - start), start, stop, record.nbytes, blocks):
        raise CorruptCopy("the bytes from the GPU do not match their digest")
