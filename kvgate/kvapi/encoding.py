"""The two encodings of a call, and which of them a request wants. msgpack for engines, JSON for people and curl.

Both are read strictly and within bounds: one map with text keys, none of them twice, no extension types, no NaN.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from kvgate import strict_json
from kvgate.errors import InvalidArgument, InvalidRequest
from kvgate.messages import Headers

Members = Mapping[str, object]
"""The members of a request or response body; bytes are hex digits in JSON."""

_MAX_MEMBERS = 64


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to write members.

    pack:   members as a body
    unpack: the members of a body, whose arrays have at most so many items. Raises InvalidRequest
    """

    media_type: str
    pack: Callable[[Members], bytes]
    unpack: Callable[[bytes, int], Members]


def request_encoding(headers: Headers) -> Encoding:
    """What the body of a request is written in; JSON when it does not say. Raises InvalidArgument for any other."""
    text = headers.get("content-type")
    if not text:
        return JSON
    encoding = _BY_MEDIA_TYPE.get(_media_type(text))
    if encoding is None:
        raise InvalidArgument(f"Content-Type must be {JSON.media_type} or {MSGPACK.media_type}, got {text[:64]!r}")
    return encoding


def response_encoding(headers: Headers) -> Encoding:
    """What Accept prefers; without a preference that of the request, and JSON when that is not known either."""
    best, best_weight = None, 0.0
    for choice in ",".join(headers.getall("accept")).split(","):
        encoding, weight = _BY_MEDIA_TYPE.get(_media_type(choice)), _weight(choice)
        if encoding is not None and weight > best_weight:
            best, best_weight = encoding, weight
    return best or _BY_MEDIA_TYPE.get(_media_type(headers.get("content-type")), JSON)


def _media_type(text: str) -> str:
    return text.partition(";")[0].strip().lower()


def _weight(choice: str) -> float:
    for parameter in choice.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


# --- JSON -------------------------------------------------------------------------------------------------------------


def _pack_json(members: Members) -> bytes:
    return json.dumps(members, default=bytes.hex, separators=(",", ":")).encode()


def _unpack_json(body: bytes, max_items: int) -> Members:  # the items are bounded by the body's own length
    try:
        members = strict_json.loads(body)
    except strict_json.JSONRefused as error:
        raise InvalidRequest(f"the body is not JSON that can be read: {error}") from None
    return _checked(members)


# --- msgpack ----------------------------------------------------------------------------------------------------------


def _pack_msgpack(members: Members) -> bytes:
    packed: bytes = msgpack.packb(members)
    return packed


def _unpack_msgpack(body: bytes, max_items: int) -> Members:
    try:
        members = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            max_str_len=len(body),
            max_bin_len=len(body),
            max_array_len=max_items,
            max_map_len=_MAX_MEMBERS,
            max_ext_len=0,
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidRequest(f"the body is not msgpack that can be read: {error or type(error).__name__}") from None
    return _checked(members)


def _unique(pairs: list[tuple[Any, object]]) -> dict[Any, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name appears twice in one map")
    return members


def _checked(members: object) -> Members:
    if not isinstance(members, dict) or not all(type(name) is str for name in members):
        raise InvalidRequest("the body must be one map with text keys")
    return members


JSON = Encoding("application/json", _pack_json, _unpack_json)
MSGPACK = Encoding("application/msgpack", _pack_msgpack, _unpack_msgpack)

_BY_MEDIA_TYPE = {
    "application/json": JSON,
    "application/msgpack": MSGPACK,
    "application/vnd.msgpack": MSGPACK,
    "application/x-msgpack": MSGPACK,
}
