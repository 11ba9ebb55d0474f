from __future__ import annotations

from urllib.parse import unquote, unquote_plus

import pytest

from kvgate.errors import InvalidArgument, MalformedXML
from kvgate.s3.listing import Page, iso_date
from kvgate.s3.operations.delete_objects import parse_deletions


def test_a_page_has_defaults_and_a_cap() -> None:
    assert Page.parse({}) == Page("", "", 1000, False)
    assert Page.parse({"max-keys": "5000"}).max_keys == 1000
    assert Page.parse({"max-keys": "0"}).max_keys == 0
    for query in ({"max-keys": "-1"}, {"max-keys": "x"}, {"max-keys": "1" * 11}, {"encoding-type": "base64"}):
        with pytest.raises(InvalidArgument):
            Page.parse(query)


def test_url_encoding_survives_both_ways_of_decoding() -> None:
    page = Page.parse({"encoding-type": "url"})
    for key in ("a b", "a+b", "a%2Bb", "a/b", "ü\x01\r\n", "~"):
        assert unquote(page.text(key)) == unquote_plus(page.text(key)) == key
    assert Page.parse({}).text("a b") == "a b"


def test_dates_have_milliseconds() -> None:
    assert iso_date(1_700_000_000_042) == "2023-11-14T22:13:20.042Z"


def test_deletions_are_read() -> None:
    deletions, quiet = parse_deletions(
        b"<Delete><Object><Key>a</Key></Object><Object><Key>b</Key><ETag>&quot;x&quot;</ETag></Object>"
        b"<Object><Key>c</Key><VersionId>3</VersionId></Object><Object><Key>d</Key><VersionId/></Object>"
        b"<Object><Key>e</Key><Size>5</Size></Object><Quiet>true</Quiet></Delete>"
    )
    assert quiet
    assert [(each.key, each.conditions.if_match, each.version, each.unsupported) for each in deletions] == [
        ("a", (), "", ""),
        ("b", ("x",), "", ""),
        ("c", (), "3", ""),
        ("d", (), "", ""),
        ("e", (), "", "Size"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"<Delete/>",
        b"<Delete><Object/></Delete>",
        b"<Delete><Object><Key></Key></Object></Delete>",
        b"<Delete>" + b"<Object><Key>k</Key></Object>" * 1001 + b"</Delete>",
    ],
)
def test_a_delete_document_has_1_to_1000_keys(body: bytes) -> None:
    with pytest.raises(MalformedXML):
        parse_deletions(body)
    assert len(parse_deletions(b"<Delete>" + b"<Object><Key>k</Key></Object>" * 1000 + b"</Delete>")[0]) == 1000
