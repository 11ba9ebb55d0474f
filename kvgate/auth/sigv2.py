"""AWS Signature Version 2, as far as presigned URLs and POST forms need it: some clients still make these by default.

A URL is accepted only when the signature covers all that it asks for: method, path, every query parameter and every
x-amz-* header. Signed Authorization headers of this version are not accepted.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html
"""

from __future__ import annotations

import base64
import hmac
import re
from urllib.parse import unquote_plus

from kvgate.auth.sigv4 import MAX_EXPIRES_S
from kvgate.errors import AccessDenied, MalformedAuthorization
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
        """Raises MalformedAuthorization, or AccessDenied for a parameter that the signature cannot cover."""
        parameters: dict[str, str] = {}
        for parameter in request.raw_query.split("&"):
            name, _, value = parameter.partition("=")
            if name in parameters:
                raise MalformedAuthorization(f"the query parameter {name[:64]} is given twice")
            if name in _OWN or name in _COVERED:
                parameters[name] = unquote_plus(value) if name in _OWN else value
            elif name:
                raise AccessDenied(
                    f"a presigned URL of Signature Version 2 cannot have the query parameter {name[:64]!r}: the "
                    "signature does not cover it; presign with signature_version='s3v4'"
                )
        for name in _OWN:
            if not parameters.get(name):
                raise MalformedAuthorization(f"a presigned request needs the query parameter {name}")
        if not _SECONDS.fullmatch(parameters["Expires"]):
            raise MalformedAuthorization("Expires must be in seconds since the epoch")
        self.access_key = parameters["AWSAccessKeyId"]
        self.expires = int(parameters["Expires"])
        self._signature = parameters["Signature"]
        self._text = _string_to_sign(request, parameters)

    def check_time(self, now: float) -> None:
        """Raises AccessDenied for a URL that is no longer good, or would be for too long."""
        if now > self.expires:
            raise AccessDenied(f"the URL was presigned until {self.expires} s since the epoch")
        if self.expires - now > MAX_EXPIRES_S + 1:
            raise AccessDenied(f"a presigned URL is good for {MAX_EXPIRES_S} s at most")

    def matches(self, secret_key: str) -> bool:
        """Whether the signature is what the secret gives."""
        return hmac.compare_digest(sign(secret_key, self._text), self._signature.encode("utf-8", "replace"))


def sign(secret_key: str, text: bytes) -> bytes:
    """The base64 signature of a text."""
    return base64.b64encode(hmac.digest(secret_key.encode(), text, "sha1"))


def _string_to_sign(request: Request, parameters: dict[str, str]) -> bytes:
    headers = request.headers
    amz = {name: headers.getall(name) for name, _ in headers.items() if name.startswith("x-amz-")}
    lines = [request.method, headers.get("content-md5"), headers.get("content-type"), parameters["Expires"]]
    lines += [f"{name}:{','.join([value.strip() for value in amz[name]])}" for name in sorted(amz)]
    resource = (f"/{request.bucket}" if request.bucket else "") + request.raw_path
    covered = [
        f"{name}={unquote_plus(parameters[name])}" if f"{name}=" in request.raw_query else name
        for name in sorted(parameters.keys() & _COVERED)
    ]
    lines.append(resource + ("?" + "&".join(covered) if covered else ""))
    return "\n".join(lines).encode("utf-8", "surrogateescape")
