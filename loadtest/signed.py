"""S3 requests as bytes, signed by Signature Version 4 as any SDK would."""

from __future__ import annotations

import time
from collections.abc import Mapping

from kvgate.auth.sigv4 import Credential, sign


def headers(
    credential: Credential, port: int, method: str, path: str, more: Mapping[str, str] | None = None, *, age_s: int = 0
) -> dict[str, str]:
    """The headers of a request to this machine, `more` among them, signed `age_s` seconds ago."""
    unsigned = {"host": f"127.0.0.1:{port}", **(more or {})}
    now = time.time() - age_s
    return unsigned | sign(credential, method, path, "", unsigned, region="us-east-1", now=now)


def request(
    credential: Credential,
    port: int,
    method: str,
    path: str,
    more: Mapping[str, str] | None = None,
    *,
    body: bytes = b"",
    body_nbytes: int | None = None,
    age_s: int = 0,
) -> bytes:
    """A request with the body `body`, or with `body_nbytes` that somebody else sends behind it.

    more:  further headers, lower-case names to values, signed too
    age_s: how long ago it was signed: requests that are alike get signatures of their own
    """
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers(credential, port, method, path, more, age_s=age_s).items()]
    nbytes = len(body) if body_nbytes is None else body_nbytes
    if nbytes or method in ("PUT", "POST"):
        lines.append(f"content-length: {nbytes}")
    return "\r\n".join([*lines, "", ""]).encode() + body
