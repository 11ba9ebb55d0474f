"""What a request says about its own signature: parsed and bounded, but not yet believed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from kvgate.auth.sigv4 import ALGORITHM, MAX_EXPIRES_S, UNSIGNED_PAYLOAD, Scope
from kvgate.errors import AccessDenied, InvalidRequest, MalformedAuthorization
from kvgate.messages import Request

_SIGNED_AS = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=([^\s,]{1,512})\s*,\s*SignedHeaders=([^\s,]{1,4096})\s*,\s*", re.ASCII
)
"""An Authorization header up to `Signature=`."""

_CREDENTIAL = re.compile(r"([^/]{1,128})/([0-9]{8})/([A-Za-z0-9-]{1,64})/([a-z0-9-]{1,32})/aws4_request", re.ASCII)
_AMZ_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_SIGNED_HEADERS = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+(?:;[a-z0-9!#$%&'*+.^_`|~-]+){0,127}")
_HEX_SIGNATURE = re.compile(r"[0-9a-f]{64}")
_CHANGE_NOTHING = frozenset(
    {"authorization", "user-agent", "accept", "accept-encoding", "connection", "content-length"}
)
"""Headers that are often left unsigned; any may be whose name does not begin with x-amz-."""

_MARKS = ("X-Amz-Algorithm=", "X-Amz-Credential=", "X-Amz-Signature=", "AWSAccessKeyId=", "Signature=")
USE_V4 = "configure the client with signature_version='s3v4'"
_FORM = (
    f"expected an Authorization of the form '{ALGORITHM} Credential=<access key>/<yyyymmdd>/<region>/s3/"
    "aws4_request, SignedHeaders=<a;b>, Signature=<64 hex digits>'"
)


class Claim(NamedTuple):
    """A signature and everything that it is said to cover.

    signed_headers: sorted, each once
    sufficient:     the headers that a request may have when it is signed so: these, and some that change nothing
    expires_s:      how long a presigned request holds; None when the signature is in the header.
    payload:        `x-amz-content-sha256`, or UNSIGNED-PAYLOAD for a presigned request without one.
    """

    access_key: str
    scope: Scope
    signed_headers: tuple[str, ...]
    sufficient: frozenset[str]
    signature: str
    amz_date: str
    signed_at: float
    payload: str
    expires_s: int | None = None


def is_signed(request: Request) -> bool:
    """Whether a request claims an identity at all. One that does is never served as an unsigned one."""
    return "authorization" in request.headers or is_presigned(request)


def is_presigned(request: Request) -> bool:
    """Whether a request's query claims an identity."""
    query = request.raw_query
    return bool(query) and any(mark in query for mark in _MARKS)


def claimed_access_key(request: Request) -> str:
    """The access key that a presigned query names, which nothing has proved; empty without one."""
    for parameter in request.raw_query.split("&"):
        name, _, value = parameter.partition("=")
        if name in ("X-Amz-Credential", "AWSAccessKeyId"):
            return unquote(value).partition("/")[0]
    return ""


def is_presigned_v2(request: Request) -> bool:
    """Whether it is the query that signs, by Signature Version 2."""
    query = request.raw_query
    return "authorization" not in request.headers and "AWSAccessKeyId=" in query and "X-Amz-" not in query


def parse_claim(request: Request) -> Claim:
    """The claim of a request in Signature Version 4, from its Authorization header or its query.

    Raises AccessDenied when there is none, MalformedAuthorization, or InvalidRequest.
    """
    authorization = request.headers.get("authorization")
    query = request.raw_query
    presigned = "X-Amz-Signature=" in query or "X-Amz-Algorithm=" in query
    if authorization:
        if presigned:
            raise InvalidRequest("both an Authorization header and a presigned query; one of them must go")
        return _from_header(authorization, request)
    if presigned:
        return _from_query(request)
    if "AWSAccessKeyId=" in query and "Signature=" in query:
        raise MalformedAuthorization(f"this URL is presigned with Signature Version 2; {USE_V4}")
    raise AccessDenied("the request is not signed")


def _from_header(authorization: str, request: Request) -> Claim:
    if authorization.startswith("AWS "):
        raise MalformedAuthorization(f"the request is signed with Signature Version 2; {USE_V4}")
    signed_as, _, proof = authorization.rpartition("Signature=")
    if not _HEX_SIGNATURE.fullmatch(proof):
        raise MalformedAuthorization(_FORM)
    access_key, scope, signed_headers = _parse_signed_as(signed_as)
    amz_date, signed_at = _signing_time(request)
    payload = request.headers.get("x-amz-content-sha256")
    if not payload:
        raise InvalidRequest("the header x-amz-content-sha256 is missing; S3 requests must have it")
    _check_day(scope, amz_date)
    return Claim(access_key, scope, *signed_headers, proof, amz_date, signed_at, payload)


