"""Headers, queries and request targets: each parser gives something within its bounds, or refuses.

An input's first byte chooses one of `CHECKS`.
"""

from __future__ import annotations

import re
from urllib.parse import quote
from xml.etree.ElementTree import fromstring

from fuzz.draw import Draw, spliced
from fuzz.properties import is_clear, must, refusals
from fuzz.targets.base import Target
from kvgate.chunk.key import check_bucket, check_key, parse_key
from kvgate.chunk.layout import parse_range as parse_index_range
from kvgate.error_table import row_of
from kvgate.errors import InvalidRange, KVGateError
from kvgate.messages import Headers
from kvgate.s3 import checksums
from kvgate.s3.body import content_codings
from kvgate.s3.conditions import Conditions
from kvgate.s3.continuation import decode_token, encode_token
from kvgate.s3.errors import error_response
from kvgate.s3.listing import MAX_KEYS, Page, count_of
from kvgate.s3.part_checksums import PartChecksums
from kvgate.s3.parts import object_size, part_number
from kvgate.s3.ranges import parse_range
from kvgate.s3.representation import attributes_of, check_header_value, description
from kvgate.s3.target import parse_target
from kvgate.tiers.base import Record

_RANGES = ("bytes=0-0", "bytes=-5", "bytes=5-", "bytes=3-1", "bytes=0-1,3-4", "bytes=-", "BYTES = 1 - 2", "lines=0-1")
_DATES = (
    *("Fri, 02 Jan 2026 10:00:00 GMT", "Fri, 02 Jan 2026 10:00:00 +9999", "Friday, 02-Jan-26 10:00:00 GMT"),
    *("Fri Jan  2 10:00:00 2026", "2026-01-02T10:00:00Z", "1 Jan 0001 00:00:00 +0100", "31 Dec 9999 23:59:59 -0100"),
)
_TAGS = ('"a"', "*", 'W/"a"', '"a", "b"', "a", "", ",", "W/", '"')
_WORDS = (
    *("-", "=", ",", " ", "\t", "0", "9", "9" * 20, "%", "%2F", "%00", "%2e", "%ff", "%C3%A9", "é", "\u0660"),
    *("\udc80", "bytes", "GMT", "+0000", "-2400", "\x00", "\r\n", "&", "/", "..", "kv/", "_", "a" * 64, "a" * 1025),
    *("==", "-1"),
)
_RECORD = Record("t", "b", "k", 1000, 7, 1_770_000_000_000)
_VISIBLE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")


def _ranges(draw: Draw) -> None:
    nbytes = draw.pick((0, 1, 1000, 2**63))
    found = parse_range(spliced(draw, draw.pick(_RANGES), _WORDS))
    if found is not None:
        try:
            start, stop = found.resolve(nbytes)
        except InvalidRange as error:
            must(error.nbytes == nbytes, "the error tells another length")
        else:
            must(0 <= start < stop <= nbytes, "a range outside of the object")
    first, length = draw.below(2000), draw.below(2000)
    exact = parse_range(f"bytes={first}-{first + length}")
    must(exact is not None and (exact.first, exact.last) == (first, first + length), "a good range is not understood")


def _conditions(draw: Draw) -> None:
    headers = Headers(
        (draw.pick(("if-match", "if-none-match")), spliced(draw, draw.pick(_TAGS), _WORDS))
        if draw.one_in(2)
        else (
            draw.pick(("if-modified-since", "if-unmodified-since", "if-range")),
            spliced(draw, draw.pick(_DATES), _WORDS),
        )
        for _ in range(1 + draw.below(3))
    )
    conditions = Conditions.parse(headers)
    record = _RECORD._replace(mtime_ms=draw.pick((0, 1_770_000_000_000, 2**45)))
    for check_one in (
        lambda: conditions.check_read(record),
        lambda: conditions.check_write(record),
        lambda: conditions.check_write(None),
        lambda: conditions.range_applies(record),
    ):
        with refusals():
            check_one()


def _target(draw: Draw) -> None:
    path = spliced(draw, draw.pick(("/bucket/a/b", "/bucket", "/", "/_uploads/x", "//", "/b/%C3%A9")), _WORDS)
    query = spliced(draw, draw.pick(("", "a=b&c", "a=1&a=2", "prefix=%20&list-type=2", "&" * 70)), _WORDS)
    target = parse_target(path, query)
    must(len(target.key.encode()) <= 1024, "a key that is too long")
    must(not target.key or target.bucket, "a key without a bucket")
    again = "/" + quote(target.bucket, safe="") + ("/" + quote(target.key) if target.key else "")
    written = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in target.query.items())
    must(parse_target(again, written) == target, "a target that is another one when it is written again")
    check_bucket(target.bucket)
    check_key(target.key)
    parse_key(target.key)


