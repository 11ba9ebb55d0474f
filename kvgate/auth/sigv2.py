"""AWS Signature Version 2, as far as presigned URLs and POST forms need it: some clients still make these by default.

A URL is accepted only when the signature covers all that it asks for: method, path, every query parameter and every
x-amz-* header. Signed Authorization headers of this version are not accepted.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping
from urllib.parse import unquote

from kvgate.auth.query_headers import with_query_headers
from kvgate.auth.sigv4 import MAX_EXPIRES_S
from kvgate.errors import AccessDenied, ExpiredRequest, MalformedAuthorization
from kvgate.messages import Request

_OWN = ("AWSAccessKeyId", "Expires", "Signature")
_COVERED = frozenset(
    {
        *("acl", "cors", "delete", "lifecycle", "location", "logging", "notification", "partNumber", "policy"),
        *("requestPayment", "tagging", "torrent", "uploadId", "uploads", "versionId", "versioning", "versions"),
        *("website", "response-cache-control", "response-content-disposition", "response-content-encoding"),
        *("response-content-language", "response-content-type", "response-expires"),
    }
)
"""The query parameters that the signature covers, by name."""

_SECONDS = re.compile(r"[0-9]{1,12}")


class PresignedV2:
    """What a presigned URL says of its own signature: parsed and bounded, but not yet believed.

    expires: seconds since the epoch
    """

    def __init__(self, request: Request) -> None:
        """Raises MalformedAuthorization, InvalidArgument, or AccessDenied for a parameter that is not covered."""
        request = with_query_headers(request)
        if "x-amz-security-token" in request.headers:
            raise MalformedAuthorization("temporary credentials are not issued here; sign without a session token")
        parameters = _parse_query(request.raw_query)
        for name in _OWN:
            if not parameters.get(name):
                raise MalformedAuthorization(f"a presigned request needs the query parameter {name}")
        expires = parameters["Expires"] or ""
        if not _SECONDS.fullmatch(expires):
            raise MalformedAuthorization("Expires must be in seconds since the epoch")
        self.access_key = parameters["AWSAccessKeyId"] or ""
        self.expires = int(expires)
        self._signature = parameters["Signature"] or ""
        self._text = _string_to_sign(request, expires, parameters)

    def check_time(self, now: float) -> None:
        """Raises ExpiredRequest for a URL that is no longer good, AccessDenied for one that would be for too long."""
        check_expiration(now, self.expires)

    def matches(self, secret_key: str) -> bool:
        """Whether the signature is what the secret gives."""
        return hmac.compare_digest(sign(secret_key, self._text), self._signature.encode("utf-8", "surrogateescape"))


def check_expiration(now: float, expires: float) -> None:
    """Raises ExpiredRequest for what was presigned until before `now`, AccessDenied for over MAX_EXPIRES_S from now."""
    if now > expires:
        raise ExpiredRequest(f"the request was presigned until {now - expires:.0f} s ago")
    if expires - now > MAX_EXPIRES_S + 1:
        raise AccessDenied(f"what is presigned is good for {MAX_EXPIRES_S} s at most")


def sign(secret_key: str, text: bytes) -> bytes:
    """The base64 signature of a text."""
    return base64.b64encode(hmac.digest(secret_key.encode(), text, "sha1"))


def _parse_query(raw_query: str) -> dict[str, str | None]:
    """The decoded value of each parameter; None for one without a `=`."""
    parameters: dict[str, str | None] = {}
    for parameter in filter(None, raw_query.split("&")):
        name, assigned, value = parameter.partition("=")
        if name in parameters:
            raise MalformedAuthorization(f"the query parameter {name[:64]!r} is given twice")
        if name not in _OWN and name not in _COVERED:
            raise AccessDenied(
                f"a presigned URL of Signature Version 2 cannot have the query parameter {name[:64]!r}: the "
                "signature does not cover it; presign with signature_version='s3v4'"
            )
        parameters[name] = unquote(value, errors="surrogateescape") if assigned else None
    return parameters


def _string_to_sign(request: Request, expires: str, parameters: Mapping[str, str | None]) -> bytes:
    headers = request.headers
    lines = [request.method, headers.get("content-md5"), headers.get("content-type"), expires]
    for name in sorted({name for name, _ in headers.items() if name.startswith("x-amz-")}):
        values = [value.strip(" \t") for value in headers.getall(name)]
        lines.append(f"{name}:{','.join(values)}")
    covered = [
        name if (value := parameters[name]) is None else f"{name}={value}"
        for name in sorted(parameters.keys() & _COVERED)
    ]
    resource = (f"/{request.bucket}" if request.bucket else "") + request.raw_path
    lines.append(resource + ("?" + "&".join(covered) if covered else ""))
    return "\n".join(lines).encode("utf-8", "surrogateescape")
