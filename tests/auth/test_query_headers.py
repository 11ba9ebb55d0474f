from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth.query_headers import with_query_headers
from kvgate.errors import InvalidArgument
from kvgate.messages import Headers, Request


def request(raw_query: str, **headers: str) -> Request:
    return Request(
        "PUT", "/b/k", raw_query, Headers([(name.replace("_", "-"), value) for name, value in headers.items()])
    )


def test_headers_in_the_query_count_as_sent() -> None:
    found = with_query_headers(
        request("x-id=PutObject&x-amz-meta-A=x%20y%2Bz&content-type=text%2Fplain&acl&X-Amz-Acl=private", host="h")
    )
    assert found.raw_query == "x-id=PutObject&acl"
    assert dict(found.headers.items()) == {
        "host": "h",
        "x-amz-meta-a": "x y+z",
        "content-type": "text/plain",
        "x-amz-acl": "private",
    }


def test_a_plus_is_a_plus_and_octets_stay() -> None:
    found = with_query_headers(request("x-amz-meta-a=1+2&x-amz-meta-b=%FF"))
    assert found.headers.get("x-amz-meta-a") == "1+2"
    assert found.headers.get("x-amz-meta-b").encode("utf-8", "surrogateescape") == b"\xff"


def test_what_signs_by_version_4_stays_in_the_query() -> None:
    query = (
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD&X-Amz-Credential=a&X-Amz-Date=d"
        "&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=s"
    )
    found = with_query_headers(request(f"{query}&x-amz-checksum-mode=ENABLED"))
    assert found.raw_query == query
    assert dict(found.headers.items()) == {"x-amz-checksum-mode": "ENABLED"}


@pytest.mark.parametrize("query", ["", "acl", "prefix=x-amz-meta-a", "response-content-type=a", "%78-amz-acl=private"])
def test_other_queries_stay_as_they_are(query: str) -> None:
    found = with_query_headers(request(query, host="h"))
    assert found.raw_query == query
    assert dict(found.headers.items()) == {"host": "h"}


def test_a_name_that_no_header_can_have_stays_in_the_query() -> None:
    for name in ("x-amz-meta-a:b", "x-amz-meta-a%0A", "x-amz-meta-ü", "x-amz-"):
        assert with_query_headers(request(f"{name}=1")).raw_query == f"{name}=1"


def test_twice_the_same_is_once() -> None:
    found = with_query_headers(request("x-amz-acl=private&x-amz-acl=private", x_amz_acl="private"))
    assert found.headers.getall("x-amz-acl") == ["private"]


@pytest.mark.parametrize(
    "contradiction",
    [
        request("x-amz-acl=private", x_amz_acl="public-read"),
        request("x-amz-acl=private&x-amz-acl=public-read"),
        request("content-type=text/plain", content_type="text/html"),
    ],
)
def test_contradictions_are_refused(contradiction: Request) -> None:
    with pytest.raises(InvalidArgument, match="twice"):
        with_query_headers(contradiction)


@pytest.mark.parametrize("value", ["a%0Ab", "a%0D%0Ab", "%00", "%7F"])
def test_control_characters_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match="control"):
        with_query_headers(request(f"content-type={value}"))


@given(st.text("x-amzXAMZ=&%0A7cdtypen~é\udcff ", max_size=60))
def test_whatever_is_sent_is_read_or_refused(query: str) -> None:
    try:
        found = with_query_headers(request(query))
    except InvalidArgument:
        return
    assert with_query_headers(found).raw_query == found.raw_query
