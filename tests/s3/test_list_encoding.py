"""Every listing is in byte order, and with encoding-type=url every key in it is encoded, as seen on the wire."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlencode

import pytest

from kvgate.s3.xml import NAMESPACE
from tests.gateways import RunningGateway
from tests.s3.clients import s3_client
from tests.wire import send

BUCKET = "list-encoding"
KEYS = ["+/ü", "a\x01b", "a b", "a&b<c>", "a/ b", "a/b+c", "z%20", "é", "\uffff", "\U0001f642"]
"""In byte order of UTF-8, in which U+FFFF comes before what is beyond it; in UTF-16 it would come behind."""


@pytest.fixture(scope="module")
def gateway_with_keys(gateway: RunningGateway) -> Iterator[RunningGateway]:
    client = s3_client(gateway)
    client.create_bucket(Bucket=BUCKET)
    uploads = []
    for key in reversed(KEYS):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
        uploads.append((key, begin_upload(gateway, key)))
    yield gateway
    for key, upload_id in uploads:
        client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload_id)
        client.delete_object(Bucket=BUCKET, Key=key)
    client.delete_bucket(Bucket=BUCKET)


def begin_upload(gateway: RunningGateway, key: str) -> str:
    """The id of an upload, begun without an SDK: the answer repeats the key, and not every key can be in XML."""
    status, _, body = send(gateway, "POST", f"/{BUCKET}/{quote(key)}", {"content-length": "0"}, query="uploads")
    found = re.search(rb"<UploadId>([0-9a-f]+)</UploadId>", body)
    assert found is not None, (status, body)
    return found[1].decode()


def listing(gateway: RunningGateway, subresource: str, **parameters: str) -> list[tuple[str, str]]:
    """Every element without children, in order."""
    query = urlencode(dict([subresource.partition("=")[::2]] if subresource else []) | parameters, quote_via=quote)
    status, _, body = send(gateway, "GET", f"/{BUCKET}", query=query)
    assert status == 200, body
    found: list[tuple[str, str]] = []

    def walk(element: ET.Element, path: str) -> None:
        for child in element:
            tag = child.tag.removeprefix(f"{{{NAMESPACE}}}")
            if len(child):
                walk(child, f"{path}{tag}/")
            else:
                found.append((path + tag, child.text or ""))

    walk(ET.fromstring(body), "")
    return found


@pytest.mark.parametrize(
    ("subresource", "element"),
    [("", "Contents"), ("list-type=2", "Contents"), ("versions", "Version"), ("uploads", "Upload")],
)
def test_keys_are_encoded_and_in_byte_order(gateway_with_keys: RunningGateway, subresource: str, element: str) -> None:
    assert sorted(KEYS, key=str.encode) == KEYS
    found = listing(gateway_with_keys, subresource, **{"encoding-type": "url"})
    written = [text for path, text in found if path == f"{element}/Key"]
    assert [unquote(key) for key in written] == KEYS
    assert all(key.isascii() and not set(key) & set(" +&<>\x01") for key in written)
    assert ("EncodingType", "url") in found


@pytest.mark.parametrize(
    ("subresource", "marker", "size", "next_marker"),
    [
        ("", "marker", "max-keys", "NextMarker"),
        ("list-type=2", "start-after", "max-keys", ""),
        ("versions", "key-marker", "max-keys", "NextKeyMarker"),
        ("uploads", "key-marker", "max-uploads", "NextKeyMarker"),
    ],
)
def test_markers_prefixes_and_delimiters_are_encoded(
    gateway_with_keys: RunningGateway, subresource: str, marker: str, size: str, next_marker: str
) -> None:
    asked = {marker: "+", "prefix": "", "delimiter": " b", size: "1", "encoding-type": "url"}
    found = dict(listing(gateway_with_keys, subresource, **asked))
    assert found["Delimiter"] == "%20b"
    name = {"marker": "Marker", "start-after": "StartAfter", "key-marker": "KeyMarker"}[marker]
    assert found[name] == "%2B"
    behind = dict(listing(gateway_with_keys, subresource, **(asked | {marker: "a\x01b"})))
    assert behind["CommonPrefixes/Prefix"] == "a%20b"
    assert behind[name] == "a%01b"
    if next_marker:
        assert found[next_marker] == "%2B/%C3%BC"
        assert behind[next_marker] == "a%20b"
    prefixed = dict(listing(gateway_with_keys, subresource, **{"prefix": "a/ ", "encoding-type": "url"}))
    assert prefixed["Prefix"] == "a/%20"


@pytest.mark.parametrize("subresource", ["", "list-type=2", "versions", "uploads"])
@pytest.mark.parametrize("size", [1, 3])
def test_pages_are_whole_by_the_markers_as_they_are_written(
    gateway_with_keys: RunningGateway, subresource: str, size: int
) -> None:
    """As a client of the wire would: decode the next markers, and go on from them."""
    names = {"NextMarker": "marker", "NextContinuationToken": "continuation-token", "NextKeyMarker": "key-marker",
             "NextVersionIdMarker": "version-id-marker", "NextUploadIdMarker": "upload-id-marker"}  # fmt: skip
    most = "max-uploads" if subresource == "uploads" else "max-keys"
    markers: dict[str, str] = {}
    keys: list[str] = []
    for _ in range(len(KEYS) + 1):
        found = listing(gateway_with_keys, subresource, **{"encoding-type": "url", most: str(size)}, **markers)
        page = [unquote(text) for path, text in found if path.endswith("/Key")]
        assert len(page) <= size
        keys += page
        if ("IsTruncated", "false") in found:
            break
        markers = {names[path]: unquote(text) for path, text in found if path in names}
        markers = markers or {"marker": page[-1]}  # without a delimiter, the last key is the next marker
    assert keys == KEYS


def test_an_encoding_that_is_not_offered_is_refused(gateway_with_keys: RunningGateway) -> None:
    for subresource in ("", "list-type=2", "versions", "uploads"):
        query = f"{subresource}&encoding-type=base64".strip("&")
        assert send(gateway_with_keys, "GET", f"/{BUCKET}", query=query)[0] == 400


def test_sdks_see_the_keys_as_they_are(gateway_with_keys: RunningGateway) -> None:
    client: Any = s3_client(gateway_with_keys)
    for name, element in (
        ("list_objects", "Contents"),
        ("list_objects_v2", "Contents"),
        ("list_object_versions", "Versions"),
    ):
        pages = client.get_paginator(name).paginate(Bucket=BUCKET, PaginationConfig={"PageSize": 3})
        assert [item["Key"] for page in pages for item in page[element]] == KEYS
