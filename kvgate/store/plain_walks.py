"""The walks of store/walks.py in Python: taken where kvgate.native is not there, and what that is held to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from kvgate.chunk.chain import HASH_NBYTES

T = TypeVar("T")


class Leased(Protocol):
    """What leases are counted on. `leases` is one of its slots."""

    leases: int


def find_chain(objects: Mapping[str, T], prefix: str, hashes: bytes) -> list[T]:
    """What is under the keys of a chain from the first link on, up to the first that is not there.

    objects: a dict
    prefix:  ASCII; the digits of a link's hash behind it are the link's key
    hashes:  32 bytes each, one after the other
    """
    if not prefix.isascii():
        raise ValueError("the prefix of a key must be ASCII")
    find, digits, step = objects.get, hashes.hex(), 2 * HASH_NBYTES
    found: list[T] = []
    append = found.append
    for start in range(0, len(digits) - step + 1, step):  # a quarter of a microsecond each
        each = find(prefix + digits[start : start + step])
        if each is None:
            break
        append(each)
    return found


def add_leases(entries: Iterable[Leased], more: int) -> None:
    """Count so many more leases on each entry, or fewer. One that comes twice is counted twice."""
    for entry in entries:
        entry.leases += more
