"""Forms as browsers send them."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit

BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"


def part(name: str, content: bytes | str, filename: str | None = None, boundary: str = BOUNDARY) -> bytes:
    """One field, with the delimiter before it. Quotes in names are percent-encoded, as browsers do."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
    if filename is not None:
        head += f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
    return head.encode() + b"\r\n\r\n" + (content.encode() if isinstance(content, str) else content) + b"\r\n"


def end(boundary: str = BOUNDARY) -> bytes:
    return f"--{boundary}--\r\n".encode()


def form(fields: Mapping[str, str], file: bytes, filename: str = "a.bin", boundary: str = BOUNDARY) -> bytes:
    """The body of a form whose last field is a file."""
    parts = [part(name, value, boundary=boundary) for name, value in fields.items()]
    return b"".join([*parts, part("file", file, filename, boundary), end(boundary)])


def post(url: str, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    """Send a form, following nothing. Status, headers and body of the answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    wanted = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **(headers or {})}
    try:
        connection.request("POST", parts.path + (f"?{parts.query}" if parts.query else ""), body, wanted)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
