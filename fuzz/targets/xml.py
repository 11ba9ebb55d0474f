"""XML bodies: each parser takes a document or says MalformedXML; what the writer writes reads back the same."""

from __future__ import annotations

import re
from collections.abc import Callable

from fuzz.draw import Draw
from fuzz.properties import must, refusals
from fuzz.targets.base import Target
from kvgate.errors import MalformedXML
from kvgate.s3.acl_xml import access_control_policy, parse_access_control_policy
from kvgate.s3.cors import find_rule, parse_cors, preflight_headers, render_cors
from kvgate.s3.lifecycle import parse_lifecycle, render_lifecycle
from kvgate.s3.operations.complete_multipart_upload import parse_listing
from kvgate.s3.operations.delete_objects import parse_deletions
from kvgate.s3.tagging import MAX_BUCKET_TAGS, decode_tags, encode_tags, parse_tagging, render_tagging
from kvgate.s3.xml import MAX_DEPTH, MAX_ELEMENTS, document, parse
from kvgate.store.lifecycle import dumps, loads

_IN_XML = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
"""What XML 1.0 can carry."""


def _parse_configuration(body: bytes) -> None:
    root = parse(body, "CreateBucketConfiguration")
    elements = list(root.iter())
    must(len(elements) <= MAX_ELEMENTS, "more elements than the limit")
    must(all(type(element.tag) is str and not element.attrib for element in elements), "an odd element")


def _parse_deletions(body: bytes) -> None:
    deletions, _ = parse_deletions(body)
    must(all(deletion.key for deletion in deletions), "a deletion without a key")


def _parse_listing(body: bytes) -> None:
    for part in parse_listing(body):
        must(1 <= part.number <= 10_000 and part.etag is not None, "an odd part")


def _parse_tagging(body: bytes) -> None:
    tags = parse_tagging(body, MAX_BUCKET_TAGS)
    must(parse_tagging(render_tagging(tags), MAX_BUCKET_TAGS) == tags, "tags that do not come back")
    must(decode_tags(encode_tags(tags)) == tags, "tags that do not come back from where they are kept")


def _parse_cors(body: bytes) -> None:
    rules = parse_cors(body)
    must(parse_cors(render_cors(rules)) == rules, "CORS rules that do not come back")
    for rule in rules:
        origin, headers = rule.origins[0].replace("*", "x"), [name.replace("*", "x") for name in rule.headers[:9]]
        found = find_rule(rules, origin, rule.methods[0], headers)
        must(found, "a CORS rule that does not match what it names")
        for value in preflight_headers(found or rule, origin, rule.methods[0], headers).values():
            must(value.isprintable(), f"a header {value!r}")


def _parse_lifecycle(body: bytes) -> None:
    rules = parse_lifecycle(body)
    must(parse_lifecycle(render_lifecycle(rules)) == rules, "lifecycle rules that do not come back")
    must(loads(dumps(rules)) == rules, "lifecycle rules that do not come back from where they are kept")


def _parse_acl(body: bytes) -> None:
    acl = parse_access_control_policy(body, "o")
    again = parse_access_control_policy(document("AccessControlPolicy", access_control_policy("o", acl)), "o")
    must(again == acl, "an ACL that does not come back")


PARSERS: tuple[Callable[[bytes], object], ...] = (
    *(_parse_configuration, _parse_deletions, _parse_listing, _parse_tagging, _parse_cors),
    *(_parse_lifecycle, _parse_acl),
)
"""An input's first byte chooses one of these, modulo their number; the others are the document."""


def check(data: bytes) -> None:
    if data:
        with refusals():
            PARSERS[data[0] % len(PARSERS)](data[1:])


