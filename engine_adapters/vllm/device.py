"""When copies between the engine's memory and ours may begin, and that they have ended, on a CPU and on a GPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Device:
    """Orders our copies with the engine's work without ever making the engine wait for its GPU.

    A CPU does everything in the order of the calls. On a GPU each of our threads has a stream of its own, which waits
    for what the engine had submitted when it asked for the copy.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._local = threading.local()

    def now(self) -> Any:
        """What the engine has submitted so far, for `after`. Call it on the engine's thread."""
        if not self._is_gpu:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    @contextlib.contextmanager
    def after(self, submitted: Any) -> Iterator[None]:
        """Copies made within begin after `submitted`; when it is left, they have ended."""
        if not self._is_gpu:
            yield
            return
        stream = getattr(self._local, "stream", None)
        if stream is None:
            stream = self._local.stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            if submitted is not None:
                stream.wait_event(submitted)
            yield
            stream.synchronize()

    def gather(self, copy: Callable[[Any], None], out: Any) -> None:
        """Have `copy` write (chunks, bytes) in the engine's memory, and bring it to `out` in ours."""
        if not self._is_gpu:
            copy(out)
            return
        bounce = torch.empty(out.shape, dtype=torch.uint8, device=self._device)
        copy(bounce)
        out.copy_(bounce, non_blocking=True)

    def gather_part(self, copy: Callable[[Any], None], out: Any, part: Any) -> None:
        """As `gather`, where `copy` writes only `part`, a range of the bytes of the rows of `out`."""
        if not self._is_gpu:
            copy(out)
            return
        bounce = torch.empty(out.shape, dtype=torch.uint8, device=self._device)
        copy(bounce)
        first = part.storage_offset() - out.storage_offset()
        part.copy_(bounce[:, first : first + part.shape[1]], non_blocking=True)

    def scatter(self, copy: Callable[[Any], None], source: Any) -> None:
        """Bring `source` (chunks, bytes) to the engine's memory, and have `copy` read it there."""
        copy(source.to(self._device, non_blocking=True) if self._is_gpu else source)
