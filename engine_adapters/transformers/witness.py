"""A cheap answer to whether tensors are still what they were."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any


class Witness:
    """Remembers tensors by identity, address and version, without keeping them alive.

    Identity, because an address alone says nothing once its tensor was freed: the next one often gets the same.
    Not seen: values written through `tensor.data`, which leaves all three as they are.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        self._seen = [(weakref.ref(tensor), _state(tensor)) for tensor in tensors]

    def unchanged(self, tensors: Sequence[Any]) -> bool:
        """Whether these are the same tensors, in the same order, and none was written to or given another storage."""
        return len(tensors) == len(self._seen) and all(
            seen() is tensor and state == _state(tensor)
            for (seen, state), tensor in zip(self._seen, tensors, strict=True)
        )


def _state(tensor: Any) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, None if tensor.is_inference() else tensor._version
