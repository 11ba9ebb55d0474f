from __future__ import annotations

import pytest

from kvgate.errors import InvalidArgument, InvalidBucketName, NoSuchVersion
from kvgate.messages import Headers
from kvgate.s3.copying import CopySource
from kvgate.s3.operations.upload_part_copy import parse_span


def parse(value: str, **headers: str) -> CopySource:
    named = [(name.replace("_", "-"), text) for name, text in headers.items()]
    return CopySource.parse(Headers([("x-amz-copy-source", value), *named]))


@pytest.mark.parametrize(
    ("value", "bucket", "key"),
    [
        ("b/k", "b", "k"),
        ("/b/k", "b", "k"),
        ("b/d/e//f", "b", "d/e//f"),
        ("b//k", "b", "/k"),
        ("/b/%2Fk", "b", "/k"),
        ("b%2Fd%2Fk", "b", "d/k"),  # url.PathEscape of the whole
        ("%2Fb%2Fk", "b", "k"),
        ("b/a%20b+c%2Bd", "b", "a b+c+d"),
        ("b/a%2520b", "b", "a%20b"),
        ("b/%3Fversion%23", "b", "?version#"),
        ("b/%C3%BC", "b", "ü"),
        ("b/ü", "b", "ü"),
        ("tenant_b/k", "tenant_b", "k"),
        ("b/k?versionId=null", "b", "k"),
    ],
)
def test_a_source_is_decoded_once(value: str, bucket: str, key: str) -> None:
    source = parse(value)
    assert (source.bucket, source.key) == (bucket, key)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", InvalidArgument),
        ("b", InvalidArgument),
        ("/b/", InvalidArgument),
        ("//k", InvalidArgument),
        ("b/%zz", InvalidArgument),
        ("b/%ff", InvalidArgument),
        ("b/k?x=1", InvalidArgument),
        ("b/k?versionId=", InvalidArgument),
        ("b/k?versionId=3", NoSuchVersion),
        ("_uploads/id/00001", InvalidBucketName),
        ("%5Fuploads/id/00001", InvalidBucketName),
    ],
)
def test_wrong_sources_are_refused(value: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse(value)


def test_spans_are_read_strictly() -> None:
    assert parse_span("bytes=0-0") == (0, 0)
    assert parse_span("bytes=10-20") == (10, 20)
    for wrong in (
        "",
        "bytes=-5",
        "bytes=5-",
        "bytes=5-4",
        "bytes=0-1,3-4",
        "0-1",
        "bytes=a-b",
        "bytes = 0-1",
        "bytes=-1-2",
    ):
        with pytest.raises(InvalidArgument):
            parse_span(wrong)