def _listing(draw: Draw) -> None:
    names = ("prefix", "delimiter", "max-keys", "encoding-type", "max-parts")
    texts = [spliced(draw, draw.pick(("", "url", "10", "0")), _WORDS) for _ in range(draw.below(4))]
    query = {draw.pick(names): text.encode("utf-8", "replace").decode() for text in texts}  # as targets are decoded
    page = Page.parse(query)
    must(0 <= page.max_keys <= MAX_KEYS, "a page of too many keys")
    must(0 <= count_of(query, "max-parts", 7) <= 7, "a page of too many parts")
    if page.url_encoded:
        must(page.text(page.prefix).isascii(), "an encoded key that is not ASCII")


def _tokens(draw: Draw) -> None:
    key = draw.some(200).decode("utf-8", "replace")
    token = encode_token(key)
    must(decode_token(token) == key, "a token that does not come back")
    decode_token(spliced(draw, token, _WORDS)).encode()


def _checksums(draw: Draw) -> None:
    algorithm = draw.pick(tuple(checksums.ALGORITHMS))
    digest = checksums.new(algorithm)
    digest.update(memoryview(draw.some(20)))
    sent = checksums.encode(digest.digest())
    must(checksums.decode("h", algorithm, sent) == digest.digest(), "a digest that does not come back")
    nbytes = checksums.ALGORITHMS[algorithm][0]
    with refusals():
        must(len(checksums.decode("h", algorithm, spliced(draw, sent, _WORDS))) == nbytes, "a digest of another length")
    checksums.algorithm_of(spliced(draw, checksums.HEADER_PREFIX + algorithm, _WORDS))


def _parts(draw: Draw) -> None:
    names = ("x-amz-checksum-algorithm", "x-amz-checksum-type", "x-amz-mp-object-size", "x-amz-trailer")
    values = ("CRC32", "SHA256", "COMPOSITE", "FULL_OBJECT", "10", "x-amz-checksum-crc32")
    headers = Headers((draw.pick(names), spliced(draw, draw.pick(values), _WORDS)) for _ in range(draw.below(4)))
    asked = PartChecksums.parse(headers)
    must(PartChecksums.parse(asked.headers).headers == asked.headers, "an upload's checksums that do not come back")
    object_size(headers)
    with refusals():
        asked.check_part(headers)
    must(1 <= part_number(spliced(draw, draw.pick(("1", "10000", "0")), _WORDS)) <= 10_000, "an odd part number")


def _attributes(draw: Draw) -> None:
    names = ("content-type", "content-encoding", "expires", "x-amz-meta-a", "x-amz-meta-é", "cache-control")
    headers = Headers((draw.pick(names), spliced(draw, draw.text(40), _WORDS)) for _ in range(draw.below(5)))
    content_codings(headers)
    stored = attributes_of(headers)
    must(sum(len(value.encode()) for value in stored.values()) <= 8192, "stored headers that are too long")
    shown = description(_RECORD._replace(attributes=stored))
    must(all(_VISIBLE.fullmatch(value) for value in shown.values()), "a response header with control characters")
    check_header_value("name", draw.text(20))


def _index_range(draw: Draw) -> None:
    limit = 1 + draw.below(64)
    found = parse_index_range(spliced(draw, draw.pick(("0-15", "7")), _WORDS), limit)
    must(0 <= found.start < found.stop <= limit, "a range outside of the layout")


def _errors(draw: Draw) -> None:
    """An error about anything is a document that can be read."""
    try:
        parse_target(draw.text(40), draw.text(40))
    except KVGateError as error:
        answer = error_response(error, method="GET", resource=draw.text(40), request_id="id")
        must(is_clear(answer.status) and row_of(error).status == answer.status, "an error without a clear answer")
        must(isinstance(answer.body, bytes) and fromstring(answer.body).findtext("Code"), "no code")


CHECKS = (_ranges, _conditions, _target, _listing, _tokens, _checksums, _parts, _attributes, _index_range, _errors)


def check(data: bytes) -> None:
    draw = Draw(data)
    with refusals():
        draw.pick(CHECKS)(draw)


TARGETS = (
    Target(
        "fields",
        100_000,
        check,
        tuple(bytes([first]) for first in range(len(CHECKS))),
        tuple(word.encode("utf-8", "surrogatepass") for word in _WORDS),
    ),
)
