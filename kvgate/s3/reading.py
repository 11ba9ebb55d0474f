"""What GET and HEAD of an object have in common: which bytes are asked for, under which conditions, described how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from kvgate.errors import InvalidArgument, InvalidPartNumber, InvalidRequest, NotModified
from kvgate.s3.call import Call
from kvgate.s3.conditions import UNCONDITIONAL, Conditions
from kvgate.s3.part_sizes import PartSizes
from kvgate.s3.ranges import ByteRange, parse_range
from kvgate.s3.representation import OVERRIDES, check_header_value, checksum_headers, description
from kvgate.s3.versions import PARAMETER as VERSION

if TYPE_CHECKING:
    from kvgate.tiers.base import Record

PARAMETERS = frozenset({*OVERRIDES, "partNumber", VERSION})

_NO_OVERRIDES: Mapping[str, str] = MappingProxyType({})
_PART_NUMBER = re.compile(r"[1-9][0-9]{0,4}")


class Selection(NamedTuple):
    """The answer's status and headers, and the bytes [start, stop) of the object that are its body."""

    status: int
    headers: dict[str, str]
    start: int
    stop: int


class ReadInput(NamedTuple):
    """A GET or HEAD of one object.

    part_number: an object that was not uploaded in parts has one, which is the whole; clients ask for it to learn more
    overrides:   response headers that the caller wants instead of the stored ones
    """

    bucket: str
    key: str
    conditions: Conditions
    byte_range: ByteRange | None
    exact_ranges: bool
    part_number: int | None
    overrides: Mapping[str, str]
    with_checksums: bool

    @classmethod
    def parse(cls, call: Call) -> ReadInput:
        """Raises InvalidArgument or InvalidRequest."""
        headers, query = call.request.headers, call.target.query
        overrides, part = _overrides(query) if query else _NO_OVERRIDES, query.get("partNumber")
        if part is not None and not _PART_NUMBER.fullmatch(part):
            raise InvalidArgument("partNumber must be 1 to 10000")
        asked = headers.get("range")
        byte_range = parse_range(asked) if asked else None
        if part and byte_range:
            raise InvalidRequest("Range and partNumber cannot go together")
        return cls(
            bucket=call.target.bucket,
            key=call.target.key,
            conditions=Conditions.parse(headers),
            byte_range=byte_range,
            exact_ranges=call.request.exact_ranges,
            part_number=int(part) if part else None,
            overrides=overrides,
            with_checksums=headers.get("x-amz-checksum-mode").upper() == "ENABLED",
        )

    def select(self, record: Record) -> Selection:
        """What to answer for the current object. Raises PreconditionFailed, InvalidRange, InvalidPartNumber."""
        if self.conditions is not UNCONDITIONAL:
            try:
                self.conditions.check_read(record)
            except NotModified:
                return Selection(304, description(record, unchanged=True), 0, 0)
        headers = description(record)
        start, stop, status = 0, record.nbytes, 200
        if self.byte_range and self.conditions.range_applies(record):
            start, stop = self.byte_range.resolve(record.nbytes, exact=self.exact_ranges)
            status = 206
        elif self.part_number:
            status = 206 if record.nbytes else 200
            if parts := PartSizes.read(record.attributes):
                start, stop = parts.span(self.part_number)
                headers["x-amz-mp-parts-count"] = str(parts.count)
            elif self.part_number > 1:
                raise InvalidPartNumber(f"the object has one part, and no part {self.part_number}")
        if status == 206 and start < stop:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{record.nbytes}"
        if self.with_checksums and stop - start == record.nbytes:
            headers |= checksum_headers(record)
        for name, value in self.overrides.items():
            if name == "content-type":
                headers["Content-Type"] = value
            else:
                headers[name] = value
        return Selection(status, headers, start, stop)


def _overrides(query: Mapping[str, str]) -> dict[str, str]:
    overrides = {header: query[name] for name, header in OVERRIDES.items() if name in query}
    for name, value in overrides.items():
        check_header_value(f"response-{name}", value)
    return overrides
