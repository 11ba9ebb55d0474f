"""Signature V4: a request that differs from what was signed is never authenticated.

An input builds a request, signs it in its headers or presigns it, and then changes it here and there, or does not. What
still authenticates must mean the same as what was signed, by the definition of `_meaning`: the rules of S3's canonical
request, written again and plainly. A request that was not changed must authenticate.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from fuzz.draw import Draw, spliced
from fuzz.properties import must, refusals
from fuzz.targets.base import Target
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.claim import parse_claim
from kvgate.auth.sigv4 import Credential, presign, sign
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.errors import KVGateError
from kvgate.messages import Headers, Request

NOW = 1_770_000_000.0
CREDENTIAL = Credential("ALPHAKEY0000", "alpha-secret-0123456789abcdef")
_OTHER = Credential("BETAKEY00000", "beta-secret-0123456789abcdef")

_METHODS = ("GET", "PUT", "POST", "HEAD", "DELETE", "get", "OPTIONS")
_PATHS = ("/bucket/key", "/", "/bucket/a%2Fb//c/../%C3%A9", "/bucket/a b+~*'()!", "/%", "/bucket/%zz", "")
_QUERIES = ("", "list-type=2&prefix=a%20b&delimiter=/", "a=1&a=2&a", "uploads", "b&a=%3D&=&&x=y=z", "a+b=c%2Bd")
_PAYLOADS = (
    "UNSIGNED-PAYLOAD",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
)
_NAMES = (
    "x-amz-meta-a",
    "content-type",
    "range",
    "x-amz-acl",
    "content-md5",
    "x-amz-security-token",
    "x-amz-date",
    "x-amz-content-sha256",
    "date",
    "host",
    "user-agent",
)
_VALUES = ("a", "a  b", " a\tb ", "", "bytes=0-1", "Fri, 02 Jan 2026 10:00:00 GMT", "20260127T100000Z", "é", "\u3000")
_WORDS = (
    *("%2F", "%2f", "/", "//", "%", "&", "=", "+", "%20", " ", "\t", "\u00a0", "\u3000", "\x1f", ";", ","),
    *("X-Amz-Signature=", "X%2DAmz-Signature=", "X-Amz-Algorithm=", "&X-Amz-Expires=604801", "X-Amz-SignedHeaders="),
    *("AWS4-HMAC-SHA256", "AWS ", "Credential=", "SignedHeaders=", "Signature=", "/s3/aws4_request", "host", "date"),
    *("AWSAccessKeyId=&Signature=", "0" * 64, "-0001", "99999999", "UNSIGNED-PAYLOAD", _OTHER.access_key),
)

AUTHENTICATOR = Authenticator(
    Tenants(
        {
            name: TenantConfig((AccessKeyConfig(credential.access_key, Secret(credential.secret_key)),))
            for name, credential in (("alpha", CREDENTIAL), ("beta", _OTHER))
        }
    ),
    lambda: NOW,
)


def check(data: bytes) -> None:
    draw = Draw(data)
    headers = [("host", "gateway:9000")]
    for _ in range(draw.below(4)):
        name = draw.pick(_NAMES[:6])
        if name not in dict(headers):
            headers.append((name, draw.pick(_VALUES) if draw.one_in(2) else draw.header_value(20)))
    method, path, query = draw.pick(_METHODS), draw.pick(_PATHS), draw.pick(_QUERIES)
    if draw.one_in(4):
        path = "/" + draw.text(40)
    if draw.one_in(4):
        query = draw.text(40)
    payload = draw.pick(_PAYLOADS)
    plain = not re.search("X-Amz-|AWSAccessKeyId=", query) and "x-amz-security-token" not in dict(headers)
    if draw.one_in(3):
        region, now = "us-east-1", NOW + draw.pick((0, -800, 800))
        query = presign(CREDENTIAL, method, path, query, dict(headers), region=region, now=now, expires_s=900)
    else:
        added = sign(CREDENTIAL, method, path, query, dict(headers), region="eu-1", now=NOW, payload_hash=payload)
        headers += added.items()
    signed = Request(method, path, query, Headers(headers))
    sent = signed
    for _ in range(draw.below(4)):
        sent = _changed(draw, sent)
    _compare(signed, sent, good=plain and sent is signed)


def _changed(draw: Draw, request: Request) -> Request:
    """The request with one thing in it changed, removed, added, or sent twice."""
    method, path, query = request.method, request.raw_path, request.raw_query
    headers = list(request.headers.items())
    at = draw.below(len(headers))
    name, value = headers[at]
    part = draw.below(8)
    if part == 0:
        method = draw.pick(_METHODS)
    elif part == 1:
        path = spliced(draw, path, _WORDS)
    elif part == 2:
        query = spliced(draw, query, _WORDS)
    elif part == 3:
        headers[at] = (name, spliced(draw, value, _WORDS))
    elif part == 4:
        headers[at] = (draw.pick(_NAMES), value)
    elif part == 5:
        headers.insert(at, (draw.pick(_NAMES), draw.pick(_VALUES)))
    elif part == 6 and len(headers) > 1:
        del headers[at]
    else:
        parameters = query.split("&")
        parameters.insert(draw.below(len(parameters) + 1), parameters.pop(draw.below(len(parameters))))
        query = "&".join(parameters)
    return Request(method, path, query, Headers(headers))


def _compare(signed: Request, sent: Request, *, good: bool) -> None:
    identity = None
    with refusals():
        try:
            identity = AUTHENTICATOR.authenticate(sent)
        except KVGateError:
            must(not good, "a request is refused as it was signed")
            raise
    if identity is None:
        return
    must(identity.tenant.name == "alpha", "a request is authenticated as another tenant")
    must(_meaning(signed) == _meaning(sent), "a request is authenticated that differs from what was signed")
    covered = parse_claim(sent).signed_headers
    must("host" in covered, "a request is authenticated whose host is not signed")
    unsigned = [name for name, _ in sent.headers.items() if name.startswith("x-amz-") and name not in covered]
    must(not unsigned, f"a request is authenticated with {unsigned} unsigned")


def _meaning(request: Request) -> tuple[object, ...]:
    """What two requests must have in common for one signature to stand for both."""
    headers = request.headers
    claim = parse_claim(request)
    parameters = [
        tuple(map(_octets, parameter.partition("=")[::2])) for parameter in request.raw_query.split("&") if parameter
    ]
    if claim.expires_s is not None:
        parameters = [parameter for parameter in parameters if parameter[0] != b"X-Amz-Signature"]
    return (
        request.method,
        _octets(request.raw_path) or b"/",
        sorted(parameters),
        [
            (name, ",".join([re.sub("[ \t]+", " ", value.strip(" \t")) for value in headers.getall(name)]))
            for name in claim.signed_headers
        ],
        claim.payload,
        claim.amz_date,
        claim.scope,
        claim.expires_s,
    )


def _octets(text: str) -> bytes:
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


def check_arbitrary(data: bytes) -> None:
    """Claims that nobody has signed."""
    draw = Draw(data)
    headers = [("host", "h"), ("x-amz-content-sha256", draw.pick(_PAYLOADS))]
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={CREDENTIAL.access_key}/20260202/r/s3/aws4_request, "
        f"SignedHeaders=host;x-amz-content-sha256, Signature={'0' * 64}"
    )
    query = "&".join([f"X-Amz-{name}={draw.pick(values)}" for name, values in _CLAIMED.items()])
    if draw.one_in(2):
        headers.append(("authorization", spliced(draw, authorization, _WORDS)))
        query = ""
    headers += [
        (draw.pick(_NAMES[6:]), draw.pick(_VALUES) if draw.one_in(2) else draw.header_value(40))
        for _ in range(draw.below(4))
    ]
    query = spliced(draw, query, _WORDS)
    with refusals():
        AUTHENTICATOR.authenticate(Request("GET", "/", query, Headers(headers)))
        must(False, "a request is authenticated that nobody has signed")


_CLAIMED = {
    "Algorithm": ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
    "Credential": (f"{CREDENTIAL.access_key}%2F20260202%2Fr%2Fs3%2Faws4_request", "a/b/c"),
    "Date": ("20260202T024000Z", "20260230T000000Z", "00000000T000000Z", "20260202T024060Z"),
    "Expires": ("900", "0", "604801"),
    "SignedHeaders": ("host", "host%3Bx-amz-content-sha256"),
    "Signature": ("0" * 64, "g" * 64),
}

TARGETS = (
    Target("sigv4", 160_000, check, words=tuple(word.encode() for word in _WORDS)),
    Target("claims", 60_000, check_arbitrary, words=tuple(word.encode() for word in _WORDS)),
)
