"""What a key parser decides: whether a key is one of a KV system that is not kvgate's own, and what it then says.

Keys are only read, never rewritten: what a client stores under a key lies there under that key. Parsers are entry
points (`kvgate.key_parsers`: the class, made without arguments); every one passes `tests/contracts/key_parser.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

UNKNOWN_MODEL = "unknown"
"""The model of a key that names none."""

MAX_MODEL_CHARS = 255
"""Longer model names are refused: they become labels of metrics."""

NO_CONTROL = r"\x00-\x1f\x7f"
"""For a negated character class: no system writes control characters."""


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """One object of a KV system.

    system: the parser's name for the system
    model:  as the key spells it, or UNKNOWN_MODEL
    series: everything else that two keys of one run have in common (world size, rank, dtype, group, salt, …)
    hash:   what tells the objects of a run apart

    Two keys of one parser that are not equal differ in one of these.
    """

    system: str
    model: str
    series: str
    hash: str


class KeyParser(Protocol):
    """Reads the keys of one system. Synchronous and pure, without state."""

    def parse(self, key: str) -> ForeignKey | None:
        """What a key says; None for every key that the system would not write.

        Takes any text and never raises; a key of MAX_KEY_NBYTES takes well under a millisecond, whatever it is.
        """
