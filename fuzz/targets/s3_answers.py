"""What an S3 store answers: whatever comes is understood, or is an error of the tier, in words that can be printed."""

from __future__ import annotations

from typing import cast

from fuzz.draw import Draw
from fuzz.properties import must
from fuzz.targets.base import Target
from kvgate.errors import TierError
from kvgate.http.connection import Connection
from kvgate.messages import Headers
from kvgate.tiers.s3_calls import Answer, error_code, parse_document, text_of
from kvgate.tiers.s3_parts import age_s

_ERROR = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
)
_PAGE = (
    b"<ListMultipartUploadsResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><IsTruncated>false</IsTruncated>"
    b"<Upload><Key>a</Key><UploadId>1</UploadId><Initiated>2026-11-26T01:02:03.000Z</Initiated></Upload>"
    b"</ListMultipartUploadsResult>"
)
_WORDS = (
    b"<Code>",
    b"</Code>",
    b"<Error>",
    b"encoding='UTF-16'",
    b"<!DOCTYPE a [",
    b"<!ENTITY b 'c'>",
    b"&b;",
    b"&#0;",
)


def check_document(data: bytes) -> None:
    code, words = error_code(data)
    must(len(code) <= 64 and len(words) <= 160, "words without a bound")
    must((code + words).isprintable() and (code + words).isascii(), "words that cannot be printed")
    try:
        root = parse_document(data)
    except TierError:
        return
    for element in (root, *root):
        must(type(text_of(element, "Key")) is str, "a text that is none")
        must(age_s(text_of(element, "Initiated")) < float("inf"), "an age that is none")


def check_span(data: bytes) -> None:
    draw = Draw(data)
    status = draw.pick((200, 206))
    value = draw.rest().decode("latin-1")
    headers = Headers([("content-length", value), ("content-range", value), ("etag", value)])
    answer = Answer(cast("Connection", None), status, headers)
    must(not answer.etag or answer.etag.startswith('"'), "a weak tag that is to be matched")
    try:
        start, stop, total = answer.span
    except TierError:
        return
    must(0 <= start <= stop <= total, "a span that is none")


TARGETS = (
    Target("s3-documents", 30_000, check_document, (_ERROR, _PAGE), _WORDS),
    Target("s3-spans", 10_000, check_span, (b"\x01bytes 0-9/10", b"\x0010"), (b"bytes ", b"-", b"/", b"*", b'"')),
)
