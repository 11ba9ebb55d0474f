"""What a gateway and an engine on the same host say to each other over the unix socket that hands memory on.

The socket is of the type SOCK_SEQPACKET: each packet is one frame, and some come with descriptors (SCM_RIGHTS).
All numbers are little-endian, every length is bounded, and a frame that is not exactly of its form is refused.

    every frame   kind u8, flags u8, count u16, request u32; an answer has the number of its request

    engine → gateway
    ATTACH        date 16 bytes, authorization text                              flags: WRITE
    DEVICE        uuid 16 bytes: the GPU that the engine runs on, once a connection
    GET           wait_ms u32, bucket u16, key u16 (lengths), bucket, key        count 1, flags: ON_DEVICE
                  or, with a key length of 0: bucket, space 32 bytes, count hashes of 32 bytes
    RELEASE       count grants, u64 each; has no answer. Their words in the returns do the same, a little later
                                                                                 flags: BAD when what was copied from
                                                                                 the GPU did not match its digests
    RESERVE       nbytes u64, bucket u16, key u16 (lengths), bucket, key         count 1, flags: FIRST when there must
                                                                                 be no such object, then and at COMMIT
    COMMIT, ABORT reservation u64
    PING
    UNMAPPED      count segments of the GPU, u64 each: the engine maps them no more; has no answer

    gateway → engine
    HELLO         magic 8 bytes, boot id 16 bytes, nonce 32 bytes
    ATTACHED      lease_ms u32, grants u32, tenant text; with the descriptors of the ledger and the returns
    SEGMENT       segment u64, nbytes u64; with the segment's descriptor         flags: WRITE when it may be written
                  or, of the GPU, with its CUDA IPC handle behind them           flags: ON_DEVICE
    GONE          count segments, u64 each: their memory has been given back     flags: ON_DEVICE when it waits for
                                                                                 UNMAPPED to be given back
    GRANTS        count of them, in the order asked; each as `Grant` below       flags: MORE when others follow
    RESERVED      reservation u64, then as a grant
    DONE          text: the entity tag after COMMIT; the tier on the GPU after DEVICE, empty where there is none
    ERROR         status u16, code u16 (length), code, message

A frame SEGMENT comes before the first one that names the segment. Segments of the GPU are numbered by themselves: the
grants that answer a GET with ON_DEVICE name those.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from kvgate.chunk.chain import HASH_NBYTES
from kvgate.errors import MalformedFrame
from kvgate.memory.allocator import Extent
from kvgate.memory.digest import BLOCK_NBYTES

MAGIC = b"kvgshm\x00\x01"
BOOT_ID_NBYTES = 16
NONCE_NBYTES = 32
MAX_FRAME_NBYTES = 64 << 10
MAX_HASHES = 256
"""Chunks that one GET may ask for."""

WRITE = MORE = FIRST = BAD = 1
ON_DEVICE = 2

ATTACH, GET, RELEASE, RESERVE, COMMIT, ABORT, PING, DEVICE, UNMAPPED = range(1, 10)
HELLO, ATTACHED, SEGMENT, GONE, GRANTS, RESERVED, DONE, ERROR = range(129, 137)

ABSENT, NOT_IN_MEMORY, TOO_MANY = 1, 2, 3
"""Why there is no grant: no such chunk; not in this memory, nor brought there in time; too many grants are open."""

UUID_NBYTES = 16

_HEAD = struct.Struct("<BBHI")
_GET = struct.Struct("<IHH")
_RESERVE = struct.Struct("<QHH")
_GRANT = struct.Struct("<QQHH")
_EXTENT = struct.Struct("<QQQ")
_NUMBER = struct.Struct("<Q")
_ATTACHED = struct.Struct("<II")
_SEGMENT = struct.Struct("<QQ")
_ERROR = struct.Struct("<HH")
_DATE_NBYTES = 16
_MAX_EXTENTS = 1024

_ONE = struct.Struct(_HEAD.format + _GRANT.format[1:] + _EXTENT.format[1:])

HEAD_NBYTES = _HEAD.size
_GET_NBYTES = HEAD_NBYTES + _GET.size
MAX_GRANT_NBYTES = MAX_FRAME_NBYTES - HEAD_NBYTES


class Asked(NamedTuple):
    """A GET. `keys` are the objects' keys in order; `wait_ms` is how long one may be brought to memory."""

    wait_ms: int
    bucket: str
    keys: list[str]


