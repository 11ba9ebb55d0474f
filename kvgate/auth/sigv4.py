"""AWS Signature Version 4 for S3: canonical requests, signing keys, and signatures. Pure functions of their arguments.

One implementation serves both ends: `sign` and `presign` for clients, `canonical_request` and `signature` to verify.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from kvgate.messages import Headers

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
MAX_EXPIRES_S = 7 * 24 * 3600

_CANONICAL_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")
_CANONICAL_TEXT = re.compile(r"[A-Za-z0-9._~-]*")
_BLANKS = re.compile(r"[ \t]+")
_NOT_SIGNED = frozenset({"authorization", "connection", "expect", "transfer-encoding", "user-agent", "x-amzn-trace-id"})


class Scope(NamedTuple):
    """The day, region and service that a signing key is good for; `str()` spells it as signatures have it."""

    date: str
    region: str
    service: str = "s3"

    def __str__(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


@dataclass(frozen=True, slots=True)
class Credential:
    """What a client signs with."""

    access_key: str
    secret_key: str = field(repr=False)


# --- canonical form ---------------------------------------------------------------------------------------------------


def canonical_path(raw_path: str) -> str:
    """The path as S3 signs it: decoded, then every byte encoded once except unreserved characters and `/`.

    S3 neither normalises (`//` and `..` stay) nor encodes twice, unlike other AWS services.
    """
    if _CANONICAL_PATH.fullmatch(raw_path):
        return raw_path
    return quote(unquote_to_bytes(_octets(raw_path)), safe="/~") or "/"


def canonical_query(raw_query: str, leave_out: str | None = None) -> str:
    """The query sorted by encoded name and then value, duplicates kept, without the parameter `leave_out`.

    `+` is a plus, as RFC 3986 has it and every AWS SDK sends it, not the space of HTML forms.
    """
    if not raw_query:
        return ""
    pairs = []
    for parameter in raw_query.split("&"):
        name, _, value = parameter.partition("=")
        if parameter and name != leave_out:
            pairs.append((_canonical_text(name), _canonical_text(value)))
    pairs.sort()
    return "&".join([f"{name}={value}" for name, value in pairs])


def canonical_request(
    method: str,
    raw_path: str,
    query: str,
    signed: Sequence[str],
    headers: Headers,
    payload_hash: str,
) -> str:
    """The text whose sha256 is signed.

    query:   canonical already
    signed:  the names of the headers that are signed, sorted
    headers: as received
    """
    lines = "".join([f"{name}:{headers.joined(name)}\n" for name in signed])
    if " " in lines or "\t" in lines:
        lines = "".join([f"{name}:{','.join(map(_canonical_value, headers.getall(name)))}\n" for name in signed])
    return f"{method}\n{canonical_path(raw_path)}\n{query}\n{lines}\n{';'.join(signed)}\n{payload_hash}"


def _canonical_text(text: str) -> str:
    if _CANONICAL_TEXT.fullmatch(text):
        return text
    return quote(unquote_to_bytes(_octets(text)), safe="~")


def _canonical_value(value: str) -> str:
    """A header's value with single spaces; other white space than HTTP's own, such as U+3000, is text."""
    return _BLANKS.sub(" ", value.strip(" \t"))


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# --- signatures -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def signing_key(secret_key: str, scope: Scope) -> bytes:
    """The key of one secret for one scope; the most recently used 256 are kept."""
    key = b"AWS4" + secret_key.encode()
    for part in (*scope, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def signature(key: bytes, amz_date: str, scope: Scope, canonical: str) -> str:
    """The hex signature of a canonical request."""
    digest = hashlib.sha256(_octets(canonical)).hexdigest()
    return hmac.digest(key, f"{ALGORITHM}\n{amz_date}\n{scope}\n{digest}".encode(), "sha256").hex()


# --- for clients ------------------------------------------------------------------------------------------------------


def sign(
    credential: Credential,
    method: str,
    raw_path: str,
    raw_query: str,
    headers: Mapping[str, str],
    *,
    region: str,
    now: float,
    payload_hash: str = UNSIGNED_PAYLOAD,
) -> dict[str, str]:
    """The headers that sign a request: `x-amz-date`, `x-amz-content-sha256` and `authorization`.

    raw_path, raw_query: exactly as they will be sent
    headers:             lower-case names to values, `host` among them; all are signed that proxies leave alone
    now:                 seconds since the epoch
    payload_hash:        the body's sha256 in hex, UNSIGNED_PAYLOAD, or a streaming form
    """
    amz_date, scope = _moment(now, region)
    added = {"x-amz-date": amz_date, "x-amz-content-sha256": payload_hash}
    sent = {**headers, **added}
    signed = _signed_names(sent)
    canonical = canonical_request(
        method, raw_path, canonical_query(raw_query), signed, Headers(sent.items()), payload_hash
    )
    proof = signature(signing_key(credential.secret_key, scope), amz_date, scope, canonical)
    added["authorization"] = (
        f"{ALGORITHM} Credential={credential.access_key}/{scope}, SignedHeaders={';'.join(signed)}, Signature={proof}"
    )
    return added


def presign(
    credential: Credential,
    method: str,
    raw_path: str,
    raw_query: str,
    headers: Mapping[str, str],
    *,
    region: str,
    now: float,
    expires_s: int,
) -> str:
    """The query of a presigned URL: `raw_query` and what signs it, for `expires_s` seconds from `now`.

    headers: lower-case names to values, `host` among them; whoever uses the URL must send the same.
    """
    amz_date, scope = _moment(now, region)
    signed = _signed_names(headers)
    added = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{credential.access_key}/{scope}",
        "X-Amz-Date": amz_date,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": ";".join(signed),
    }
    query = "&".join(
        [*([raw_query] if raw_query else []), *[f"{name}={quote(value, safe='~')}" for name, value in added.items()]]
    )
    canonical = canonical_request(
        method, raw_path, canonical_query(query), signed, Headers(headers.items()), UNSIGNED_PAYLOAD
    )
    proof = signature(signing_key(credential.secret_key, scope), amz_date, scope, canonical)
    return f"{query}&X-Amz-Signature={proof}"


def _moment(now: float, region: str) -> tuple[str, Scope]:
    amz_date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    return amz_date, Scope(amz_date[:8], region)


def _signed_names(headers: Mapping[str, str]) -> list[str]:
    return sorted(name for name in headers if name not in _NOT_SIGNED)
