"""POST forms: what a good one holds arrives exactly, however the reads split it; any other is refused or read."""

from __future__ import annotations

import base64
import json
from typing import Any

from fuzz.draw import Draw
from fuzz.properties import must, refusals, run_at_once
from fuzz.targets.base import Target
from kvgate.auth.post_policy import PostPolicy
from kvgate.messages import Headers, Request
from kvgate.s3.form import Form

_BOUNDARY = b"xYx"
_WORDS = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"--",
        b"--xYx",
        b"\r\n--xYx",
        b"\r\n--xY",
        b"\r\n--xYx--",
        b"\r\n--xYx\r\n",
        b"-",
        b"\x00",
    ),
    *(b"Content-Disposition: form-data; name=", b'name="file"', b'; filename="../${filename}"', b"filename*=", b'"'),
    *(b"\x00", b"${filename}", b"\xff", b"a" * 5000, b": ", b"\r\n\r\n"),
)
_NAMES = ("key", "acl", "policy", "Content-Type", "x-amz-meta-a", "key", "tagging", "é", "x-ignore-b")
_CONDITIONS: tuple[Any, ...] = (
    *({"bucket": "b"}, {"acl": "private"}, ["eq", "$key", "k"], ["starts-with", "$key", "user/"]),
    *(["starts-with", "$Content-Type", "image/"], ["content-length-range", 0, 10], ["content-length-range", 9, 1]),
    *({}, [], ["eq"], ["starts-with", "$key"], ["like", "$key", "a"], {"key": 1}, None, "key", ["eq", "key", "k"]),
    *({"a": "b", "c": "d"}, ["content-length-range", "1", -1], ["content-length-range", 1.5, 2**70]),
)
_EXPIRATIONS = ("2030-01-01T00:00:00Z", "2030-01-01T00:00:00.000Z", "2030-13-01T00:00:00Z", "0001-01-01T00:00:00Z", 5)


class _Pieces:
    """A body that arrives in pieces of these lengths, and then in one of the rest."""

    def __init__(self, wire: bytes, lengths: list[int]) -> None:
        self._left = memoryview(wire)
        self._lengths = lengths

    async def readinto(self, view: memoryview) -> int:
        most = self._lengths.pop() if self._lengths else len(self._left)
        count = min(len(view), most, len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def check(data: bytes) -> None:
    """A form of a few fields and a file, damaged or not."""
    draw = Draw(data)
    fields = {draw.pick(_NAMES).lower(): draw.some(20) for _ in range(draw.below(4))}
    file = b"".join([draw.pick(_WORDS) if draw.one_in(3) else draw.some(20) for _ in range(draw.below(5))])
    good = b"\r\n--" + _BOUNDARY not in b"\r\n" + b"\r\n".join([*fields.values(), file])
    good = good and all(_is_text(value) and b"${" not in value for value in fields.values())
    wire = bytearray(
        b"".join(
            [
                *[_part(name.encode(), value) for name, value in fields.items()],
                _part(b"file", file, b'; filename="f"'),
                b"--" + _BOUNDARY + b"--\r\n",
            ]
        )
    )
    for _ in range(draw.below(4)):
        good = False
        at = draw.below(len(wire) + 1)
        wire[at : at + draw.pick((0, 0, 1, 2, 20))] = draw.pick(_WORDS) if draw.one_in(2) else draw.some(3)
    body = _Pieces(bytes(wire), [1 + draw.below(300) for _ in range(draw.below(20))])
    headers = Headers([("content-type", f"multipart/form-data; boundary={_BOUNDARY.decode()}")])
    received = bytearray()
    found: Form | None = None
    with refusals():
        found = run_at_once(_receive(Request("POST", "/b", "", headers, body), received))
    if good:
        must(found is not None, "a good form is refused")
        must(received == file, "the file arrives as something else")
        must(found and found.fields == {name: value.decode() for name, value in fields.items()}, "a field is another")


def check_policies(data: bytes) -> None:
    """A policy that may be any text, or a good one with odd conditions."""
    draw = Draw(data)
    if draw.one_in(3):
        text = draw.text() if draw.one_in(2) else base64.b64encode(draw.some()).decode()
    else:
        conditions = [draw.pick(_CONDITIONS) for _ in range(draw.below(5))]
        document = {"expiration": draw.pick(_EXPIRATIONS), "conditions": conditions}
        text = base64.b64encode(json.dumps(document).encode()).decode()
    fields = {draw.pick(_NAMES).lower(): draw.text(8) for _ in range(draw.below(4))}
    with refusals():
        policy = PostPolicy.parse(text)
        must(policy.min_nbytes >= 0 and (policy.max_nbytes or 0) >= 0, "a length that nothing has")
        policy.check(fields | {"bucket": "b"})


async def _receive(request: Request, received: bytearray) -> Form:
    form = Form(request)
    await form.read_fields()
    buffer = memoryview(bytearray(100))
    while count := await form.readinto(buffer):
        received += buffer[:count]
    return form


def _part(name: bytes, content: bytes, more: bytes = b"") -> bytes:
    head = b"--" + _BOUNDARY + b'\r\nContent-Disposition: form-data; name="' + name + b'"' + more
    return head + b"\r\n\r\n" + content + b"\r\n"


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


TARGETS = (
    Target("forms", 20_000, check, words=_WORDS),
    Target("form-policies", 10_000, check_policies),
)
