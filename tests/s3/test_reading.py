from __future__ import annotations

import pytest

from kvgate.auth.identity import UnsignedPayload
from kvgate.errors import InvalidArgument, InvalidPartNumber, InvalidRange, InvalidRequest, PreconditionFailed
from kvgate.messages import Headers, Request
from kvgate.s3.call import Call
from kvgate.s3.reading import ReadInput, Selection
from kvgate.s3.target import parse_target
from kvgate.tiers.base import Record

RECORD = Record("acme", "b", "k", 100, 5, 1_700_000_000_900, {"content-type": "text/plain", "expires": "0"})
ETAG = f'"{RECORD.etag}"'


def parse(query: str = "", **headers: str) -> ReadInput:
    named = Headers([(name.replace("_", "-"), value) for name, value in headers.items()])
    unsigned = UnsignedPayload()
    return ReadInput.parse(Call(Request("GET", "/b/k", query, named), parse_target("/b/k", query), unsigned))


def select(query: str = "", record: Record = RECORD, **headers: str) -> Selection:
    return parse(query, **headers).select(record)


def test_the_whole_object_is_the_default() -> None:
    selection = select()
    assert (selection.status, selection.start, selection.stop) == (200, 0, 100)
    assert "Content-Range" not in selection.headers
    assert not any(name.startswith("x-amz-checksum") for name in selection.headers)


def test_a_range_is_partial_content_without_checksums() -> None:
    selection = select(range="bytes=10-19", x_amz_checksum_mode="ENABLED")
    assert (selection.status, selection.start, selection.stop) == (206, 10, 20)
    assert selection.headers["Content-Range"] == "bytes 10-19/100"
    assert not any(name.startswith("x-amz-checksum") for name in selection.headers)
    with pytest.raises(InvalidRange):
        select(range="bytes=100-")


def test_checksums_come_with_the_whole_object_when_asked_for() -> None:
    for asked in ({}, {"range": "bytes=0-"}):
        headers = select(x_amz_checksum_mode="ENABLED", **asked).headers
        assert headers["x-amz-checksum-crc64nvme"] == "AAAAAAAAAAU="


def test_the_one_part_is_the_whole() -> None:
    selection = select("partNumber=1", x_amz_checksum_mode="ENABLED")
    assert (selection.status, selection.start, selection.stop) == (206, 0, 100)
    assert selection.headers["Content-Range"] == "bytes 0-99/100"
    assert select("partNumber=1", RECORD._replace(nbytes=0)).status == 200
    assert "x-amz-mp-parts-count" not in selection.headers
    with pytest.raises(InvalidPartNumber):
        select("partNumber=2")
    with pytest.raises(InvalidRequest):
        parse("partNumber=1", range="bytes=0-1")
    for bad in ("0", "x", "-1", ""):
        with pytest.raises(InvalidArgument):
            parse(f"partNumber={bad}")


def test_a_part_is_a_range_of_what_was_uploaded_in_parts() -> None:
    record = RECORD._replace(attributes={"_parts": "40*2,20"})
    spans = [(found.start, found.stop) for found in (select(f"partNumber={number}", record) for number in (1, 2, 3))]
    assert spans == [(0, 40), (40, 80), (80, 100)]
    selection = select("partNumber=2", record, x_amz_checksum_mode="ENABLED")
    assert (selection.status, selection.headers["Content-Range"]) == (206, "bytes 40-79/100")
    assert selection.headers["x-amz-mp-parts-count"] == "3"
    assert not any(name.startswith(("x-amz-checksum", "_")) for name in selection.headers)
    assert "x-amz-mp-parts-count" not in select("", record).headers
    with pytest.raises(InvalidPartNumber):
        select("partNumber=4", record)
    only = select("partNumber=1", RECORD._replace(attributes={"_parts": "100"}), x_amz_checksum_mode="ENABLED")
    assert (only.status, only.headers["x-amz-mp-parts-count"]) == (206, "1")
    assert "x-amz-checksum-crc64nvme" in only.headers


def test_an_empty_part_has_no_range() -> None:
    record = RECORD._replace(attributes={"_parts": "100,0"})
    selection = select("partNumber=2", record)
    assert (selection.status, selection.start, selection.stop) == (206, 100, 100)
    assert "Content-Range" not in selection.headers


def test_not_modified_names_the_object_and_nothing_else() -> None:
    selection = select(if_none_match=ETAG)
    assert (selection.status, selection.start, selection.stop) == (304, 0, 0)
    assert selection.headers == {"ETag": ETAG, "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT", "expires": "0"}


def test_conditions_go_before_ranges() -> None:
    with pytest.raises(PreconditionFailed):
        select(if_match='"other"', range="bytes=1000-")
    assert select(range="bytes=0-9", if_range=ETAG).status == 206
    assert select(range="bytes=0-9", if_range='"other"').status == 200


def test_overrides_replace_stored_headers() -> None:
    headers = select("response-content-type=a%2Fb&response-cache-control=no-store&response-expires=1").headers
    assert (headers["Content-Type"], headers["cache-control"], headers["expires"]) == ("a/b", "no-store", "1")
    with pytest.raises(InvalidArgument):
        parse("response-content-type=a%0d%0aSet-Cookie:x")
