"""Chunk objects in every codec, damaged: KV, or a refusal, and never more than there is room for.

An input's first byte chooses a codec, the next two a place in a good body, the next two how much of its end is cut off,
and what follows lies at that place instead; what does not fit there makes the body longer.
"""

from __future__ import annotations

from dataclasses import replace

from fuzz.properties import must
from fuzz.targets.base import Target
from fuzz.targets.formats import SPACE
from kvgate.chunk.form import LOSSY_GROUP, RAW
from kvgate.chunk.header import check_chunk
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.safetensors import file_nbytes
from kvgate.chunk.space import Space
from kvgate.codec.chunk_body import decode_body, encode_body
from kvgate.codec.installed import installed_names
from kvgate.errors import InvalidChunk
from kvgate.plugins import names

_HASH = bytes.fromhex("ab" * 32)
_KV = bytes(range(64)) * (SPACE.layout.nbytes // 64)


def _body(space: Space, lossless: str = RAW) -> tuple[Space, bytes]:
    return space, b"".join(encode_body(space, _HASH, bytes(32), 16, _KV, lossless=lossless))


_GOOD = [
    *(_body(SPACE, lossless) for lossless in (RAW, *installed_names())),
    *(_body(replace(SPACE, layout_version=2, codec=codec)) for codec in names(LOSSY_GROUP)),
]


def check(data: bytes) -> None:
    if len(data) < 5:
        return
    space, good = _GOOD[data[0] % len(_GOOD)]
    at = int.from_bytes(data[1:3], "little") % (len(good) + 1)
    cut_nbytes = int.from_bytes(data[3:5], "little")
    damage = data[5:]
    body = good[:at] + damage + good[at + len(damage) :]
    body = body[: len(body) - cut_nbytes] if cut_nbytes < len(body) else body
    key = ChunkKey(space.id, _HASH.hex())
    try:
        check_chunk(body, len(body), key, space)
        taken = True
    except InvalidChunk:
        taken = False
    kv = bytearray(space.layout.nbytes + 64)
    try:
        decode_body(space, body, memoryview(kv)[: space.layout.nbytes])
    except InvalidChunk:
        return
    finally:
        must(not any(kv[space.layout.nbytes :]), "bytes beyond the buffer")
    must(file_nbytes(body) == len(body), "a chunk of another length than it says")
    must(taken or body[:DATA_START] != good[:DATA_START], "KV of a chunk that no gateway takes")


TARGETS = (
    Target(
        *("chunk_bodies", 40_000, check),
        tuple(
            bytes([index]) + at.to_bytes(2, "little") + bytes(2) + good[at : at + 8]
            for index, (_, good) in enumerate(_GOOD)
            for at in (9, DATA_START, DATA_START + 16)
        ),
        (b"\xff" * 8, b"\x80\x7f", b"\xc0\x7f", b'"I8"', b'"U8"', b'"codec":"', b"zstd", b"lz4"),
    ),
)
