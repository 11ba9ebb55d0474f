"""Host memory for chunks on their way between the engine's pages and the gateway."""

from __future__ import annotations

import threading
from typing import Any

import torch

from kvgate.chunk.layout import DATA_START
from kvgate.errors import ConfigError


class Rows:
    """A fixed number of rows, each with room for the header and the KV of one chunk. Thread-safe.

    On a machine with CUDA they are page-locked, so that copies to and from a GPU are asynchronous.
    """

    def __init__(self, slice_nbytes: int, total_nbytes: int, least: int) -> None:
        """slice_nbytes: of the largest chunk's KV, as far as this worker holds it
        least: so many rows there must be. Raises ConfigError where `total_nbytes` is too small for them
        """
        self.nbytes = DATA_START + -(-slice_nbytes // DATA_START) * DATA_START
        count = total_nbytes // self.nbytes
        if count < least:
            raise ConfigError(
                f"staging: {total_nbytes} bytes are too few for {least} chunks of {self.nbytes}; "
                f"give it {least * self.nbytes}, or make chunk_tokens smaller"
            )
        self._memory = torch.empty((count, self.nbytes), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self._free = list(range(count))
        self._changed = threading.Condition()
        self._closed = False

    def take(self, wait_s: float) -> int | None:
        """A row; None when none is free within `wait_s` seconds, or ever again."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed, wait_s)
            return self._free.pop() if self._free and not self._closed else None

    def give(self, row: int) -> None:
        """Give a row back."""
        with self._changed:
            self._free.append(row)
            self._changed.notify()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def kv(self, row: int, slice_nbytes: int) -> Any:
        """Where the KV of a chunk goes: uint8 (slice_nbytes,), after the room for the header."""
        return self._memory[row, DATA_START : DATA_START + slice_nbytes]

    def body(self, row: int, slice_nbytes: int) -> memoryview:
        """The whole object: header and KV."""
        return memoryview(self._memory[row, : DATA_START + slice_nbytes].numpy())
