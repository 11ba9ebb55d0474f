"""The body of an object on its way in: where the next bytes go, and whether what came is what was asked for."""

from __future__ import annotations

import re

from kvgate.client.answer import content_length, malformed, object_info
from kvgate.client.values import Object
from kvgate.errors import GatewayError, GatewayUnavailable
from kvgate.memory.digest import extend_crc64nvme
from kvgate.messages import Headers

PIECE_NBYTES = 1 << 20
"""The most that one read asks for. Without a caller's buffer, memory grows by this as bytes really arrive."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")


class Download:
    """Takes one body, piece by piece: fill `room()`, report `received(n)`, until the room is empty; then `finish()`."""

    def __init__(
        self,
        key: str,
        status: int,
        headers: Headers,
        span: tuple[int, int | None] | None,
        into: memoryview | None,
    ) -> None:
        """Raises GatewayError when the answer is not to what was asked, or longer than `into`."""
        self._status = status
        self._nbytes = content_length(status, headers)
        self._whole = span is None
        total = self._nbytes if span is None else _total(status, headers, span, self._nbytes)
        if (status == 200) != self._whole:
            malformed(status, "a range came for a whole object, or the reverse")
        if into is not None and len(into) < self._nbytes:
            raise GatewayError(
                f"the body has {self._nbytes} bytes, and the buffer {len(into)}", status=status, code="BufferTooSmall"
            )
        self._info = object_info(key, status, headers, total)
        self._into = into
        self._pieces: list[bytearray] = []
        self._done = 0
        self._piece_done = 0
        self._crc = 0

    def room(self) -> memoryview:
        """Where the next bytes go, at most PIECE_NBYTES; empty when the body is complete."""
        wanted = min(self._nbytes - self._done, PIECE_NBYTES)
        if self._into is not None:
            return self._into[self._done : self._done + wanted]
        if wanted and (not self._pieces or self._piece_done == len(self._pieces[-1])):
            self._pieces.append(bytearray(wanted))
            self._piece_done = 0
        return memoryview(self._pieces[-1])[self._piece_done :] if wanted else memoryview(b"")

    def received(self, nbytes: int) -> None:
        """The first `nbytes` bytes of the last room have been filled."""
        self._crc = extend_crc64nvme(self.room()[:nbytes], self._crc)
        self._piece_done += nbytes
        self._done += nbytes

    def feed(self, arrived: bytes) -> None:
        """Take bytes that came by another way than the room, at the price of one copy."""
        rest = memoryview(arrived)
        while rest:
            room = self.room()
            if not room:
                malformed(self._status, "its body is longer than it states")
            taken = min(len(room), len(rest))
            room[:taken] = rest[:taken]
            self.received(taken)
            rest = rest[taken:]

    def finish(self) -> Object:
        """The object. Raises GatewayError with the code BadDigest when the bytes are not those that were stored."""
        if self._done != self._nbytes:
            raise GatewayUnavailable(
                f"the connection broke {self._nbytes - self._done} bytes before the end of the answer"
            )
        expected = self._info.crc64nvme
        verified = self._whole and expected is not None
        if verified and self._crc != expected:
            raise GatewayError(
                f"the body of {self._info.key[:160]!r} does not match its checksum",
                status=self._status,
                code="BadDigest",
            )
        body = b"".join(self._pieces) if self._into is None else None
        return Object(self._info, self._done, body, verified)


def _total(status: int, headers: Headers, span: tuple[int, int | None], nbytes: int) -> int:
    """The size of the object that `nbytes` bytes of were sent for `span`."""
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range"))
    if match is None:
        malformed(status, "it does not state the range of its body")
    first, last, total = (int(group) for group in match.groups())
    start, stop = span
    end = total if stop is None else min(stop, total)
    if (first, last + 1) != (start, end) or last + 1 - first != nbytes:
        malformed(status, "another range came than was asked for")
    return total