@lru_cache(maxsize=256)
def _parse_signed_as(text: str) -> tuple[str, Scope, tuple[tuple[str, ...], frozenset[str]]]:
    """The access key, scope and signed headers of an Authorization header; clients send the same all day.

    What is remembered follows from `text` alone. Raises MalformedAuthorization.
    """
    match = _SIGNED_AS.fullmatch(text)
    if match is None:
        raise MalformedAuthorization(_FORM)
    return *parse_credential(match[1]), _parse_signed_headers(match[2])


def _from_query(request: Request) -> Claim:
    found: dict[str, str] = {}
    for parameter in request.raw_query.split("&"):
        name, _, value = parameter.partition("=")
        if name.startswith("X-Amz-"):
            if name in found:
                raise MalformedAuthorization(f"the query parameter {name} is given twice")
            found[name] = unquote(value)
    for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature"):
        if f"X-Amz-{name}" not in found:
            raise MalformedAuthorization(f"a presigned request needs the query parameter X-Amz-{name}")
    if "X-Amz-Security-Token" in found:
        raise MalformedAuthorization("temporary credentials are not issued here; sign without a session token")
    if found["X-Amz-Algorithm"] != ALGORITHM:
        raise MalformedAuthorization(f"X-Amz-Algorithm must be {ALGORITHM}")
    expires = found["X-Amz-Expires"]
    if not re.fullmatch(r"[0-9]{1,6}", expires) or not 1 <= int(expires) <= MAX_EXPIRES_S:
        raise MalformedAuthorization(f"X-Amz-Expires must be 1 to {MAX_EXPIRES_S} seconds")
    if not _HEX_SIGNATURE.fullmatch(found["X-Amz-Signature"]):
        raise MalformedAuthorization("X-Amz-Signature must be 64 hex digits")
    access_key, scope = parse_credential(found["X-Amz-Credential"])
    amz_date = found["X-Amz-Date"]
    payload = found.get("X-Amz-Content-Sha256") or request.headers.get("x-amz-content-sha256") or UNSIGNED_PAYLOAD
    _check_day(scope, amz_date)
    return Claim(
        access_key,
        scope,
        *_parse_signed_headers(found["X-Amz-SignedHeaders"]),
        found["X-Amz-Signature"],
        amz_date,
        parse_amz_date(amz_date),
        payload,
        int(expires),
    )


def _check_day(scope: Scope, amz_date: str) -> None:
    if scope.date != amz_date[:8]:
        raise MalformedAuthorization(f"the credential is for {scope.date}, the request of {amz_date[:8]}")


def _parse_signed_headers(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """The names, and `Claim.sufficient`."""
    if not _SIGNED_HEADERS.fullmatch(text):
        raise MalformedAuthorization("SignedHeaders must be lower-case header names with ';' between them")
    names = text.split(";")
    if names != sorted(set(names)):
        raise MalformedAuthorization("SignedHeaders must be sorted, each name once")
    return tuple(names), frozenset(names) | _CHANGE_NOTHING


def parse_credential(text: str) -> tuple[str, Scope]:
    match = _CREDENTIAL.fullmatch(text)
    if match is None:
        raise MalformedAuthorization("the credential must be <access key>/<yyyymmdd>/<region>/s3/aws4_request")
    if match[4] != "s3":
        raise MalformedAuthorization(f"the credential is for the service {match[4]!r}; this gateway is 's3'")
    return match[1], Scope(match[2], match[3])


def _signing_time(request: Request) -> tuple[str, float]:
    """`x-amz-date`, or the Date header in the same form; and as seconds since the epoch."""
    amz_date = request.headers.get("x-amz-date")
    if amz_date:
        return amz_date, parse_amz_date(amz_date)
    date = request.headers.get("date")
    if not date:
        raise AccessDenied("a signed request needs an x-amz-date or Date header")
    if _AMZ_DATE.fullmatch(date):
        return date, parse_amz_date(date)
    try:
        moment = parsedate_to_datetime(date)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.strftime("%Y%m%dT%H%M%SZ"), moment.timestamp()
    except (ValueError, OverflowError):
        raise AccessDenied("the Date header is not an HTTP date such as 'Tue, 27 Jan 2026 10:00:00 GMT'") from None


@lru_cache(maxsize=256)
def parse_amz_date(text: str) -> float:
    if _AMZ_DATE.fullmatch(text):
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            pass
    raise AccessDenied("the signing time must be of the form 20260127T100000Z")
