"""What a step waits at while a load brings the layers that it needs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence


class LayerGate:
    """How far a layer-wise load has come, group by group. Thread-safe."""

    def __init__(self, layers: Sequence[int]) -> None:
        """layers: how many each group has"""
        self._layers = tuple(layers)
        self._open = [0] * len(layers)
        self._changed = threading.Condition()
        self._given_up = False

    def open(self, group: int, layers: int) -> None:
        """The first `layers` layers of a group are there."""
        with self._changed:
            self._open[group] = max(self._open[group], layers)
            self._changed.notify_all()

    def open_all(self) -> None:
        """The load has ended, however it went: nobody is to wait any more."""
        with self._changed:
            self._open = list(self._layers)
            self._changed.notify_all()

    def wait(self, group: int, layer: int, timeout_s: float) -> bool:
        """Wait until a layer is there; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open[group] > layer, timeout_s)

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Whether the load may write into its blocks, which is so until the end of this context."""
        with self._changed:
            yield not self._given_up

    def give_up(self) -> bool:
        """Let the load write no more, and open; False when that had happened. Waits for a write that is under way."""
        with self._changed:
            before, self._given_up = self._given_up, True
            self.open_all()
            return not before

    @property
    def is_given_up(self) -> bool:
        """Whether the load was given up, so that its end is told already."""
        return self._given_up
