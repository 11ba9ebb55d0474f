"""Presigned URLs of Signature Version 2: what differs from what was signed is never authenticated."""

from __future__ import annotations

from urllib.parse import quote, unquote_plus

from fuzz.draw import Draw, spliced
from fuzz.properties import must, refusals
from fuzz.targets.base import Target
from fuzz.targets.sigv4 import AUTHENTICATOR, CREDENTIAL, NOW
from kvgate.auth import sigv2
from kvgate.messages import Headers, Request

_PARAMETERS = ("acl", "uploads", "uploadId=x", "partNumber=1", "response-content-type=a%2Fb", "tagging=", "policy")
_NAMES = ("x-amz-meta-a", "x-amz-acl", "content-type", "content-md5", "range")
_WORDS = (
    *("&", "=", "%26", "%3D", "+", "%20", "%0A", "%", "uploads", "acl", "acl=", "&acl", "Expires=", "Signature="),
    *("a", "AWSAccessKeyId=", "&x=y", "&=", "X-Amz-", "response-content-type=", "1" * 13, "\u0660", "é", "/", "?"),
)


def check(data: bytes) -> None:
    draw = Draw(data)
    path = spliced(draw, "/bucket/key", _WORDS) if draw.one_in(4) else "/bucket/key"
    parameters = sorted({draw.pick(_PARAMETERS) for _ in range(draw.below(4))})
    headers = [(draw.pick(_NAMES), draw.header_value(12)) for _ in range(draw.below(3))]
    signed = _signed(draw.pick(("GET", "PUT", "POST")), path, parameters, dict(headers))
    sent = signed
    for _ in range(draw.below(4)):
        sent = _changed(draw, sent)
    identity = None
    with refusals():
        identity = AUTHENTICATOR.authenticate(sent)
    must(identity is not None or sent is not signed, "a URL is refused as it was presigned")
    must(identity is None or _meaning(sent) == _meaning(signed), "a URL is authenticated that was not presigned")


def _signed(method: str, path: str, parameters: list[str], headers: dict[str, str]) -> Request:
    """Written from the specification, and not by what is tested."""
    expires = str(int(NOW) + 60)
    amz = [f"{name}:{value.strip()}" for name, value in sorted(headers.items()) if name.startswith("x-amz-")]
    resource = path + ("?" + "&".join(map(unquote_plus, parameters)) if parameters else "")
    lines = [method, headers.get("content-md5", ""), headers.get("content-type", ""), expires, *amz, resource]
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    proof = quote(sigv2.sign(CREDENTIAL.secret_key, text), safe="")
    own = [f"AWSAccessKeyId={CREDENTIAL.access_key}", f"Expires={expires}", f"Signature={proof}"]
    return Request(method, path, "&".join([*parameters, *own]), Headers([("host", "h"), *headers.items()]))


def _changed(draw: Draw, request: Request) -> Request:
    method, path, query = request.method, request.raw_path, request.raw_query
    headers = list(request.headers.items())
    part = draw.below(5)
    if part == 0:
        method = draw.pick(("GET", "PUT", "HEAD"))
    elif part == 1:
        path = spliced(draw, path, _WORDS)
    elif part == 2:
        query = spliced(draw, query, _WORDS)
    elif part == 3:
        headers.insert(draw.below(len(headers) + 1), (draw.pick(_NAMES), draw.header_value(4)))
    else:
        parameters = query.split("&")
        parameters.insert(draw.below(len(parameters) + 1), draw.pick(_PARAMETERS))
        query = "&".join(parameters)
    return Request(method, path, query, Headers(headers))


def _meaning(request: Request) -> tuple[object, ...]:
    """What two requests must have in common for one signature to stand for both.

    A '&' in a value is not told from one between parameters: so it is with this version, whoever verifies it.
    """
    text = "&".join(unquote_plus(each) for each in request.raw_query.split("&") if not each.startswith("Signature="))
    pairs = [parameter.partition("=")[::2] for parameter in text.split("&")]
    headers = request.headers
    amz = sorted((name, value.strip()) for name, value in headers.items() if name.startswith("x-amz-"))
    return (
        request.method,
        request.raw_path,
        sorted((name, value) for name, value in pairs if name or value),
        [
            (name, ",".join([value for each, value in amz if each == name]))
            for name in sorted({name for name, _ in amz})
        ],
        headers.get("content-type"),
        headers.get("content-md5"),
    )


TARGETS = (Target("sigv2", 50_000, check, words=tuple(word.encode() for word in _WORDS)),)
