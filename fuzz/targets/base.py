"""What a fuzz target is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One property of one parser, or of several that belong together.

    share: how many inputs of a million it gets
    check: returns when the property holds of an input, and raises anything when it does not
    seeds: good inputs, for those that are not built from choices
    words: byte strings that inputs are likely to need, for the fuzzer to insert
    close: gives back what `check` keeps from input to input
    """

    name: str
    share: int
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...] = ()
    words: tuple[bytes, ...] = ()
    close: Callable[[], object] = bool
