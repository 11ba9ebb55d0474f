from __future__ import annotations

import unicodedata
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvgate.errors import InvalidArgument, InvalidTag, MalformedXML
from kvgate.s3.tagging import (
    MAX_BODY_NBYTES,
    MAX_BUCKET_TAGS,
    decode_tags,
    encode_tags,
    parse_tagging,
    parse_tagging_header,
    render_tagging,
)
from kvgate.s3.xml import document

_CHARACTERS = st.characters(categories=["L", "N", "Zs"], codec="utf-8") | st.sampled_from("_.:/=+-@")
_KEYS = st.text(_CHARACTERS, min_size=1, max_size=128).filter(lambda key: not key.lower().startswith("aws:"))
TAGS = st.dictionaries(_KEYS, st.text(_CHARACTERS, max_size=256), max_size=10)


def tagging(*tags: tuple[str, str]) -> bytes:
    return document("Tagging", [("TagSet", [("Tag", [("Key", key), ("Value", value)]) for key, value in tags])])


@given(TAGS)
@example({})
def test_a_document_leads_back(tags: dict[str, str]) -> None:
    assert parse_tagging(render_tagging(tags)) == tags


@given(TAGS)
def test_a_header_leads_back_however_it_is_quoted(tags: dict[str, str]) -> None:
    for quoting in (quote, quote_plus):
        assert parse_tagging_header(urlencode(tags, quote_via=quoting)) == tags


@given(TAGS)
def test_stored_tags_lead_back_and_are_the_same_for_the_same_tags(tags: dict[str, str]) -> None:
    stored = encode_tags(tags)
    assert stored.isascii()
    assert stored.isprintable()
    assert " " not in stored
    assert decode_tags(stored) == tags
    assert parse_tagging_header(stored) == tags
    assert encode_tags(dict(reversed(tags.items()))) == stored


def test_forms_of_a_header() -> None:
    assert parse_tagging_header("") == {}
    assert parse_tagging_header("a=1&b&c=") == {"a": "1", "b": "", "c": ""}
    assert parse_tagging_header("a=1=2&b+c=%2B") == {"a": "1=2", "b c": "+"}
    assert parse_tagging_header("%C3%A9=é") == {"é": "é"}


@pytest.mark.parametrize("header", ["a=%", "a=%4", "%zz=1", "a=%ff", "%80"])
def test_a_header_that_is_not_a_query_in_utf8_is_refused(header: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_tagging_header(header)


@pytest.mark.parametrize(
    "header", ["&", "a=1&", "a=1&&b=2", "=1", "a=1&a=2", "aws:x=1", "AWS%3Ax=1", "a=%00", "a=b%26c"]
)
def test_a_header_with_bad_tags_is_refused(header: str) -> None:
    with pytest.raises(InvalidTag):
        parse_tagging_header(header)


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ([("", "v")], "1 to 128 characters"),
        ([("k" * 129, "v")], "has 129"),
        ([("k", "v" * 257)], "257 characters"),
        ([("k", "1"), ("k", "1")], "'k' is given twice"),
        ([("aws:k", "v")], "reserved"),
        ([("AWS:k", "v")], "reserved"),
        ([("k", "a&b")], "letters, digits, spaces"),
        ([("k<", "v")], "letters, digits, spaces"),
        ([("k", "a\nb")], "letters, digits, spaces"),
        ([("k", "a\tb")], "letters, digits, spaces"),
        ([("k", "\N{GRINNING FACE}")], "letters, digits, spaces"),
        ([(str(n), "v") for n in range(11)], "at most 10 tags are accepted, not 11"),
        ([(str(n), "v") for n in range(40)], "at most 10 tags are accepted, not 40"),
    ],
)
def test_the_rules_of_tags(tags: list[tuple[str, str]], named: str) -> None:
    with pytest.raises(InvalidTag, match=named):
        parse_tagging(tagging(*tags))
    with pytest.raises(InvalidTag, match=named):
        parse_tagging_header(urlencode(tags))


def test_the_most_that_is_accepted() -> None:
    tags = {f"{n}".zfill(128): "é" * 256 for n in range(10)}
    assert parse_tagging(render_tagging(tags)) == tags
    assert parse_tagging_header(encode_tags(tags)) == tags
    assert parse_tagging(tagging(("k", ""), ("K", "")), 2) == {"k": "", "K": ""}
    assert parse_tagging(tagging((" aws:k", " v "))) == {" aws:k": " v "}


def test_a_bucket_may_have_more_tags_and_the_largest_set_fits_a_body() -> None:
    tags = {f"{n}".zfill(128): "\N{OLD TURKIC LETTER ORKHON A}" * 256 for n in range(50)}
    assert parse_tagging(render_tagging(tags), MAX_BUCKET_TAGS) == tags
    body = render_tagging(tags).replace("\N{OLD TURKIC LETTER ORKHON A}".encode(), b"&#x10C00;")
    assert parse_tagging(body, MAX_BUCKET_TAGS) == tags
    assert len(body) < MAX_BODY_NBYTES
    assert unicodedata.category("\N{OLD TURKIC LETTER ORKHON A}") == "Lo"
    with pytest.raises(InvalidTag, match="at most 50"):
        parse_tagging(render_tagging(tags | {"one": "more"}), MAX_BUCKET_TAGS)


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "<TagSet/><TagSet/>",
        "<Tags/>",
        "<TagSet><Other/></TagSet>",
        "<TagSet>text</TagSet>",
        "<TagSet><Tag/></TagSet>",
        "<TagSet><Tag><Key>k</Key></Tag></TagSet>",
        "<TagSet><Tag><Value>k</Value></Tag></TagSet>",
        "<TagSet><Tag><Key>k</Key><Key>l</Key><Value/></Tag></TagSet>",
        "<TagSet><Tag><Key>k</Key><Value/><Note/></Tag></TagSet>",
        "<TagSet><Tag><Key><b>k</b></Key><Value/></Tag></TagSet>",
    ],
)
def test_other_documents_are_refused(inside: str) -> None:
    with pytest.raises(MalformedXML):
        parse_tagging(f"<Tagging>{inside}</Tagging>".encode())


@given(st.text(max_size=80))
def test_any_header_is_read_or_refused(header: str) -> None:
    try:
        tags = parse_tagging_header(header)
    except (InvalidArgument, InvalidTag):
        return
    assert decode_tags(encode_tags(tags)) == tags
