"""Which of a model's layers a chunk holds, spelled in one way only.

`all`, or ranges of layer indices such as `0-4,6,8-11`: both ends belong to a range, one of a single layer is its index,
indices rise, and ranges that touch are one. The indices are those of the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kvgate.errors import LayoutError

ALL_LAYERS = "all"
MAX_LAYERS = 4096

_NUMBER = "(0|[1-9][0-9]{0,3})"
_RANGE = re.compile(f"{_NUMBER}(?:-{_NUMBER})?")


def parse_layer_set(text: str) -> tuple[range, ...]:
    """The ranges that a layer set names, in order, none of them empty.

    Not for `all`, which only the model can resolve. Raises LayoutError for whatever `spell_layer_set` does not write.
    """
    ranges: list[range] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise LayoutError(f"expected {ALL_LAYERS!r}, or ranges of layers such as 0-4,6,8-11; got {text[:64]!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if (match[2] is not None and first >= last) or last >= MAX_LAYERS:
            raise LayoutError(f"{part} is not a range of layers below {MAX_LAYERS}, the lower one first")
        if ranges and first <= ranges[-1].stop:
            raise LayoutError(f"{part} does not come after {ranges[-1].stop - 1} with a gap; ranges that touch are one")
        ranges.append(range(first, last + 1))
    return tuple(ranges)


def spell_layer_set(layers: Iterable[int], model_layers: int) -> str:
    """The layer set of some of a model's layers, in whatever order they come: `all` when they are all of them.

    Raises LayoutError for none, for one that comes twice, and for one that the model does not have.
    """
    indices = sorted(layers)
    if not indices or not 0 <= indices[0] <= indices[-1] < model_layers or len(set(indices)) < len(indices):
        raise LayoutError(f"expected different layers of 0-{model_layers - 1}, got {str(indices)[:64]}")
    if len(indices) == model_layers:
        return ALL_LAYERS
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join([str(first) if first == last else f"{first}-{last}" for first, last in ranges])
