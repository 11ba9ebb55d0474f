from __future__ import annotations

import contextlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import InvalidArgument, InvalidBucketName, InvalidKey, InvalidRequest, KeyTooLong, KVGateError
from kvgate.s3.target import parse_target


@pytest.mark.parametrize(
    ("path", "bucket", "key"),
    [
        ("/", "", ""),
        ("/bucket", "bucket", ""),
        ("/bucket/", "bucket", ""),
        ("/bucket/key", "bucket", "key"),
        ("/bucket//key", "bucket", "/key"),
        ("/bucket/a/b//c/", "bucket", "a/b//c/"),
        ("/bucket/a%2Fb", "bucket", "a/b"),
        ("/bucket/a+b%2Bc%20d", "bucket", "a+b+c d"),
        ("/bucket/%252B", "bucket", "%2B"),
        ("/bucket/..", "bucket", ".."),
        ("/bucket/%C3%A9", "bucket", "é"),
        ("/bucket/é", "bucket", "é"),
    ],
)
def test_paths_are_bucket_and_key(path: str, bucket: str, key: str) -> None:
    target = parse_target(path, "")
    assert (target.bucket, target.key) == (bucket, key)


@given(st.text(min_size=1, alphabet=st.characters(codec="utf-8"), max_size=200))
def test_every_key_arrives_as_it_was_quoted(key: str) -> None:
    assert parse_target("/b/" + quote(key, safe="/~"), "").key == key


@pytest.mark.parametrize("key", ["%", "%2", "%zz", "%ff", "%C3", "a%00%", "\udcff"])
def test_keys_that_do_not_decode_are_refused(key: str) -> None:
    with pytest.raises(InvalidKey):
        parse_target(f"/bucket/{key}", "")


def test_keys_are_bounded_in_bytes() -> None:
    assert parse_target("/b/" + "%C3%A9" * 512, "").key == "é" * 512
    with pytest.raises(KeyTooLong):
        parse_target("/b/" + "%C3%A9" * 512 + "a", "")


def test_bad_buckets_and_paths_are_refused() -> None:
    for path in ("/%ff/key", "//key", "/%/"):
        with pytest.raises(InvalidBucketName):
            parse_target(path, "")
    for path in ("", "*", "http://host/b/k"):
        with pytest.raises(InvalidRequest):
            parse_target(path, "")


@pytest.mark.parametrize("path", ["/_uploads", "/_uploads/", "/_uploads/id/00001", "/%5Fuploads/id/upload", "/_"])
def test_buckets_of_the_store_itself_cannot_be_named(path: str) -> None:
    with pytest.raises(InvalidBucketName, match="reserved"):
        parse_target(path, "")


def test_query_parameters_decode_with_plus_as_plus() -> None:
    assert parse_target("/b", "list-type=2&prefix=a+b%2Bc%20d&location&&x=").query == {
        "list-type": "2",
        "prefix": "a+b+c d",
        "location": "",
        "x": "",
    }


@pytest.mark.parametrize(
    "query", ["a=%", "a=%ff", "%zz=1", "a=1&a=2", "a=1&%61=2", "&".join(f"p{n}=" for n in range(65))]
)
def test_bad_queries_are_refused(query: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_target("/b", query)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_target_is_read_or_refused(path: str, query: str) -> None:
    with contextlib.suppress(KVGateError):
        parse_target("/" + path, query)