class Grant(NamedTuple):
    """A lease on an object in memory.

    id:      0 when there is none, and `reason` says why
    extents: where the bytes lie, in order; the last one may be longer than they are
    blocks:  the crc64nvme of each MiB, in the machine's byte order
    """

    id: int
    nbytes: int
    extents: tuple[Extent, ...] = ()
    blocks: array[int] = array("Q")
    reason: int = 0


def head_of(frame: bytes) -> tuple[int, int, int, int]:
    """The kind, the flags, the count and the request of a frame. Raises MalformedFrame."""
    if len(frame) < HEAD_NBYTES:
        raise MalformedFrame(f"a frame has at least {HEAD_NBYTES} bytes, this one {len(frame)}")
    return _HEAD.unpack_from(frame)


# --- engine → gateway -------------------------------------------------------------------------------------------------


def encode_attach(request: int, amz_date: str, authorization: str, *, write: bool) -> bytes:
    return _HEAD.pack(ATTACH, WRITE if write else 0, 0, request) + amz_date.encode() + authorization.encode()


def decode_attach(frame: bytes) -> tuple[str, str]:
    """The date and the authorization. Raises MalformedFrame."""
    text = _text(frame[HEAD_NBYTES:])
    if len(text) <= _DATE_NBYTES:
        raise MalformedFrame("a frame ATTACH without an authorization")
    return text[:_DATE_NBYTES], text[_DATE_NBYTES:]


def encode_get(request: int, bucket: str, key: str, wait_ms: int) -> bytes:
    bucket_name, key_name = bucket.encode(), key.encode()
    return _HEAD.pack(GET, 0, 1, request) + _GET.pack(wait_ms, len(bucket_name), len(key_name)) + bucket_name + key_name


def encode_get_chunks(
    request: int, bucket: str, space: bytes, hashes: Sequence[bytes], wait_ms: int, *, on_device: bool = False
) -> bytes:
    name = bucket.encode()
    head = _HEAD.pack(GET, ON_DEVICE if on_device else 0, len(hashes), request) + _GET.pack(wait_ms, len(name), 0)
    return b"".join([head, name, space, *hashes])


def decode_get(frame: bytes, count: int) -> Asked:
    """Raises MalformedFrame."""
    if len(frame) < _GET_NBYTES:
        raise MalformedFrame("a frame GET that ends too early")
    wait_ms, bucket_nbytes, key_nbytes = _GET.unpack_from(frame, HEAD_NBYTES)
    names = _GET_NBYTES + bucket_nbytes
    bucket = _text(frame[_GET_NBYTES:names])
    if key_nbytes:
        if count != 1 or len(frame) != names + key_nbytes:
            raise MalformedFrame("a frame GET of another length than it states")
        return Asked(wait_ms, bucket, [_text(frame[names:])])
    if not 1 <= count <= MAX_HASHES or len(frame) != names + (count + 1) * HASH_NBYTES:
        raise MalformedFrame(f"a frame GET asks for 1 to {MAX_HASHES} hashes, and has that length")
    text = frame[names:].hex()
    width = 2 * HASH_NBYTES
    prefix = f"kv/{text[:width]}/"
    return Asked(wait_ms, bucket, [prefix + text[at : at + width] for at in range(width, len(text), width)])


def encode_numbers(kind: int, request: int, numbers: Sequence[int], flags: int = 0) -> bytes:
    """RELEASE, COMMIT, ABORT, GONE and UNMAPPED."""
    return _HEAD.pack(kind, flags, len(numbers), request) + struct.pack(f"<{len(numbers)}Q", *numbers)


def decode_numbers(frame: bytes, count: int) -> tuple[int, ...]:
    """Raises MalformedFrame."""
    if len(frame) != HEAD_NBYTES + count * _NUMBER.size:
        raise MalformedFrame(f"a frame of {count} numbers has {len(frame)} bytes")
    return struct.unpack_from(f"<{count}Q", frame, HEAD_NBYTES)


