"""Where the tests of the kernels run: on the CPU, or with KVGATE_TEST_DEVICE=gpu on a GPU, as `make gpu` has it.

On a GPU the memory of the tests is page-locked memory of the host, which kernels reach as well, at the same addresses.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from typing import Any

import numpy as np

from kvgate.kernels.cupy_device import CupyDevice
from kvgate.kernels.device import Kernel
from tests.kernels.on_cpu import CpuDevice

ON_GPU = os.environ.get("KVGATE_TEST_DEVICE") == "gpu"


def examples(count: int) -> int:
    """How many cases to draw: fewer where a sanitizer looks at every access of each."""
    return count // 6 if os.environ.get("KVGATE_SANITIZE") else count


class CountingGpu(CupyDevice):
    """A GPU that says what it was asked for, as CpuDevice does."""

    def __init__(self) -> None:
        super().__init__()
        self.allocations: dict[int, int] = {}
        self.launches: list[str] = []

    def allocate(self, nbytes: int) -> int:
        address = super().allocate(nbytes)
        self.allocations[address] = nbytes
        return address

    def free(self, address: int) -> None:
        del self.allocations[address]
        super().free(address)

    def allocate_host(self, nbytes: int) -> int:
        address = super().allocate_host(nbytes)
        self.allocations[address] = nbytes
        return address

    def free_host(self, address: int) -> None:
        del self.allocations[address]
        super().free_host(address)

    def launch(self, kernel: Kernel, blocks: int, threads: int, argument: ctypes.Structure, stream: int) -> None:
        self.launches.append(kernel.function)
        super().launch(kernel, blocks, threads, argument, stream)


def make_device() -> Any:
    """A device with nothing on it."""
    return CountingGpu() if ON_GPU else CpuDevice()


@functools.cache
def _gpu() -> CupyDevice:
    return CupyDevice()


def memory(nbytes: int) -> Any:
    """`nbytes` of host memory that the device reaches, in an allocation of its own: uint8, of any content."""
    if not ON_GPU:
        return np.empty(nbytes, np.uint8)
    address = _gpu().allocate_host(max(nbytes, 1))
    array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
    weakref.finalize(array.base, _gpu().free_host, address)
    return array


def filled(content: Any) -> Any:
    """The same numbers in memory that the device reaches."""
    array = memory(content.nbytes).view(content.dtype).reshape(content.shape)
    array[...] = content
    return array
