"""Where the tables of a launch lie on the GPU: block tables, base addresses, pieces.

Invariants
1. A slot is written only once the event of the launch that used it last is done.
2. At most `slots` launches of a ring are under way; one more waits for the oldest in the calling thread.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from kvgate.kernels.device import Copy, Device, Event

_LEAST_NBYTES = 64 << 10


@dataclass(slots=True)
class _Slot:
    host: int = 0
    device: int = 0
    nbytes: int = 0
    event: Event | None = None


class ArgumentRing:
    """Uploads tables for one thread at a time, in the order of the stream that they are for."""

    def __init__(self, device: Device, slots: int = 8) -> None:
        self._device = device
        self._slots = [_Slot() for _ in range(slots)]
        self._next = 0

    def upload(self, data: bytes, stream: int) -> int:
        """The address of `data` on the GPU, a multiple of 256, valid for what `stream` does until `launched`."""
        slot = self._slots[self._next]
        if slot.event is not None:
            slot.event.wait()
            slot.event = None
        if slot.nbytes < len(data):
            self._free(slot)
            nbytes = max(_LEAST_NBYTES, 1 << (len(data) - 1).bit_length())
            slot.host = self._device.allocate_host(nbytes)
            slot.device = self._device.allocate(nbytes)
            slot.nbytes = nbytes
        ctypes.memmove(slot.host, data, len(data))
        self._device.copy([Copy(slot.device, slot.host, len(data))], stream)
        return slot.device

    def launched(self, stream: int) -> Event:
        """Say that `stream` has been given all that reads the last upload; the event of its end."""
        slot = self._slots[self._next]
        slot.event = self._device.record(stream)
        self._next = (self._next + 1) % len(self._slots)
        return slot.event

    def close(self) -> None:
        """Wait for what is under way, and give all memory back."""
        for slot in self._slots:
            if slot.event is not None:
                slot.event.wait()
                slot.event = None
            self._free(slot)

    def _free(self, slot: _Slot) -> None:
        host, device, slot.host, slot.device, slot.nbytes = slot.host, slot.device, 0, 0, 0
        if host:
            self._device.free_host(host)
        if device:
            self._device.free(device)