def encode_reserve(request: int, bucket: str, key: str, nbytes: int, *, first: bool = False) -> bytes:
    bucket_name, key_name = bucket.encode(), key.encode()
    head = _HEAD.pack(RESERVE, FIRST if first else 0, 1, request) + _RESERVE.pack(
        nbytes, len(bucket_name), len(key_name)
    )
    return head + bucket_name + key_name


def decode_reserve(frame: bytes) -> tuple[int, str, str]:
    """The length, the bucket and the key. Raises MalformedFrame."""
    nbytes, bucket_nbytes, key_nbytes = _unpack(_RESERVE, frame, HEAD_NBYTES)
    start = HEAD_NBYTES + _RESERVE.size
    names = start + bucket_nbytes
    if len(frame) != names + key_nbytes:
        raise MalformedFrame("a frame RESERVE of another length than it states")
    return nbytes, _text(frame[start:names]), _text(frame[names:])


def encode_empty(kind: int, request: int) -> bytes:
    """PING."""
    return _HEAD.pack(kind, 0, 0, request)


def encode_device(request: int, uuid: bytes) -> bytes:
    return _HEAD.pack(DEVICE, 0, 0, request) + uuid


def decode_device(frame: bytes) -> bytes:
    """The GPU's UUID. Raises MalformedFrame."""
    uuid = frame[HEAD_NBYTES:]
    if len(uuid) != UUID_NBYTES:
        raise MalformedFrame(f"a UUID has {UUID_NBYTES} bytes, got {len(uuid)}")
    return uuid


# --- gateway → engine -------------------------------------------------------------------------------------------------


def encode_hello(boot_id: bytes, nonce: bytes) -> bytes:
    return _HEAD.pack(HELLO, 0, 0, 0) + MAGIC + boot_id + nonce


def decode_hello(frame: bytes) -> tuple[bytes, bytes]:
    """The boot id and the nonce. Raises MalformedFrame."""
    body = frame[HEAD_NBYTES:]
    if head_of(frame)[0] != HELLO or not body.startswith(MAGIC):
        raise MalformedFrame("not the socket of a gateway, or of another version")
    if len(body) != len(MAGIC) + BOOT_ID_NBYTES + NONCE_NBYTES:
        raise MalformedFrame("a frame HELLO of another length")
    return body[len(MAGIC) : -NONCE_NBYTES], body[-NONCE_NBYTES:]


def encode_attached(request: int, lease_ms: int, grants: int, tenant: str) -> bytes:
    return _HEAD.pack(ATTACHED, 0, 0, request) + _ATTACHED.pack(lease_ms, grants) + tenant.encode()


def decode_attached(frame: bytes) -> tuple[int, int, str]:
    """How long a lease is, how many grants there can be, and the tenant. Raises MalformedFrame."""
    lease_ms, grants = _unpack(_ATTACHED, frame, HEAD_NBYTES)
    return lease_ms, grants, _text(frame[HEAD_NBYTES + _ATTACHED.size :])


def encode_segment(segment_id: int, nbytes: int, *, write: bool) -> bytes:
    return _HEAD.pack(SEGMENT, WRITE if write else 0, 0, 0) + _SEGMENT.pack(segment_id, nbytes)


def encode_device_segment(segment_id: int, nbytes: int, handle: bytes) -> bytes:
    return _HEAD.pack(SEGMENT, ON_DEVICE, 0, 0) + _SEGMENT.pack(segment_id, nbytes) + handle


def decode_device_segment(frame: bytes) -> tuple[int, int, bytes]:
    """The segment, its size and its CUDA IPC handle. Raises MalformedFrame."""
    return *decode_segment(frame), frame[HEAD_NBYTES + _SEGMENT.size :]


def decode_segment(frame: bytes) -> tuple[int, int]:
    """The segment and its size. Raises MalformedFrame."""
    segment_id, nbytes = _unpack(_SEGMENT, frame, HEAD_NBYTES)
    return segment_id, nbytes


def encode_grant(grant: Grant) -> bytes:
    """One grant, as GRANTS and RESERVED have it."""
    number, nbytes, extents, blocks, reason = grant
    if len(extents) == 1:
        return _GRANT.pack(number, nbytes, 1, reason) + _EXTENT.pack(*extents[0]) + blocks.tobytes()
    head = _GRANT.pack(number, nbytes, len(extents), reason)
    return b"".join([head, *[_EXTENT.pack(*extent) for extent in extents], blocks.tobytes()])


