"""What a step waits at while a load brings the layers that it needs."""

from __future__ import annotations

import threading
from collections.abc import Sequence


class LayerGate:
    """How far a layer-wise load has come, group by group. Thread-safe."""

    def __init__(self, layers: Sequence[int]) -> None:
        """layers: how many each group has"""
        self._layers = tuple(layers)
        self._open = [0] * len(layers)
        self._changed = threading.Condition()

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
