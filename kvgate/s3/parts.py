"""What the operations on multipart uploads have in common: part numbers, and how uploads are written."""

from __future__ import annotations

import re

from kvgate.errors import InvalidArgument
from kvgate.messages import Headers
from kvgate.s3.listing import Entry
from kvgate.s3.part_checksums import PartChecksums

MAX_PARTS = 10_000

_NUMBER = re.compile(r"[0-9]{1,16}")


def part_number(text: str) -> int:
    """A part's number. Raises InvalidArgument."""
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= MAX_PARTS:
        raise InvalidArgument(f"a part number is 1 to {MAX_PARTS}")
    return int(text)


def object_size(headers: Headers) -> int | None:
    """The length that the object is to have, if the request says. Raises InvalidArgument."""
    text = headers.get("x-amz-mp-object-size")
    if text and not _NUMBER.fullmatch(text):
        raise InvalidArgument("x-amz-mp-object-size must be a number of bytes")
    return int(text) if text else None


def initiator_entry(tenant: str) -> Entry:
    """The Initiator element: whoever begins an upload is its owner here."""
    return ("Initiator", [("ID", tenant), ("DisplayName", tenant)])


def upload_checksum_entries(checksums: PartChecksums) -> list[Entry]:
    """The elements that say which checksum an upload has."""
    if not checksums.algorithm:
        return []
    return [("ChecksumAlgorithm", checksums.algorithm.upper()), ("ChecksumType", checksums.type)]
