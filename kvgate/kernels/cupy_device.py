"""A GPU through CuPy: its memory, streams and events, and kernels that NVRTC compiles at their first use."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kvgate.kernels import source
from kvgate.kernels.device import Copy, DeviceError, Event, Kernel, NoDevice, OutOfDeviceMemory

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_NOT_READY = 600  # cudaErrorNotReady
_PORTABLE_AND_MAPPED = 0x01 | 0x02  # cudaHostRegisterPortable | cudaHostRegisterMapped
_WORTH_A_BATCH = 4
"""Copies from which on one call for all of them is made, where the driver has it."""


def cupy() -> Any:
    """The package. Raises NoDevice that says how to install it."""
    try:
        import cupy  # noqa: PLC0415 - optional, and 200 MB
    except ImportError as error:
        raise NoDevice(
            f"the GPU needs CuPy, which cannot be imported ({error}): install kvgate[gpu], "
            "or kvgate[gpu-cuda12] for a driver of CUDA 12"
        ) from error
    return cupy


class CupyDevice:
    """See Device. Raises NoDevice where there is no such GPU, or no CuPy.

    index: which GPU, as CUDA counts them
    """

    def __init__(self, index: int = 0) -> None:
        package = cupy()
        self._runtime = package.cuda.runtime
        self._driver = package.cuda.driver
        self._nvrtc = package.cuda.nvrtc
        self._load_module = package.cuda.function.Module
        self._index = index
        try:
            count = self._runtime.getDeviceCount()
            if index >= count:
                raise NoDevice(f"there is no GPU {index} here: CUDA sees {count}")
            properties = self._runtime.getDeviceProperties(index)
        except self._runtime.CUDARuntimeError as error:
            raise NoDevice(f"there is no GPU here that CUDA can use: {error}") from error
        same = self._runtime.deviceGetAttribute(self._runtime.cudaDevAttrCanUseHostPointerForRegisteredMem, index)
        if not same:
            raise NoDevice("this GPU sees host memory under other addresses than the CPU does, which is not supported")
        self.name = properties["name"].decode()
        self.multiprocessors = int(properties["multiProcessorCount"])
        self.uuid = _uuid(index)
        self.architecture = f"{properties['major']}{properties['minor']}"
        self._functions: dict[Kernel, Any] = {}
        self._modules: dict[str, Any] = {}
        self._compiling = threading.Lock()
        self._batch = _batch_copy()

    def allocate(self, nbytes: int) -> int:
        """See Device."""
        with self._here():
            return int(self._runtime.malloc(nbytes))

    def free(self, address: int) -> None:
        """See Device."""
        with self._here():
            self._runtime.free(address)

    def allocate_host(self, nbytes: int) -> int:
        """See Device."""
        with self._here():
            return int(self._runtime.hostAlloc(nbytes, _PORTABLE_AND_MAPPED))

    def free_host(self, address: int) -> None:
        """See Device."""
        with self._here():
            self._runtime.freeHost(address)

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        """See Device."""
        with self._here():
            self._runtime.memsetAsync(address, 0, nbytes, stream)

    def register(self, address: int, nbytes: int) -> None:
        """See Device."""
        with self._here():
            self._runtime.hostRegister(address, nbytes, _PORTABLE_AND_MAPPED)

    def unregister(self, address: int) -> None:
        """See Device."""
        with self._here():
            self._runtime.hostUnregister(address)

    def open_stream(self) -> int:
        """See Device."""
        with self._here():
            return int(self._runtime.streamCreateWithFlags(self._runtime.streamNonBlocking))

    def close_stream(self, stream: int) -> None:
        """See Device."""
        with self._here():
            self._runtime.streamDestroy(stream)

    def copy(self, copies: Sequence[Copy], stream: int) -> None:
        """See Device."""
        with self._here():
            # One call cannot go to the default stream.
            if stream and self._batch is not None and len(copies) >= _WORTH_A_BATCH:
                self._batch(copies, stream)
                return
            for copy in copies:
                self._runtime.memcpyAsync(copy.target, copy.source, copy.nbytes, self._runtime.memcpyDefault, stream)

    def launch(self, kernel: Kernel, blocks: int, threads: int, argument: ctypes.Structure, stream: int) -> None:
        """See Device."""
        with self._here():
            function = self._functions.get(kernel) or self._load(kernel)
            pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
            self._driver.launchKernel(
                function.ptr, blocks, 1, 1, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0
            )

    def record(self, stream: int) -> Event:
        """See Device."""
        with self._here():
            return _CudaEvent(self._runtime, stream)

    def wait(self, stream: int, event: Event) -> None:
        """See Device."""
        assert isinstance(event, _CudaEvent), "an event of another device"
        with self._here():
            self._runtime.streamWaitEvent(stream, event.handle)

    def export(self, address: int) -> bytes:
        """See Device."""
        with self._here():
            return bytes(self._runtime.ipcGetMemHandle(address))

    def open_export(self, handle: bytes) -> int:
        """See Device."""
        with self._here():
            return int(self._runtime.ipcOpenMemHandle(handle))

    def close_export(self, address: int) -> None:
        """See Device."""
        with self._here():
            self._runtime.ipcCloseMemHandle(address)

    def _load(self, kernel: Kernel) -> Any:
        with self._compiling:
            if kernel.source not in self._modules:
                module = self._load_module()
                module.load(compiled(self._nvrtc, kernel.source, self.architecture))
                self._modules[kernel.source] = module
            function = self._modules[kernel.source].get_function(kernel.function)
            self._functions[kernel] = function
            return function

    @contextmanager
    def _here(self) -> Iterator[None]:
        """This thread's calls go to this GPU, and what CUDA refuses is a DeviceError."""
        try:
            self._runtime.setDevice(self._index)
            yield
        except self._runtime.CUDARuntimeError as error:
            kind = OutOfDeviceMemory if error.status == _OUT_OF_MEMORY else DeviceError
            raise kind(f"GPU {self._index}: {error}") from error
        except self._driver.CUDADriverError as error:
            raise DeviceError(f"GPU {self._index}: {error}") from error