def check_written(data: bytes) -> None:
    """Text in an element reads back as it is, or, where XML cannot carry it, makes the document unreadable."""
    draw = Draw(data)
    depth, texts = draw.below(MAX_DEPTH - 2), [draw.text(20) for _ in range(1 + draw.below(3))]
    children: list[tuple[str, object]] = [("Text", text) for text in texts]
    for _ in range(depth):
        children = [("Level", children)]
    body = document("Root", children)  # type: ignore[arg-type]
    readable = all(_IN_XML.fullmatch(text) for text in texts)
    try:
        found = [element.text or "" for element in parse(body, "Root").iter("Text")]
    except MalformedXML:
        must(not readable, "a document that cannot be read back")
    else:
        must(found == texts, "a document that reads back differently")


_DELETE = (
    b"<Delete xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Object><Key>k</Key></Object><Quiet>true</Quiet></Delete>"
)
_COMPLETE = (
    b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>&quot;e&quot;</ETag><ChecksumCRC32>AAAAAA=="
    b"</ChecksumCRC32></Part></CompleteMultipartUpload>"
)
_CREATE = (
    b"<?xml version='1.0' encoding='UTF-8'?><CreateBucketConfiguration><LocationConstraint>eu-1</LocationConstraint>"
    b"</CreateBucketConfiguration>"
)
_TAGGING = b"<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>"
_CORS = (
    b"<CORSConfiguration><CORSRule><ID>i</ID><AllowedOrigin>http://*.a</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
    b"<AllowedHeader>x-*</AllowedHeader><ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>9</MaxAgeSeconds></CORSRule>"
    b"</CORSConfiguration>"
)
_LIFECYCLE = (
    b"<LifecycleConfiguration><Rule><ID>r</ID><Filter><And><Prefix>p</Prefix><Tag><Key>k</Key><Value>v</Value></Tag>"
    b"<ObjectSizeGreaterThan>1</ObjectSizeGreaterThan></And></Filter><Status>Enabled</Status><Expiration><Date>"
    b"2030-01-31T00:00:00Z</Date></Expiration></Rule><Rule><Prefix/><Status>Disabled</Status><Expiration><Days>7</Days>"
    b"</Expiration><AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>"
    b"</AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>"
)
_ACL = (
    b"<AccessControlPolicy><Owner><ID>o</ID></Owner><AccessControlList><Grant><Grantee><ID>o</ID></Grantee><Permission>"
    b"FULL_CONTROL</Permission></Grant><Grant><Grantee><URI>http://acs.amazonaws.com/groups/global/AllUsers</URI>"
    b"</Grantee><Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>"
)
_WORDS = (
    *(b"<Tag>", b"<Key>", b"<Value>", b"<CORSRule>", b"<AllowedOrigin>*</AllowedOrigin>", b"*", b"<Rule>"),
    *(b"<Filter>", b"<Days>2147483647</Days>", b"9999-12-31", b"0001-01-01T00:00:00+14:00", b"T00:00:00-23:59"),
    *(b"1e9", b"-1", b"<Date>", b"<Object>", b"</Object>", b"<Key>", b"</Key>", b"<ETag>", b"<VersionId>", b"<Part>"),
    *(b"<PartNumber>", b"<!--", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"&#0;", b"&#x110000;", b"&#xd800;"),
    *(b"<![CDATA[", b"]]>", b"<?pi ?>", b"encoding='utf-16'", b"encoding='utf-7'", b"encoding='idna'"),
    *(b"encoding='hex'", b"encoding='unicode_escape'", b"encoding='undefined'", b"encoding='shift_jis'"),
    *(b"encoding='\x00'", b"encoding='latin-1'", b"version='1.1'", b"xmlns:a='b'", b"a:", b"\xff\xfe"),
    *(b"\xef\xbb\xbf", b"standalone='no'", b"<" + b"a" * 300 + b">", b"<a>" * 9, b"xmlns=''", b"}", b"{"),
    *(b"10000", b"9" * 5000),
)

_GOOD = (_CREATE, _DELETE, _COMPLETE, _TAGGING, _CORS, _LIFECYCLE, _ACL)
"""A document for each of PARSERS."""

TARGETS = (
    Target(
        "xml",
        130_000,
        check,
        tuple(bytes([first]) + body for first, body in enumerate(_GOOD)),
        _WORDS,
    ),
    Target("xml-written", 30_000, check_written),
)
