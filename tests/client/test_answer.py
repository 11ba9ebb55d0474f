"""Answers that a gateway should not give: each is a GatewayError, never another exception."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.client import answer
from kvgate.client.answer import Answer
from kvgate.client.download import Download
from kvgate.client.values import Entry, Match
from kvgate.errors import GatewayError
from kvgate.messages import Headers

READERS = [
    answer.read_tenant,
    answer.read_match,
    answer.read_stats,
    answer.read_nothing,
    answer.read_etag,
    answer.read_bucket_made,
    answer.read_buckets,
    answer.read_page,
]
MSGPACK = Headers([("content-type", "application/msgpack")])


def packed(members: object, status: int = 200) -> Answer:
    return Answer(status, MSGPACK, msgpack.packb(members))


@pytest.mark.parametrize("read", READERS)
@given(
    body=st.binary(max_size=60) | st.sampled_from([b"<a/>", b"<a><Contents><Key>k</Key></Contents></a>", b"\x80", b""]),
    status=st.sampled_from([200, 204, 301, 404, 409, 500, 999]),
    content_type=st.sampled_from(["", "application/msgpack", "application/xml", "text/html"]),
)
def test_any_answer_is_a_value_or_a_gateway_error(read, body, status, content_type) -> None:
    with suppress(GatewayError):
        read(Answer(status, Headers([("content-type", content_type)]), body))


MATCH = {"matched": 1, "lease": "x", "expires_s": 30, "tiers": ["host", "disk"], "ranks": [1], "nbytes": [5]}


def test_match_is_read() -> None:
    assert answer.read_match(packed(MATCH)) == Match(("host", "disk"), (1,), (5,), "x", 30.0)
    empty = {"matched": 0, "lease": None, "expires_s": 0.0, "tiers": [], "ranks": [], "nbytes": []}
    assert answer.read_match(packed(empty)) == Match((), (), (), "", 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"matched": 2},
        {"matched": True},
        {"lease": 5},
        {"expires_s": "soon"},
        {"expires_s": True},
        {"expires_s": float("nan")},
        {"expires_s": float("inf")},
        {"ranks": {}},
        {"ranks": ["0"]},
        {"ranks": [0, 0]},
        {"ranks": [2]},
        {"ranks": [-1]},
        {"tiers": [1, 2]},
        {"nbytes": []},
        {"nbytes": ["5"]},
        {"nbytes": [-5]},
    ],
)
def test_match_of_another_shape_is_refused(change) -> None:
    with pytest.raises(GatewayError) as raised:
        answer.read_match(packed(MATCH | change))
    assert raised.value.code == "MalformedAnswer"


def test_refusals_carry_the_gateways_words() -> None:
    with pytest.raises(GatewayError, match="there is none") as raised:
        answer.read_nothing(packed({"code": "NoSuchLease", "message": "there is none"}, 404))
    assert (raised.value.status, raised.value.code) == (404, "NoSuchLease")
    xml = b"<?xml version='1.0'?>\n<Error><Code>NoSuchKey</Code><Message>there is none</Message></Error>"
    with pytest.raises(GatewayError, match="there is none") as raised:
        answer.read_etag(Answer(404, Headers(), xml))
    assert raised.value.code == "NoSuchKey"


def test_bucket_that_is_there_already_is_fine_only_when_it_is_ours() -> None:
    answer.read_bucket_made(Answer(409, Headers(), b"<Error><Code>BucketAlreadyOwnedByYou</Code></Error>"))
    with pytest.raises(GatewayError):
        answer.read_bucket_made(Answer(409, Headers(), b"<Error><Code>BucketAlreadyExists</Code></Error>"))


NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
LINE = (
    "<Contents><Key>a%2Bb+c%C3%BC</Key><LastModified>then</LastModified><ETag>&quot;e&quot;</ETag>"
    "<Size>5</Size></Contents><CommonPrefixes><Prefix>a%20/</Prefix></CommonPrefixes>"
)


@pytest.mark.parametrize("namespace", [f' xmlns="{NAMESPACE}"', ""])
def test_page_is_read_in_key_order(namespace) -> None:
    body = f"<ListBucketResult{namespace}><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
    body += f"<NextContinuationToken>t+%20</NextContinuationToken>{LINE}</ListBucketResult>"
    page = answer.read_page(Answer(200, Headers(), body.encode()))
    assert page.entries == (Entry("a /", is_prefix=True), Entry("a+b cü", 5, "e", "then"))
    assert page.token == "t+%20"


def test_page_that_is_not_encoded_is_taken_as_it_is() -> None:
    page = answer.read_page(Answer(200, Headers(), f"<ListBucketResult>{LINE}</ListBucketResult>".encode()))
    assert [entry.key for entry in page.entries] == ["a%20/", "a%2Bb+c%C3%BC"]
    assert page.token == ""


@pytest.mark.parametrize(
    "body",
    [
        b"<a>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1/x"><a/>',
        b"<ListBucketResult><Contents><Key>k</Key><Size>five</Size></Contents></ListBucketResult>",
    ],
)
def test_xml_that_is_malformed_or_has_a_dtd_is_refused(body) -> None:
    with pytest.raises(GatewayError) as raised:
        answer.read_page(Answer(200, Headers(), body))
    assert raised.value.code == "MalformedAnswer"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-length": ""},
        {"content-length": "-1"},
        {"content-length": "٣"},
        {"content-length": "9" * 30},
        {"content-length": "5", "x-amz-checksum-crc64nvme": "AAAA"},
        {"content-length": "5", "x-amz-checksum-crc64nvme": "!" * 12},
    ],
)
def test_headers_that_cannot_be_believed_are_refused(headers) -> None:
    with pytest.raises(GatewayError):
        Download("key", 200, Headers(headers.items()), None, None)


@given(pieces=st.lists(st.binary(max_size=40)), given_buffer=st.booleans())
def test_download_takes_a_body_in_any_pieces(pieces, given_buffer) -> None:
    body = b"".join(pieces)
    buffer = memoryview(bytearray(len(body) + 3)) if given_buffer else None
    download = Download("key", 200, Headers([("content-length", str(len(body)))]), None, buffer)
    for piece in pieces:
        download.feed(piece)
    got = download.finish()
    assert (buffer[: got.nbytes] if buffer is not None else got.body) == body
    with pytest.raises(GatewayError):
        download.feed(b"more")


def test_download_that_is_cut_short_is_no_object() -> None:
    download = Download("key", 200, Headers([("content-length", "5")]), None, None)
    download.feed(b"four")
    with pytest.raises(GatewayError):
        download.finish()
