from __future__ import annotations

import base64
import hashlib
import os
import zlib

import pytest

from kvgate.errors import BadDigest, InvalidArgument, InvalidRequest
from kvgate.memory.digest import crc64nvme
from kvgate.messages import Headers
from kvgate.s3 import checksums
from kvgate.s3.part_checksums import PartChecksums, part_elements
from kvgate.tiers.base import Record

BODIES = [os.urandom(1000), b"", os.urandom(70_001)]


def asked(algorithm: str = "", kind: str = "") -> PartChecksums:
    named = {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind}
    return PartChecksums.parse(Headers([(name, value) for name, value in named.items() if value]))


def digest(algorithm: str, body: bytes) -> bytes:
    checksum = checksums.new(algorithm)
    checksum.update(memoryview(body))
    return checksum.digest()


def parts(algorithm: str) -> list[Record]:
    return [
        Record(
            "t",
            "b",
            str(number),
            len(body),
            crc64nvme([memoryview(body)]),
            0,
            {f"x-amz-checksum-{algorithm}": checksums.encode(digest(algorithm, body))},
        )
        for number, body in enumerate(BODIES)
    ]


@pytest.mark.parametrize(
    ("algorithm", "kind", "expected"),
    [
        ("", "", ("", False)),
        ("CRC32", "", ("crc32", True)),
        ("CRC32C", "COMPOSITE", ("crc32c", True)),
        ("CRC32", "FULL_OBJECT", ("crc32", False)),
        ("CRC64NVME", "", ("crc64nvme", False)),
        ("SHA1", "", ("sha1", True)),
        ("SHA256", "COMPOSITE", ("sha256", True)),
    ],
)
def test_the_type_follows_from_the_algorithm(algorithm: str, kind: str, expected: tuple[str, bool]) -> None:
    found = asked(algorithm, kind)
    assert (found.algorithm, found.composite) == expected
    assert PartChecksums.parse(found.headers) == found


@pytest.mark.parametrize(
    ("algorithm", "kind", "error"),
    [
        ("CRC16", "", InvalidArgument),
        ("CRC32", "PARTIAL", InvalidArgument),
        ("", "COMPOSITE", InvalidRequest),
        ("CRC64NVME", "COMPOSITE", InvalidRequest),
        ("SHA256", "FULL_OBJECT", InvalidRequest),
    ],
)
def test_what_s3_does_not_offer_is_refused(algorithm: str, kind: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        asked(algorithm, kind)


@pytest.mark.parametrize("algorithm", ["crc32", "crc32c", "sha1", "sha256", "sha512", "md5"])
def test_a_composite_checksum_is_taken_of_the_parts_checksums(algorithm: str) -> None:
    attributes = asked(algorithm.upper()).attributes(parts(algorithm))
    whole = digest(algorithm, b"".join(digest(algorithm, body) for body in BODIES))
    assert attributes == {
        f"x-amz-checksum-{algorithm}": f"{base64.b64encode(whole).decode()}-3",
        "x-amz-checksum-type": "COMPOSITE",
    }


@pytest.mark.parametrize("algorithm", ["crc32", "crc32c", "crc64nvme"])
def test_a_full_checksum_is_that_of_the_bytes(algorithm: str) -> None:
    found, records = asked(algorithm.upper(), "FULL_OBJECT"), parts(algorithm)
    value = checksums.encode(digest(algorithm, b"".join(BODIES)))
    expected = {f"x-amz-checksum-{algorithm}": value, "x-amz-checksum-type": "FULL_OBJECT"}
    assert found.attributes(records) == ({} if algorithm == "crc64nvme" else expected)
    found.verify(Headers([(f"x-amz-checksum-{algorithm}", value)]), records)
    with pytest.raises(BadDigest):
        found.verify(Headers([(f"x-amz-checksum-{algorithm}", checksums.encode(bytes(8)))]), records)


def test_what_a_completion_states_is_held_against_the_parts() -> None:
    whole = hashlib.sha256(b"".join(hashlib.sha256(body).digest() for body in BODIES)).digest()
    value = base64.b64encode(whole).decode()
    found, records = asked("SHA256"), parts("sha256")
    for stated in (value, f"{value}-3"):
        found.verify(Headers([("x-amz-checksum-sha256", stated), ("x-amz-checksum-type", "COMPOSITE")]), records)
    with pytest.raises(BadDigest):
        found.verify(Headers([("x-amz-checksum-sha256", f"{value}-2")]), records)
    with pytest.raises(InvalidRequest):
        found.verify(Headers([("x-amz-checksum-type", "FULL_OBJECT")]), records)
    with pytest.raises(InvalidRequest):
        found.verify(Headers([("x-amz-checksum-crc32", base64.b64encode(bytes(4)).decode())]), records)
    crc = checksums.encode(digest("crc64nvme", b"".join(BODIES)))
    asked().verify(Headers([("x-amz-checksum-crc64nvme", crc)]), records)


def test_a_part_without_its_checksum_is_refused_before_it_is_sent() -> None:
    found = asked("CRC32")
    found.check_part(Headers([("x-amz-checksum-crc32", "AAAAAA==")]))
    found.check_part(Headers([("x-amz-trailer", "x-amz-checksum-crc32")]))
    for headers in ([], [("x-amz-checksum-sha1", "x")], [("x-amz-trailer", "x-amz-checksum-crc32c")]):
        with pytest.raises(InvalidRequest):
            found.check_part(Headers(headers))
    asked().check_part(Headers())
    asked("CRC64NVME").check_part(Headers())


def test_checksums_are_named_as_in_xml() -> None:
    value = base64.b64encode(zlib.crc32(b"x").to_bytes(4, "big")).decode()
    attributes = {"x-amz-checksum-crc32": value, "x-amz-checksum-type": "COMPOSITE", "content-type": "a/b"}
    assert part_elements(attributes) == [("ChecksumCRC32", value)]
