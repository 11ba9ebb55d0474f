"""Frames of a control connection, and the seal that each message carries after the handshake.

    frame    nbytes u32 big-endian, then so many bytes
    message  32 bytes of HMAC-SHA256 over its number (u64) and body, then the body, which is msgpack

The number of a message is not sent: each side counts. So a message that is left out, repeated, or put elsewhere does
not match, nor does one of the other direction, which has a key of its own.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator
from typing import Any

import msgpack

from engine_adapters.nixl.errors import MalformedMessage

MAX_FRAME_NBYTES = 4 << 20
SEAL_NBYTES = 32

_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")


def frame(body: bytes) -> bytes:
    """The bytes to send for one frame."""
    return _LENGTH.pack(len(body)) + body


class Inbox:
    """Frames out of the bytes of a connection, as they arrive. `limit_nbytes` may be set between two frames."""

    def __init__(self, limit_nbytes: int) -> None:
        self.limit_nbytes = limit_nbytes
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are complete with `data`. Raises MalformedMessage for one that will be over the limit."""
        self._bytes += data
        while len(self._bytes) >= _LENGTH.size:
            (nbytes,) = _LENGTH.unpack_from(self._bytes)
            if nbytes > self.limit_nbytes:
                raise MalformedMessage(f"a frame of {nbytes} bytes, at most {self.limit_nbytes} are expected")
            stop = _LENGTH.size + nbytes
            if len(self._bytes) < stop:
                return
            body = bytes(self._bytes[_LENGTH.size : stop])
            del self._bytes[:stop]
            yield body


def pack(value: object) -> bytes:
    """`value` as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(body: bytes) -> Any:
    """Plain values from msgpack, none longer than `body`. Raises MalformedMessage."""
    try:
        return msgpack.unpackb(body, raw=False, use_list=True, strict_map_key=True, ext_hook=_no_extension)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise MalformedMessage(f"a message that is not msgpack: {type(error).__name__}") from None


def _no_extension(code: int, data: bytes) -> Any:
    raise MalformedMessage(f"a message with the msgpack extension {code}")


class Sealer:
    """Seals the messages of one direction, in order."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def seal(self, body: bytes) -> bytes:
        tag = _tag(self._key, self._number, body)
        self._number += 1
        return tag + body


class Opener:
    """Opens what the `Sealer` with the same key has sealed, in the same order."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def open(self, message: bytes) -> bytes:
        """The body. Raises MalformedMessage when it is not the next message of the peer."""
        tag, body = message[:SEAL_NBYTES], message[SEAL_NBYTES:]
        if not hmac.compare_digest(tag, _tag(self._key, self._number, body)):
            raise MalformedMessage("a message that is not the next one of the peer")
        self._number += 1
        return body


def _tag(key: bytes, number: int, body: bytes) -> bytes:
    return hmac.digest(key, _NUMBER.pack(number) + body, "sha256")
