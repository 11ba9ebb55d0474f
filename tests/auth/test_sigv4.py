from __future__ import annotations

import calendar
import re
import time
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth import sigv4

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
CREDENTIAL = sigv4.Credential(ACCESS_KEY, SECRET_KEY)

KEYS = [
    "plain",
    "with space",
    "plus+plus",
    "percent%2Bliteral",
    "//double//slash",
    "at@equals=tilde~colon:",
    "ünïcödé/漢字/🙂",
    "!$&'()*,;-._",
    "k" * 1024,
]


def sent_path(key: str) -> str:
    """As botocore puts a key into the path."""
    return "/bucket/" + quote(key, safe="/~")


def moment_of(amz_date: str) -> float:
    return calendar.timegm(time.strptime(amz_date, "%Y%m%dT%H%M%SZ"))


@pytest.mark.parametrize("key", KEYS)
def test_header_signature_is_botocores(key: str) -> None:
    path, query = sent_path(key), "prefix=a%2Bb%20c&list-type=2&empty="
    request = AWSRequest("PUT", f"http://gateway:9000{path}?{query}", {"x-amz-meta-a": "  two   words ", "Expect": "x"})
    request.context["client_config"] = Config(s3={"payload_signing_enabled": False})
    S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "eu-central-1").add_auth(request)
    headers = {"host": "gateway:9000", "x-amz-meta-a": "  two   words ", "expect": "x"}
    now = moment_of(request.headers["X-Amz-Date"])
    added = sigv4.sign(CREDENTIAL, "PUT", path, query, headers, region="eu-central-1", now=now)
    assert added["authorization"] == request.headers["Authorization"]
    assert added["x-amz-content-sha256"] == request.headers["X-Amz-Content-SHA256"] == "UNSIGNED-PAYLOAD"


@pytest.mark.parametrize("key", KEYS)
def test_presigned_signature_is_botocores(key: str) -> None:
    path = sent_path(key)
    request = AWSRequest("GET", f"http://gateway:9000{path}?x-id=GetObject")
    S3SigV4QueryAuth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1", 120).add_auth(request)
    theirs = urlsplit(request.url).query
    now = moment_of(request.context["timestamp"])
    headers = {"host": "gateway:9000"}
    ours = sigv4.presign(CREDENTIAL, "GET", path, "x-id=GetObject", headers, region="us-east-1", now=now, expires_s=120)
    assert sorted(ours.split("&")) == sorted(theirs.split("&"))


def test_path_is_encoded_once_whatever_way_it_was_sent() -> None:
    for sent in ["/b/a@b=c d", "/b/a%40b%3dc%20d", "/b/%61@b=c%20d"]:
        assert sigv4.canonical_path(sent.replace(" ", "%20")) == "/b/a%40b%3Dc%20d"
    assert sigv4.canonical_path("/b//x/../~y") == "/b//x/../~y"
    assert sigv4.canonical_path("/b/a+b") == "/b/a%2Bb"
    assert sigv4.canonical_path("/b/%252B") == "/b/%252B"
    assert sigv4.canonical_path("") == "/"


def test_query_is_sorted_by_encoded_name_then_value_and_keeps_duplicates() -> None:
    assert sigv4.canonical_query("b=2&a=2&a=1&a=1&B=0") == "B=0&a=1&a=1&a=2&b=2"
    assert sigv4.canonical_query("uploads") == "uploads="
    assert sigv4.canonical_query("a-b=1&a=2&a%2Fb=3") == "a=2&a%2Fb=3&a-b=1"
    assert sigv4.canonical_query("p=a+b&q=%7e&r=a/b") == "p=a%2Bb&q=~&r=a%2Fb"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_canonical_path_of_an_encoded_key_is_itself(key: str) -> None:
    path = sent_path(key)
    assert sigv4.canonical_path(path) == path
    assert re.fullmatch(r"[A-Za-z0-9._~/%-]*", path)


@given(st.text(max_size=60).filter(lambda text: "#" not in text))
def test_canonical_form_is_defined_for_whatever_a_server_hands_over(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    sigv4.canonical_path(raw)
    sigv4.canonical_query(raw)


def test_no_repr_shows_a_secret() -> None:
    assert SECRET_KEY not in repr(CREDENTIAL)


def test_signing_keys_are_kept_in_bounds() -> None:
    sigv4.signing_key.cache_clear()
    for number in range(1000):
        sigv4.signing_key(SECRET_KEY, sigv4.Scope("20260101", f"region-{number}"))
    assert sigv4.signing_key.cache_info().currsize == 256
