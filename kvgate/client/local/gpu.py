"""This process's GPU, as it takes chunks from a gateway that keeps some in the memory of the same one."""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from kvgate.chunk.layout import ByteRange
from kvgate.kernels.block_digests import BlockDigests, Lying
from kvgate.kernels.cupy_device import CupyDevice
from kvgate.kernels.device import Copy, Device, DeviceError, Event, NoDevice
from kvgate.kernels.pieces import Extent, pieces

_log = logging.getLogger(__name__)


class Placed(NamedTuple):
    """An object of `nbytes` that lies in `extents`, and the address that it is to be copied to."""

    extents: Sequence[Extent]
    nbytes: int
    target: int


class Gpu:
    """A stream of kvgate's own on one GPU, and the digests of what it copies there. Thread-safe.

    device: what drives the GPU; an engine may use it too
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._stream = device.open_stream()
        self._digests = BlockDigests(device)

    def copy(self, objects: Sequence[Placed], after: Event | None = None) -> list[array[int]]:
        """Copy objects on the GPU, and take the crc64nvme of each MiB where it arrived. Waits for the end of it.

        after: what the engine has submitted that still uses the targets
        Raises DeviceError; nothing writes to the targets any more then.
        """
        copies = [
            Copy(target + piece.start, piece.address, piece.nbytes)
            for extents, nbytes, target in objects
            for piece in pieces(extents, [ByteRange(0, nbytes)])
        ]
        with self._lock:
            try:
                if after is not None:
                    self.device.wait(self._stream, after)
                self.device.copy(copies, self._stream)
                arrived = [Lying([Extent(each.target, each.nbytes)], each.nbytes) for each in objects]
                return self._digests.take(arrived, self._stream)
            except BaseException:
                with suppress(DeviceError):
                    self.device.record(self._stream).wait()
                raise

    def close(self) -> None:
        """Give everything back, when nobody copies any more."""
        self._digests.close()
        self.device.close_stream(self._stream)


def open_gpu(index: int = 0) -> Gpu | None:
    """The GPU of this number, as CUDA counts them; None, which is logged, where there is none or no CuPy."""
    try:
        return Gpu(CupyDevice(index))
    except NoDevice as error:
        _log.info("chunks come through the host's memory: %s", error)
        return None
