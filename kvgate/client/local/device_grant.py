"""A lease on an object in the gateway's memory on this process's GPU."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from kvgate.chunk.layout import DATA_START, ByteRange
from kvgate.client.local.device_memory import DeviceMemory
from kvgate.kernels.pieces import Extent, pieces
from kvgate.memory import handoff

if TYPE_CHECKING:
    from kvgate.client.local.attachment import Attachment


class DeviceGrant:
    """An object where it lies on the GPU. A context manager, which releases.

    Who copies from there counts the copy only if `holds` is true after the copy's last event, and what arrived has the
    digests `blocks`: `Gpu.copy` takes them. Nothing may be written there; CUDA does not prevent it.

    nbytes:  of the object
    blocks:  the crc64nvme of each MiB
    extents: where the bytes lie, in order, until `release`
    """

    def __init__(self, attachment: Attachment, memory: DeviceMemory, grant: handoff.Grant) -> None:
        """Raises DeviceError and GatewayUnavailable as `DeviceMemory.map` does."""
        self.nbytes = grant.nbytes
        self.blocks = grant.blocks
        self.extents = memory.map(grant.extents, grant.nbytes)
        self._attachment = attachment
        self._memory = memory
        self._number = grant.id
        self._places = grant.extents
        self._released = False

    @property
    def kv(self) -> list[Extent]:
        """The extents of a chunk's KV, without its header: what `GpuPlan`, `Transfers` and the kernels take."""
        without_header = pieces(self.extents, [ByteRange(DATA_START, self.nbytes)])
        return [Extent(piece.address, piece.nbytes) for piece in without_header]

    @property
    def holds(self) -> bool:
        """Whether the bytes have been the object's so far. Ask after the copy."""
        return not self._released and self._attachment.holds(self._number)

    def release(self, *, bad: bool = False) -> None:
        """Let the object go, once every copy from there has ended on the GPU. Idempotent.

        bad: a copy did not match `blocks`: the gateway drops the object from the GPU if it finds so too
        """
        if not self._released:
            self._released = True
            self._memory.unmap(self._places)
            self._attachment.release([self._number], bad=bad)

    def __enter__(self) -> DeviceGrant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
