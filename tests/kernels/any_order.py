"""A device whose streams run in any order that their events allow, as those of a GPU may: a wait that is missing shows.

Nothing runs before somebody waits for it, and then what comes first is drawn by chance.
"""

from __future__ import annotations

import ctypes
import random
from collections import deque
from collections.abc import Callable, Sequence

from kvgate.kernels.device import Copy, Event, Kernel
from tests.kernels.on_cpu import CpuDevice


class LaterEvent:
    def __init__(self, device: AnyOrderDevice) -> None:
        self._device = device
        self.passed = False

    def done(self) -> bool:
        return self.passed

    def wait(self) -> None:
        self._device.run_until(self)


class AnyOrderDevice(CpuDevice):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)
        self._queues: dict[int, deque[Callable[[], bool]]] = {}

    def run_until(self, event: LaterEvent) -> None:
        while not event.passed:
            streams = [stream for stream, queue in self._queues.items() if queue]
            assert streams, "an event that nothing leads to"
            self._rng.shuffle(streams)
            for stream in streams:
                if self._queues[stream][0]():
                    self._queues[stream].popleft()
                    break
            else:
                raise AssertionError("every stream waits for another one")

    def _later(self, stream: int, run: Callable[[], None]) -> None:
        def once() -> bool:
            run()
            return True

        self._queues.setdefault(stream, deque()).append(once)

    def copy(self, copies: Sequence[Copy], stream: int) -> None:
        kept = list(copies)
        self._later(stream, lambda: super(AnyOrderDevice, self).copy(kept, stream))

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        self._later(stream, lambda: super(AnyOrderDevice, self).clear(address, nbytes, stream))

    def launch(self, kernel: Kernel, blocks: int, threads: int, argument: ctypes.Structure, stream: int) -> None:
        kept = type(argument).from_buffer_copy(argument)
        self._later(stream, lambda: super(AnyOrderDevice, self).launch(kernel, blocks, threads, kept, stream))

    def record(self, stream: int) -> Event:
        event = LaterEvent(self)

        def run() -> None:
            event.passed = True

        self._later(stream, run)
        return event

    def wait(self, stream: int, event: object) -> None:
        assert isinstance(event, LaterEvent)
        self._queues.setdefault(stream, deque()).append(lambda: event.passed)
