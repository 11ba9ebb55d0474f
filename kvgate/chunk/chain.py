"""Chain hashes: the names of chunks within a space (scheme `kvgate-sha256-chain-v1`).

    h_i = sha256(h_{i-1} ‖ tokens_i as little-endian u32 ‖ extra_i),    h_{-1} = sha256(space ‖ tenant salt)

32 bytes, never truncated. Equal chain hash and equal space mean the same KV, because a hash covers every token before
its chunk. The same bytes in every process, host and release.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import sha256
from typing import TypeAlias

HASH_NBYTES = 32
_TOKEN_NBYTES = 4

Tokens: TypeAlias = "Sequence[int] | bytes | bytearray | memoryview | array[int]"
"""Token ids below 2**32. A one-dimensional buffer of u32 (array('I'), memoryview, numpy uint32) is read in place, and a
buffer of bytes too, as little-endian u32; other integers are converted once."""


def root(space: bytes, salt: bytes) -> bytes:
    """The hash that stands before the first chunk: sha256(space ‖ salt).

    space: the 32-byte digest of the space
    salt:  the tenant's; empty for a space that tenants share
    """
    return sha256(_checked_hash("space", space) + salt).digest()


def chain_hashes(
    parent: bytes, tokens: Tokens, chunk_tokens: int, extras: Sequence[bytes] | None = None
) -> list[bytes]:
    """The 32-byte hash of each full chunk of `tokens`; tokens after the last full chunk have none.

    parent: the root, or the hash of the chunk before tokens[0]: so a sequence is extended from its last full chunk on
            without hashing its beginning again
    extras: one for each full chunk, its multimodal digest or b""
    Raises ValueError for a token outside u32 (naming its position), a buffer of another type or shape, or a wrong
    number of extras; TypeError for a token that is not an integer.
    """
    previous = _checked_hash("parent", parent)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be positive, got {chunk_tokens}")
    stream = _little_endian(tokens)
    chunk_nbytes = chunk_tokens * _TOKEN_NBYTES
    chunks = len(stream) // chunk_nbytes
    if extras is not None and len(extras) != chunks:
        raise ValueError(f"{len(extras)} extras for {chunks} full chunks")

    hashes: list[bytes] = []
    for index in range(chunks):
        digest = sha256(previous)
        digest.update(stream[index * chunk_nbytes : (index + 1) * chunk_nbytes])
        if extras is not None:
            digest.update(extras[index])
        previous = digest.digest()
        hashes.append(previous)
    return hashes


def _checked_hash(what: str, value: bytes) -> bytes:
    if len(value) != HASH_NBYTES:
        raise ValueError(f"{what} must be {HASH_NBYTES} bytes, got {len(value)}")
    return value


def _little_endian(tokens: Tokens) -> memoryview:
    """The tokens as one contiguous stream of little-endian u32, copied only where that cannot be had in place."""
    try:
        view = memoryview(tokens)  # type: ignore[arg-type]
    except TypeError:  # not a buffer
        view = memoryview(_u32_array(tokens))
    if view.ndim != 1:
        raise ValueError(f"tokens must be one-dimensional, got a buffer of shape {view.shape}")
    if view.format == "B":
        if view.nbytes % _TOKEN_NBYTES:
            raise ValueError(f"bytes of little-endian u32 come in fours, got {view.nbytes}")
        return view if view.c_contiguous else memoryview(view.tobytes())
    if view.format not in ("I", "L") or view.itemsize != _TOKEN_NBYTES:
        if view.format not in ("b", "h", "H", "i", "l", "L", "q", "Q"):
            raise ValueError(f"tokens must be native integers, got a buffer of format {view.format!r}")
        view = memoryview(_u32_array(view.tolist()))
    if sys.byteorder == "big":
        swapped = array("I", view.tobytes())
        swapped.byteswap()
        view = memoryview(swapped)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _u32_array(tokens: Sequence[int]) -> array[int]:
    try:
        return array("I", tokens)
    except OverflowError:
        position = next(i for i, token in enumerate(tokens) if not 0 <= token < 2**32)
        raise ValueError(f"token {position} is outside u32") from None