class _CudaEvent:
    """See Event."""

    def __init__(self, runtime: Any, stream: int) -> None:
        self._runtime = runtime
        self.handle = int(runtime.eventCreateWithFlags(runtime.eventDisableTiming | runtime.eventBlockingSync))
        runtime.eventRecord(self.handle, stream)

    def done(self) -> bool:
        """See Event."""
        status = self._runtime.eventQuery(self.handle)
        if status not in (0, _NOT_READY):
            raise DeviceError(f"work on the GPU has failed: CUDA error {status}")
        return bool(status == 0)

    def wait(self) -> None:
        """See Event."""
        try:
            self._runtime.eventSynchronize(self.handle)
        except self._runtime.CUDARuntimeError as error:
            raise DeviceError(f"work on the GPU has failed: {error}") from error

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the process CUDA may be gone already
            self._runtime.eventDestroy(self.handle)


def compiled(nvrtc: Any, name: str, architecture: str) -> bytes:
    """A source file for one architecture, such as `90`: kept on disk, or compiled now. Needs no GPU.

    nvrtc: cupy.cuda.nvrtc
    Raises DeviceError with what the compiler says.
    """

    def compile_text(text: str) -> bytes:
        program = nvrtc.createProgram(text, name, (), ())
        try:
            nvrtc.compileProgram(program, (f"--gpu-architecture=sm_{architecture}", *source.OPTIONS))
            return bytes(nvrtc.getCUBIN(program))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise DeviceError(f"NVRTC does not compile {name} for sm_{architecture}: {error}: {log}") from error
        finally:
            nvrtc.destroyProgram(program)

    version = ".".join(map(str, nvrtc.getVersion()))
    return source.binary(name, architecture, f"nvrtc {version}", compile_text)


def _uuid(index: int) -> bytes:
    """The UUID of a GPU, or of the part of one that is this process's (MIG). Raises NoDevice."""
    driver = ctypes.CDLL("libcuda.so.1")
    device, uuid = ctypes.c_int(), (ctypes.c_uint8 * 16)()
    status = driver.cuDeviceGet(ctypes.byref(device), index) or driver.cuDeviceGetUuid_v2(uuid, device)
    if status:
        raise NoDevice(f"the driver does not say which GPU {index} is: CUDA error {status}")
    return bytes(uuid)


# --- many copies in one call: cuMemcpyBatchAsync, from CUDA 13 on ----------------------------------------------------


class CopyAttributes(ctypes.Structure):
    """`CUmemcpyAttributes`. The hints are for managed memory only."""

    _fields_ = (
        ("source_access_order", ctypes.c_int),
        ("source_hint", ctypes.c_int * 2),
        ("target_hint", ctypes.c_int * 2),
        ("flags", ctypes.c_uint),
    )


_IN_STREAM_ORDER = 1  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
_OVERLAP_WITH_COMPUTE = 1  # CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE


def _batch_copy() -> Callable[[Sequence[Copy], int], None] | None:
    """What makes many copies in one call of the driver; None where the driver cannot."""
    try:
        call = ctypes.CDLL("libcuda.so.1").cuMemcpyBatchAsync_v2
    except (OSError, AttributeError):
        return None

    def batch(copies: Sequence[Copy], stream: int) -> None:
        count = len(copies)
        addresses = ctypes.c_uint64 * count
        attributes = CopyAttributes(source_access_order=_IN_STREAM_ORDER, flags=_OVERLAP_WITH_COMPUTE)
        status = call(
            addresses(*(copy.target for copy in copies)),
            addresses(*(copy.source for copy in copies)),
            (ctypes.c_size_t * count)(*(copy.nbytes for copy in copies)),
            ctypes.c_size_t(count),
            ctypes.byref(attributes),
            ctypes.byref(ctypes.c_size_t(0)),
            ctypes.c_size_t(1),
            ctypes.c_void_p(stream),
        )
        if status:
            raise DeviceError(f"the driver refused a batch of {count} copies: CUDA error {status}")

    return batch
