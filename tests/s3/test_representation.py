from __future__ import annotations

import pytest

from kvgate.errors import HeadersTooLarge, InvalidArgument
from kvgate.messages import Headers
from kvgate.s3.representation import attributes_of, checksum_headers, description, http_date
from kvgate.tiers.base import Record


def record(**attributes: str) -> Record:
    named = {name.replace("_", "-"): value for name, value in attributes.items()}
    return Record("acme", "b", "k", 7, 5, 1_700_000_000_900, named)


def test_an_upload_stores_what_describes_the_object() -> None:
    headers = Headers(
        [
            ("Content-Type", "text/plain"),
            ("Cache-Control", "no-store"),
            ("Content-Disposition", "inline"),
            ("Content-Language", "de"),
            ("Expires", "0"),
            ("Content-Encoding", "gzip, aws-chunked"),
            ("X-Amz-Meta-A", "1"),
            ("X-Amz-Meta-A", "2"),
            ("X-Amz-Acl", "private"),
            ("Authorization", "secret"),
            ("Content-Length", "5"),
        ]
    )
    assert attributes_of(headers) == {
        "content-type": "text/plain",
        "cache-control": "no-store",
        "content-disposition": "inline",
        "content-language": "de",
        "expires": "0",
        "content-encoding": "gzip",
        "x-amz-meta-a": "1,2",
    }
    assert attributes_of(Headers([("content-encoding", "aws-chunked")])) == {}


def test_user_metadata_is_bounded_without_its_prefix() -> None:
    assert attributes_of(Headers([("x-amz-meta-abc", "v" * 2045)]))
    with pytest.raises(HeadersTooLarge):
        attributes_of(Headers([("x-amz-meta-abc", "v" * 2046)]))
    with pytest.raises(HeadersTooLarge):
        attributes_of(Headers([("x-amz-meta-abc", "é" * 1023)]))
    with pytest.raises(HeadersTooLarge):
        attributes_of(Headers([("content-disposition", "v" * 4096)]))


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\x00b", "a\x7fb", "a\udcffb"])
def test_values_that_no_header_can_carry_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgument):
        attributes_of(Headers([("x-amz-meta-a", value)]))


def test_an_object_is_described_by_its_headers() -> None:
    found = record(content_type="text/plain", x_amz_meta_a="1", x_amz_checksum_crc32="AAAAAA==")
    assert description(found) == {
        "ETag": f'"{found.etag}"',
        "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT",
        "Accept-Ranges": "bytes",
        "Content-Type": "text/plain",
        "x-amz-meta-a": "1",
    }
    assert description(record())["Content-Type"] == "binary/octet-stream"
    assert http_date(1_700_000_000_900) == "Tue, 14 Nov 2023 22:13:20 GMT"


def test_the_writers_checksum_goes_before_the_stores() -> None:
    sent = {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-type": "FULL_OBJECT"}
    assert checksum_headers(record(x_amz_checksum_crc32="AAAAAA==")) == sent
    assert checksum_headers(record()) == {
        "x-amz-checksum-crc64nvme": "AAAAAAAAAAU=",
        "x-amz-checksum-type": "FULL_OBJECT",
    }
