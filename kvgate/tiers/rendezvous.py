"""Rendezvous hashing: which of many places should hold a thing, so that all who ask agree without asking each other.

Every place has a score for every name, and the highest one has it. When a place comes or goes, only the names move that
have, or had, their highest score there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b


def ranking(places: Sequence[str], name: str, most: int) -> list[str]:
    """The `most` places that should have `name`, the first one first. It does not depend on the order of `places`."""
    if len(places) == 1:
        return list(places)
    asked = name.encode()
    scores = sorted(
        [(blake2b(asked, digest_size=8, key=_key(place)).digest(), place) for place in places], reverse=True
    )
    return [place for _, place in scores[:most]]


@lru_cache(maxsize=4096)
def _key(place: str) -> bytes:
    return blake2b(place.encode(), digest_size=16).digest()
