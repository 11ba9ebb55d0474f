"""A GPU's memory that other processes can map: each allocation is a file, and its IPC handle the file's name.

It keeps to CUDA's rules, and notes in the file `broken-rules` when a process does not: memory is freed only when nobody
maps it, and a handle is opened in another process than its own. Freed memory is overwritten before it goes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import tempfile
from pathlib import Path

from kvgate.kernels.device import DeviceError, OutOfDeviceMemory
from kvgate.memory.mapping import Mapping
from tests.kernels.on_cpu import CpuDevice

HANDLE_NBYTES = 64


class FileDevice(CpuDevice):
    """Memory of the host in the files of a folder; what is not exported lies there as well.

    uuid: as another GPU would have another one
    """

    allocate_host = CpuDevice.allocate
    free_host = CpuDevice.free

    def __init__(self, folder: Path, uuid: bytes = CpuDevice.uuid) -> None:
        super().__init__()
        self.uuid = uuid
        self.opened = 0
        self._folder = folder
        self._files: dict[int, tuple[Path, Mapping]] = {}
        self._imported: dict[int, tuple[int, Mapping]] = {}

    @property
    def broken_rules(self) -> list[str]:
        path = self._folder / "broken-rules"
        return path.read_text().splitlines() if path.exists() else []

    def allocate(self, nbytes: int) -> int:
        if sum(self.allocations.values()) + nbytes > self.capacity_nbytes:
            raise OutOfDeviceMemory(f"no room for {nbytes} bytes")
        fd, name = tempfile.mkstemp(prefix=f"{os.getpid()}-", dir=self._folder)
        os.ftruncate(fd, nbytes)
        mapping = Mapping(fd, nbytes, write=True)
        os.close(fd)
        self._files[mapping.address] = Path(name), mapping
        self.allocations[mapping.address] = nbytes
        return mapping.address

    def free(self, address: int) -> None:
        path, mapping = self._files.pop(address)
        nbytes = self.allocations.pop(address)
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._note(f"{path.name} was freed while another process mapped it")
        ctypes.memset(mapping.address, 0xEE, nbytes)
        path.unlink()

    def export(self, address: int) -> bytes:
        return self._files[address][0].name.encode().ljust(HANDLE_NBYTES, b"\0")

    def open_export(self, handle: bytes) -> int:
        name = handle.rstrip(b"\0").decode()
        if name.startswith(f"{os.getpid()}-"):
            raise DeviceError("a handle cannot be opened in the process that made it")
        try:
            fd = os.open(self._folder / name, os.O_RDWR)
        except OSError as error:
            raise DeviceError(f"the handle is of no memory: {error}") from error
        fcntl.flock(fd, fcntl.LOCK_SH)
        nbytes = os.fstat(fd).st_size
        mapping = Mapping(fd, nbytes, write=True)
        self.opened += 1
        self._imported[mapping.address] = fd, mapping
        self.imports[mapping.address] = nbytes
        return mapping.address

    def close_export(self, address: int) -> None:
        fd, _ = self._imported.pop(address)
        del self.imports[address]
        os.close(fd)

    def _note(self, line: str) -> None:
        with (self._folder / "broken-rules").open("a") as file:
            file.write(line + "\n")
