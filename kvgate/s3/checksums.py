"""The S3 checksum algorithms behind one incremental interface.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable
from typing import Protocol

from awscrt import checksums as crt

from kvgate.errors import InvalidArgument, UnsupportedOperation
from kvgate.memory.digest import extend_crc64nvme

HEADER_PREFIX = "x-amz-checksum-"
"""A header with this prefix and an algorithm's name carries the base64 of a digest."""

STORES_OWN = "crc64nvme"
"""The algorithm of the digest that the store keeps of every object."""

_NOT_A_DIGEST = frozenset({"x-amz-checksum-algorithm", "x-amz-checksum-mode", "x-amz-checksum-type"})


class Checksum(Protocol):
    """A digest of bytes that arrive piecewise. For one thread at a time."""

    inline: bool
    """Fast enough for megabytes on the event loop; otherwise large pieces belong in a thread."""

    def update(self, data: memoryview) -> None:
        """Add the next bytes. Gives up the GIL for large pieces."""

    def digest(self) -> bytes:
        """The digest of all bytes so far, big-endian where it is a number."""


class Crc:
    """A cyclic redundancy check."""

    inline = True

    def __init__(self, step: Callable[[memoryview, int], int], nbytes: int) -> None:
        self._step = step
        self._nbytes = nbytes
        self._value = 0

    def update(self, data: memoryview) -> None:
        self._value = self._step(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._nbytes, "big")


class Known:
    """A number that somebody else has taken of the bytes."""

    inline = True

    def __init__(self, nbytes: int) -> None:
        self.value = 0
        self._nbytes = nbytes

    def update(self, data: memoryview) -> None:
        """Nothing: who gives `value` has seen the bytes."""

    def digest(self) -> bytes:
        return self.value.to_bytes(self._nbytes, "big")


class Hash:
    """A cryptographic hash."""

    inline = False

    def __init__(self, name: str) -> None:
        self._hash = hashlib.new(name, usedforsecurity=False)

    def update(self, data: memoryview) -> None:
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()


ALGORITHMS: dict[str, tuple[int, Callable[[], Checksum]]] = {
    "crc32": (4, lambda: Crc(zlib.crc32, 4)),
    "crc32c": (4, lambda: Crc(crt.crc32c, 4)),
    "crc64nvme": (8, lambda: Crc(extend_crc64nvme, 8)),
    "md5": (16, lambda: Hash("md5")),
    "sha1": (20, lambda: Hash("sha1")),
    "sha256": (32, lambda: Hash("sha256")),
    "sha512": (64, lambda: Hash("sha512")),
}
"""Each algorithm's digest length and how to begin one. S3's xxhash family is not offered: it cannot read without a copy
through the bindings that exist."""


def new(algorithm: str) -> Checksum:
    """A checksum of no bytes yet. Raises KeyError unless `algorithm` is one of ALGORITHMS."""
    return ALGORITHMS[algorithm][1]()


def encode(digest: bytes) -> str:
    """A digest as headers and XML carry it."""
    return base64.b64encode(digest).decode("ascii")


def encode_crc64nvme(value: int) -> str:
    """The crc64nvme that the store keeps as a number, as headers carry it."""
    return encode(value.to_bytes(8, "big"))


def decode(header: str, algorithm: str, value: str) -> bytes:
    """The digest that a header carries. Raises InvalidArgument unless it is base64 of the algorithm's length."""
    nbytes = ALGORITHMS[algorithm][0]
    try:
        digest = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != nbytes:
        raise InvalidArgument(f"{header} must be the base64 of {nbytes} bytes")
    return digest


def algorithm_of(header: str) -> str | None:
    """The algorithm of an x-amz-checksum-* header that carries a digest; None for every other header.

    Raises UnsupportedOperation for an algorithm that is not offered.
    """
    if not header.startswith(HEADER_PREFIX) or header in _NOT_A_DIGEST:
        return None
    algorithm = header[len(HEADER_PREFIX) :]
    if algorithm not in ALGORITHMS:
        raise UnsupportedOperation(f"the checksum {algorithm!r} is not offered; use one of {', '.join(ALGORITHMS)}")
    return algorithm
