"""An object's metadata as headers: those that a PUT stores, and those that GET and HEAD describe the object with."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from kvgate.auth.acl import PRIVATE, parse_canned_acl
from kvgate.errors import HeadersTooLarge, InvalidArgument
from kvgate.messages import Headers
from kvgate.s3.body import content_codings
from kvgate.s3.checksums import HEADER_PREFIX, encode_crc64nvme
from kvgate.s3.ordinary import ORDINARY_HEADERS
from kvgate.s3.tagging import decode_tags, encode_tags, parse_tagging_header
from kvgate.store.retention import TTL, parse_ttl

if TYPE_CHECKING:
    from kvgate.tiers.base import Record

USER_PREFIX = "x-amz-meta-"
ACL, TAGGING = "x-amz-acl", "x-amz-tagging"
"""Attributes, and headers of an upload, that hold an object's canned ACL and its tags."""

ANNOTATIONS = frozenset({ACL, TAGGING})
MAX_USER_METADATA_NBYTES = 2048
MAX_STORED_HEADERS_NBYTES = 4096
DEFAULT_CONTENT_TYPE = "binary/octet-stream"

_STORED = ("cache-control", "content-disposition", "content-language", "content-type", "expires")
_OVERRIDABLE = (*_STORED, "content-encoding")
OVERRIDES = {f"response-{name}": name for name in _OVERRIDABLE}
"""Query parameters of GET and HEAD, and the response header that each replaces."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TWO = tuple(f"{number:02}" for number in range(60))
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")


def attributes_of(headers: Headers) -> dict[str, str]:
    """What an upload's headers say about the object, to be stored with it.

    Raises HeadersTooLarge for more than 2 KiB of user metadata, InvalidArgument for a value that no response header
    could carry or for a lifetime that is none, InvalidTag, or UnsupportedOperation for an ACL that is not offered.
    """
    if headers.all_among(ORDINARY_HEADERS):
        return {}
    stored = {name: headers.get(name) for name in _STORED if name in headers}
    codings = [coding for coding in content_codings(headers) if coding != "aws-chunked"]
    if codings:
        stored["content-encoding"] = ",".join(codings)
    user = {name: ",".join(headers.getall(name)) for name, _ in headers.items() if name.startswith(USER_PREFIX)}
    for name, value in (stored | user).items():
        check_header_value(name, value)
    if TTL in user:
        try:
            parse_ttl(user[TTL])
        except ValueError as error:
            raise InvalidArgument(f"{TTL}: {error}") from None
    if _nbytes(user) - len(USER_PREFIX) * len(user) > MAX_USER_METADATA_NBYTES:
        raise HeadersTooLarge(f"the {USER_PREFIX}* headers are over {MAX_USER_METADATA_NBYTES} bytes in all")
    if _nbytes(stored) > MAX_STORED_HEADERS_NBYTES:
        raise HeadersTooLarge(f"the headers to store are over {MAX_STORED_HEADERS_NBYTES} bytes in all")
    return stored | user | annotations_of(headers)


def annotations_of(headers: Headers) -> dict[str, str]:
    """The ACL and the tags that an upload's headers give. Raises InvalidTag, InvalidArgument, UnsupportedOperation."""
    annotations = {}
    if ACL in headers and (acl := parse_canned_acl(headers.get(ACL))) != PRIVATE:
        annotations[ACL] = acl
    if tags := parse_tagging_header(headers.get(TAGGING)):
        annotations[TAGGING] = encode_tags(tags)
    return annotations


def check_header_value(name: str, value: str) -> None:
    """Raises InvalidArgument for control characters and for what is not UTF-8."""
    if _CONTROL.search(value):
        raise InvalidArgument(f"the value of {name} has a control character or is not UTF-8")


def description(record: Record, *, unchanged: bool = False) -> dict[str, str]:
    """The headers that describe an object, without its checksums; only what a 304 carries when it is `unchanged`."""
    if unchanged:
        kept = {name: record.attributes[name] for name in ("cache-control", "expires") if name in record.attributes}
        return {"ETag": f'"{record.etag}"', "Last-Modified": http_date(record.mtime_ms)} | kept
    return dict(_described(record).headers)


def _describe(record: Record) -> dict[str, str]:
    headers = {
        "ETag": f'"{record.etag}"',
        "Last-Modified": http_date(record.mtime_ms),
        "Accept-Ranges": "bytes",
        "Content-Type": DEFAULT_CONTENT_TYPE,
    }
    for name, value in record.attributes.items():
        if name == "content-type":
            headers["Content-Type"] = value
        elif name == TAGGING:
            headers["x-amz-tagging-count"] = str(len(decode_tags(value)))
        elif name != ACL and not name.startswith((HEADER_PREFIX, "_")):
            headers[name] = value
    return headers


def described(record: Record) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The headers that describe an object, and those that its checksums add."""
    found = _described(record)
    return found.headers, found.checksums


def metadata_of(record: Record) -> dict[str, str]:
    """What the writer of an object said of it besides its annotations and its checksum: what a copy takes over."""
    return {
        name: value
        for name, value in record.attributes.items()
        if name not in ANNOTATIONS and not name.startswith((HEADER_PREFIX, "_"))
    }


def checksum_headers(record: Record) -> Mapping[str, str]:
    """The checksum that the object's writer sent, or the store's crc64nvme, and what it was taken of."""
    known = _recent[_slot(record)]
    if known is not None and known.record is record:
        return known.checksums
    return _describe_checksums(record)  # all that is asked of most that have just been written


def _describe_checksums(record: Record) -> dict[str, str]:
    attributes = record.attributes
    sent = attributes and {name: value for name, value in attributes.items() if name.startswith(HEADER_PREFIX)}
    return {
        "x-amz-checksum-type": "FULL_OBJECT",
        **(sent or {"x-amz-checksum-crc64nvme": encode_crc64nvme(record.crc64nvme)}),
    }


class _Described(NamedTuple):
    """What is said of a record."""

    record: Record
    headers: Mapping[str, str]
    checksums: Mapping[str, str]


_recent: list[_Described | None] = [None] * 1024
"""The last record described of those whose places in memory share a slot. Records are compared by identity."""


def _described(record: Record) -> _Described:
    slot = _slot(record)
    known = _recent[slot]
    if known is None or known.record is not record:
        known = _recent[slot] = _Described(record, _describe(record), _describe_checksums(record))
    return known


def _slot(record: Record) -> int:
    return (id(record) >> 4) % len(_recent)


def http_date(mtime_ms: int) -> str:
    """A Last-Modified value: whole seconds. RFC 9110, section 5.6.7."""
    days, second = divmod(mtime_ms // 1000, 86400)
    return f"{_day(days)} {_TWO[second // 3600]}:{_TWO[second // 60 % 60]}:{_TWO[second % 60]} GMT"


@lru_cache(maxsize=256)
def _day(days: int) -> str:
    """The day that begins so many days after the epoch; unlike `time.strftime` in English in every locale."""
    year, month, day, _, _, _, weekday, _, _ = time.gmtime(days * 86400)
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04}"


def _nbytes(headers: Mapping[str, str]) -> int:
    return sum(len(name) + len(value.encode()) for name, value in headers.items())
