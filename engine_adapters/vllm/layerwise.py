"""What a step waits at while a load brings the layers that it needs.

1. A load ends once: by itself, or because a step has waited for too long. From then on it writes into no block.
2. Nobody passes the gate of a layer that is not there before the end is told: the step that goes on without it has to
   find, when it looks for what failed, the blocks that were not filled.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence


class LayerGate:
    """How far a layer-wise load has come, group by group. Thread-safe."""

    def __init__(self, layers: Sequence[int]) -> None:
        """layers: how many each group has"""
        self._layers = tuple(layers)
        self._open = [0] * len(layers)
        self._changed = threading.Condition()
        self._ended = False

    def open(self, group: int, layers: int) -> None:
        """The first `layers` layers of a group are there, with all their chunks."""
        with self._changed:
            self._open[group] = max(self._open[group], layers)
            self._changed.notify_all()

    def wait(self, group: int, layer: int, timeout_s: float, tell: Callable[[], None]) -> None:
        """Wait until a layer is there or the load has ended; when that takes longer, `end` it."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._open[group] > layer, timeout_s):
                self.end(tell)

    def end(self, tell: Callable[[], None]) -> None:
        """Call `tell`, unless the load has ended before, and then let nobody wait any more.

        Waits for a write that is under way.
        """
        with self._changed:
            if not self._ended:
                self._ended = True
                try:
                    tell()
                finally:
                    self._open = list(self._layers)
                    self._changed.notify_all()

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Whether the load may write into its blocks, which is so until the end of this context."""
        with self._changed:
            yield not self._ended
