"""What the kernels and the GPU tier ask of a GPU. `cupy_device` is the one implementation.

A stream is its CUDA handle, an int, so that an engine's own streams can be named: 0 is the default stream. An address
is an int as well; one of registered host memory is the same for the GPU and the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvgate.errors import KVGateError


class NoDevice(KVGateError):
    """There is no GPU here, or nothing to drive it with; the message says which and what would help."""


class DeviceError(KVGateError):
    """The GPU or its driver refused a call."""


class OutOfDeviceMemory(DeviceError):
    """The GPU has no room for an allocation; nothing was taken."""


class Kernel(NamedTuple):
    """A function in a source file of csrc/."""

    source: str
    function: str


class Copy(NamedTuple):
    """Bytes to move, each side in memory of the GPU or in registered memory of the host."""

    target: int
    source: int
    nbytes: int


class Event(Protocol):
    """A point in a stream."""

    def done(self) -> bool:
        """Whether the stream has passed it. Raises DeviceError when what came before it has failed."""

    def wait(self) -> None:
        """Block this thread, without the GIL, until the stream has passed it. Raises DeviceError likewise."""


class Device(Protocol):
    """One GPU. May be used from any thread; what goes to one stream from one thread at a time keeps its order.

    multiprocessors: how many blocks of threads run at the same time at least
    uuid:            16 bytes that tell this GPU, or this part of one, from every other
    """

    multiprocessors: int
    uuid: bytes

    def allocate(self, nbytes: int) -> int:
        """The address of `nbytes` of this GPU's memory, a multiple of 256. Raises OutOfDeviceMemory."""

    def free(self, address: int) -> None:
        """Give an allocation back, which nothing uses any more."""

    def allocate_host(self, nbytes: int) -> int:
        """The address of `nbytes` of page-locked host memory. Raises OutOfDeviceMemory."""

    def free_host(self, address: int) -> None:
        """Give page-locked memory back."""

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        """Fill memory of this GPU with zeros, in the order of the stream."""

    def register(self, address: int, nbytes: int) -> None:
        """Page-lock host memory that is mapped already, for copies and kernels. Raises DeviceError."""

    def unregister(self, address: int) -> None:
        """End the registration that begins at `address`. The memory is still mapped then."""

    def open_stream(self) -> int:
        """A new stream, which waits for no other one."""

    def close_stream(self, stream: int) -> None:
        """Give a stream back once what is in it has ended; does not wait for that."""

    def copy(self, copies: Sequence[Copy], stream: int) -> None:
        """Move bytes, in the order of the stream and in any order among themselves. Returns before they have moved.

        Host memory that is not registered is moved too, slowly, and may block this thread until it has been.
        """

    def launch(self, kernel: Kernel, blocks: int, threads: int, argument: ctypes.Structure, stream: int) -> None:
        """Run a kernel with one struct as its argument. Returns before it has run; compiles it at its first use."""

    def record(self, stream: int) -> Event:
        """The point that `stream` has been given work up to, now."""

    def wait(self, stream: int, event: Event) -> None:
        """Have `stream` wait for the event before it does what it is given from now on. Blocks no thread."""

    def export(self, address: int) -> bytes:
        """The CUDA IPC handle of a whole allocation: other processes map it with `open_export`."""

    def open_export(self, handle: bytes) -> int:
        """The address here of another process's allocation. Raises DeviceError, also in the process that made it."""

    def close_export(self, address: int) -> None:
        """Unmap another process's allocation."""
