"""Headers that a presigned URL carries in its query, which S3 takes as if they had been sent.

The JavaScript SDKs put every x-amz-* header there, and boto3 does under Signature Version 2, with Content-Type and
Content-MD5 besides.
"""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import unquote

from kvgate.errors import InvalidArgument
from kvgate.messages import Headers, Request

_CARRIED = re.compile(r"x-amz-[a-z0-9_.-]+|content-type|content-md5")
_SIGNATURE = frozenset(
    f"x-amz-{name}"
    for name in ("algorithm", "content-sha256", "credential", "date", "expires", "signature", "signedheaders")
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def with_query_headers(request: Request) -> Request:
    """The request with such parameters among its headers, and without them in its query.

    Raises InvalidArgument for one that is given twice with different values, or that no header could carry.
    """
    if not request.raw_query:
        return request
    if "x-amz-" not in request.raw_query.lower() and "content-" not in request.raw_query:
        return request
    left: list[str] = []
    carried: dict[str, str] = {}
    for parameter in request.raw_query.split("&"):
        raw_name, _, raw_value = parameter.partition("=")
        name = raw_name.lower()
        if not _CARRIED.fullmatch(name) or name in _SIGNATURE:
            left.append(parameter)
            continue
        value = unquote(raw_value, errors="surrogateescape")
        if _CONTROL.search(value):
            raise InvalidArgument(f"the query parameter {name[:64]} has a control character")
        if any(other != value for other in request.headers.getall(name)) or carried.setdefault(name, value) != value:
            raise InvalidArgument(f"{name[:64]} is given twice, with different values")
    added = [(name, value) for name, value in carried.items() if name not in request.headers]
    return replace(request, raw_query="&".join(left), headers=Headers([*request.headers.items(), *added]))
