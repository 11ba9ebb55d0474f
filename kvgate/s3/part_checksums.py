"""The checksum of an object that is uploaded in parts: what its upload asks for, and how it follows from the parts'.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from awscrt import checksums as crt

from kvgate.errors import BadDigest, InvalidArgument, InvalidRequest
from kvgate.memory.digest import combine_crc64nvme
from kvgate.messages import Headers
from kvgate.s3 import checksums
from kvgate.s3.checksums import ALGORITHMS, HEADER_PREFIX, STORES_OWN

if TYPE_CHECKING:
    from kvgate.tiers.base import Record

ALGORITHM_HEADER = "x-amz-checksum-algorithm"
TYPE_HEADER = "x-amz-checksum-type"

_COMBINE: dict[str, Callable[[int, int, int], int]] = {
    "crc32": crt.combine_crc32,
    "crc32c": crt.combine_crc32c,
    STORES_OWN: combine_crc64nvme,
}
_SUFFIX = re.compile(r"-[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class PartChecksums:
    """Which checksum an upload has.

    algorithm: of each part and of the object; empty when the client leaves the choice to the store
    composite: the object's is taken of its parts' checksums, not of its bytes
    """

    algorithm: str
    composite: bool

    @classmethod
    def parse(cls, headers: Headers | Mapping[str, str]) -> PartChecksums:
        """What a CreateMultipartUpload asks for, or what `headers` gave. Raises InvalidArgument, InvalidRequest."""
        name, kind = headers.get(ALGORITHM_HEADER, ""), headers.get(TYPE_HEADER, "")
        algorithm = name.lower()
        if algorithm and algorithm not in ALGORITHMS:
            raise InvalidArgument(f"{ALGORITHM_HEADER} is one of {', '.join(ALGORITHMS)} in upper case")
        if kind not in ("", "COMPOSITE", "FULL_OBJECT"):
            raise InvalidArgument(f"{TYPE_HEADER} is COMPOSITE or FULL_OBJECT")
        if kind and not algorithm:
            raise InvalidRequest(f"{TYPE_HEADER} needs an {ALGORITHM_HEADER}")
        composite = kind == "COMPOSITE" if kind else algorithm not in ("", STORES_OWN)
        if composite and algorithm == STORES_OWN:
            raise InvalidRequest("CRC64NVME is offered with the type FULL_OBJECT only")
        if not composite and algorithm and algorithm not in _COMBINE:
            raise InvalidRequest(f"{name} is offered with the type COMPOSITE only")
        return cls(algorithm, composite)

    @property
    def headers(self) -> dict[str, str]:
        """What `parse` gives this from; empty where the client has asked for nothing."""
        return {ALGORITHM_HEADER: self.algorithm.upper(), TYPE_HEADER: self.type} if self.algorithm else {}

    @property
    def type(self) -> str:
        """The type as S3 writes it."""
        return "COMPOSITE" if self.composite else "FULL_OBJECT"

    def check_part(self, headers: Headers) -> None:
        """Refuse, before it is sent, a part without the checksum that the object's is to follow from."""
        needed = HEADER_PREFIX + self.algorithm
        if self.algorithm in ("", STORES_OWN):
            return
        if needed not in headers and headers.get("x-amz-trailer").strip().lower() != needed:
            raise InvalidRequest(f"the upload was begun with {ALGORITHM_HEADER}: every part needs {needed}")

    def attributes(self, parts: Sequence[Record]) -> dict[str, str]:
        """The checksum headers to store with the object; none where the store's own crc64nvme is what is wanted."""
        if self.algorithm in ("", STORES_OWN):
            return {}
        header = HEADER_PREFIX + self.algorithm
        return {header: self._value(self.algorithm, parts), TYPE_HEADER: self.type}

    def verify(self, headers: Headers, parts: Sequence[Record]) -> None:
        """Hold the checksum of the whole object that a CompleteMultipartUpload states, if any, against its parts.

        Raises BadDigest, InvalidRequest, UnsupportedOperation.
        """
        if headers.get(TYPE_HEADER, self.type) != self.type:
            raise InvalidRequest(f"the upload was begun with the {TYPE_HEADER} {self.type}")
        for header, value in headers.items():
            algorithm = checksums.algorithm_of(header)
            if algorithm is None:
                continue
            if algorithm != (self.algorithm or STORES_OWN):
                raise InvalidRequest(f"the upload has no {algorithm}: begin it with {ALGORITHM_HEADER}")
            found = self._value(algorithm, parts)
            if value not in (found, _SUFFIX.sub("", found)):
                raise BadDigest(f"the object does not match the {header} that came with it")

    def _value(self, algorithm: str, parts: Sequence[Record]) -> str:
        nbytes, _ = ALGORITHMS[algorithm]
        digests = [_digest(algorithm, part) for part in parts]
        if self.composite:
            whole = checksums.new(algorithm)
            whole.update(memoryview(b"".join(digests)))
            return f"{checksums.encode(whole.digest())}-{len(parts)}"
        value = 0
        for part, digest in zip(parts, digests, strict=True):
            value = _COMBINE[algorithm](value, int.from_bytes(digest, "big"), part.nbytes)
        return checksums.encode(value.to_bytes(nbytes, "big"))


def _digest(algorithm: str, part: Record) -> bytes:
    if algorithm == STORES_OWN:
        return part.crc64nvme.to_bytes(8, "big")
    header = HEADER_PREFIX + algorithm
    return checksums.decode(header, algorithm, part.attributes.get(header, ""))


def part_elements(attributes: Mapping[str, str]) -> list[tuple[str, str]]:
    """The checksums among headers, as the XML of a part or of an object names them."""
    return [
        (f"Checksum{algorithm.upper()}", attributes[header])
        for algorithm in ALGORITHMS
        if (header := HEADER_PREFIX + algorithm) in attributes
    ]
