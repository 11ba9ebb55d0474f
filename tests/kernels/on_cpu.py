"""The kernels of csrc/ on the CPU: a device whose memory is the host's, and whose launches run the kernels themselves.

The machine code is the C++ compiler's, from the same sources and with the same rounding; what stands under
`__CUDA_ARCH__` is not in it. `KVGATE_SANITIZE=1` builds it with AddressSanitizer and UndefinedBehaviorSanitizer, for a
Python that runs under them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kvgate.kernels import source
from kvgate.kernels.device import Copy, DeviceError, Kernel, OutOfDeviceMemory

HERE = Path(__file__).parent
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\((\w+) \w+\)')
_posix_memalign = ctypes.CDLL(None).posix_memalign
_posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
_free = ctypes.CDLL(None).free
_free.argtypes = (ctypes.c_void_p,)


def kernels_of(name: str) -> dict[str, str]:
    """Every kernel of a source file, with the struct that it takes: macros expanded by the preprocessor."""
    expanded = subprocess.run(
        ["g++", "-E", "-P", "-x", "c++", "-std=c++20", "-"],
        input=source.text(name),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(_KERNEL.findall(expanded.stdout))


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """A source file as a library with one `cpu_<kernel>` a kernel, built once for each text of it."""
    content = source.text(name)
    together = "__shfl_xor_sync(" in content or "__syncthreads(" in content
    launch = "launch_together" if together else "launch_in_turn"
    doors = "".join(
        f'extern "C" void cpu_{kernel}(unsigned blocks, unsigned threads, const {argument}* argument)'
        f" {{ {launch}({kernel}, blocks, threads, *argument); }}\n"
        f'extern "C" unsigned long size_{kernel}() {{ return sizeof({argument}); }}\n'
        for kernel, argument in kernels_of(name).items()
    )
    shim = (HERE / "cuda_on_cpu.h").read_text()
    flags = ["-O1", "-std=c++20", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Werror"]
    flags += ["-Wno-unused", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
    if os.environ.get("KVGATE_SANITIZE"):
        flags += ["-g1", *SANITIZERS]
    digest = hashlib.sha256("\0".join((shim, content, doors, *flags)).encode()).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"kvgate-cpu-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / f"{Path(name).stem}-{digest[:32]}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as made:
            unit = Path(made) / "unit.cpp"
            unit.write_text(shim + content + doors)
            subprocess.run(["g++", *flags, "-o", f"{made}/unit.so", str(unit)], check=True)
            os.replace(f"{made}/unit.so", built)
    return ctypes.CDLL(str(built))


class PassedEvent:
    """Everything has happened when a call returns."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return


class CpuDevice:
    """A GPU's memory and streams, in this process, one thing after another. Allocations are of the exact size."""

    multiprocessors = 2
    uuid = b"memory of a host"

    def __init__(self, capacity_nbytes: int = 1 << 40) -> None:
        self.capacity_nbytes = capacity_nbytes
        self.allocations: dict[int, int] = {}
        self.registrations: dict[int, int] = {}
        self.imports: dict[int, int] = {}  # of other processes' memory, where a subclass has that
        self.launches: list[str] = []
        self.batches: list[int] = []
        self._streams = 0

    def allocate(self, nbytes: int) -> int:
        if sum(self.allocations.values()) + nbytes > self.capacity_nbytes:
            raise OutOfDeviceMemory(f"no room for {nbytes} bytes")
        place = ctypes.c_void_p()
        assert _posix_memalign(ctypes.byref(place), 256, nbytes) == 0
        address = int(place.value or 0)
        self.allocations[address] = nbytes
        return address

    def free(self, address: int) -> None:
        del self.allocations[address]
        _free(address)

    allocate_host = allocate
    free_host = free

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        self._check_inside(address, nbytes)
        ctypes.memset(address, 0, nbytes)

    def register(self, address: int, nbytes: int) -> None:
        if any(begin < address + nbytes and address < begin + size for begin, size in self.registrations.items()):
            raise DeviceError("registered already")
        self.registrations[address] = nbytes

    def unregister(self, address: int) -> None:
        del self.registrations[address]

    def open_stream(self) -> int:
        self._streams += 1
        return self._streams

    def close_stream(self, stream: int) -> None:
        assert 0 < stream <= self._streams

    def copy(self, copies: Sequence[Copy], stream: int) -> None:
        self.batches.append(len(copies))
        for copy in copies:
            for address in (copy.target, copy.source):
                self._check_inside(address, copy.nbytes)
            ctypes.memmove(copy.target, copy.source, copy.nbytes)

    def _check_inside(self, address: int, nbytes: int) -> None:
        """A copy lies in one allocation or one registration, as CUDA asks for."""
        areas = [*self.allocations.items(), *self.registrations.items(), *self.imports.items()]
        if not any(begin <= address and address + nbytes <= begin + size for begin, size in areas):
            raise DeviceError(f"{nbytes} bytes at {address:#x} are not within one area that the GPU knows")

    def launch(self, kernel: Kernel, blocks: int, threads: int, argument: ctypes.Structure, stream: int) -> None:
        lib = library(kernel.source)
        assert ctypes.sizeof(argument) == getattr(lib, f"size_{kernel.function}")(), "the mirror of the struct is off"
        self.launches.append(kernel.function)
        getattr(lib, f"cpu_{kernel.function}")(blocks, threads, ctypes.byref(argument))

    def record(self, stream: int) -> PassedEvent:
        return PassedEvent()

    def wait(self, stream: int, event: object) -> None:
        return

    def export(self, address: int) -> bytes:
        assert address in self.allocations
        return b"exported" + address.to_bytes(8, "big")

    def open_export(self, handle: bytes) -> int:
        return int.from_bytes(handle[8:], "big")

    def close_export(self, address: int) -> None:
        return