def encode_one_grant(request: int, grant: bytes) -> bytes:
    """A frame GRANTS of one grant, as `encode_grant` gives it."""
    return _HEAD.pack(GRANTS, 0, 1, request) + grant


def encode_grants(request: int, grants: Sequence[bytes], *, more: bool) -> bytes:
    return b"".join([_HEAD.pack(GRANTS, MORE if more else 0, len(grants), request), *grants])


def decode_grants(frame: bytes, count: int) -> list[Grant]:
    """Raises MalformedFrame."""
    if count == 1 and len(frame) >= _ONE.size:  # the common case, in one step
        *_, number, nbytes, extent_count, reason, segment_id, start, length = _ONE.unpack_from(frame)
        if extent_count == 1 and number and len(frame) == _ONE.size + -(-nbytes // BLOCK_NBYTES) * _NUMBER.size:
            return [Grant(number, nbytes, (Extent(segment_id, start, length),), array("Q", frame[_ONE.size :]), reason)]
    grants, offset = [], HEAD_NBYTES
    for _ in range(count):
        number, nbytes, extent_count, reason = _unpack(_GRANT, frame, offset)
        offset += _GRANT.size
        extents, offset = _extents(frame, offset, extent_count)
        blocks: array[int] = array("Q")
        if number:
            end = offset + -(-nbytes // BLOCK_NBYTES) * blocks.itemsize
            if end > len(frame):
                raise MalformedFrame("a grant without the digests of its blocks")
            blocks.frombytes(frame[offset:end])
            offset = end
        grants.append(Grant(number, nbytes, extents, blocks, reason))
    if offset != len(frame):
        raise MalformedFrame("a frame GRANTS of another length than it states")
    return grants


def encode_reserved(request: int, reservation: int, nbytes: int, extents: tuple[Extent, ...]) -> bytes:
    return _HEAD.pack(RESERVED, 0, 1, request) + encode_grant(Grant(reservation, nbytes, extents))


def decode_reserved(frame: bytes) -> tuple[int, int, tuple[Extent, ...]]:
    """The reservation, its length and where it lies. Raises MalformedFrame."""
    reservation, nbytes, extent_count, _ = _unpack(_GRANT, frame, HEAD_NBYTES)
    extents, offset = _extents(frame, HEAD_NBYTES + _GRANT.size, extent_count)
    if offset != len(frame):
        raise MalformedFrame("a frame RESERVED of another length than it states")
    return reservation, nbytes, extents


def encode_done(request: int, text: str) -> bytes:
    return _HEAD.pack(DONE, 0, 0, request) + text.encode()


def encode_error(request: int, status: int, code: str, message: str) -> bytes:
    name = code.encode()
    return _HEAD.pack(ERROR, 0, 0, request) + _ERROR.pack(status, len(name)) + name + message.encode()[:4096]


def decode_error(frame: bytes) -> tuple[int, str, str]:
    """Status, code and message. Raises MalformedFrame."""
    status, code_nbytes = _unpack(_ERROR, frame, HEAD_NBYTES)
    start = HEAD_NBYTES + _ERROR.size
    return (
        status,
        _text(frame[start : start + code_nbytes]),
        frame[start + code_nbytes :].decode(errors="replace"),
    )


def decode_text(frame: bytes) -> str:
    """What a frame DONE says. Raises MalformedFrame."""
    return _text(frame[HEAD_NBYTES:])


def _extents(frame: bytes, offset: int, count: int) -> tuple[tuple[Extent, ...], int]:
    end = offset + count * _EXTENT.size
    if count > _MAX_EXTENTS or end > len(frame):
        raise MalformedFrame(f"{count} extents in a frame of {len(frame)} bytes")
    return tuple(Extent._make(item) for item in _EXTENT.iter_unpack(frame[offset:end])), end


def _unpack(form: struct.Struct, frame: bytes, offset: int) -> tuple[int, ...]:
    if len(frame) < offset + form.size:
        raise MalformedFrame(f"a frame of {len(frame)} bytes ends too early")
    return form.unpack_from(frame, offset)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise MalformedFrame("a name in a frame is not UTF-8") from None
