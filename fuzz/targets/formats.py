"""What is inside of objects: safetensors headers, chunk headers, space manifests, and JSON itself.

An input's first byte chooses one of `CHECKS`, and the others are the body. Every header that is taken is opened by the
safetensors library too.
"""

from __future__ import annotations

import json
import struct

import safetensors

from fuzz.draw import Draw
from fuzz.properties import must, refusals
from fuzz.targets.base import Target
from kvgate import strict_json
from kvgate.chunk.header import ChunkHeader, check_chunk
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.safetensors import decode_header, encode_header
from kvgate.chunk.space import Space
from kvgate.errors import InvalidChunk, InvalidManifest

SPACE = Space(
    model="m",
    weights="w",
    tokenizer="2" * 64,
    dtype="F16",
    layers=2,
    kv_heads=2,
    head_dim=8,
    attention="gqa",
    rope={"rope_theta": 10000.0, "scaling": {"a": [1, None, True]}},
    lora="none",
    multimodal="none",
    chunk_tokens=16,
    hash_scheme="kvgate-sha256-chain-v1",
    layout_version=1,
)
_PACKED = Space(**(SPACE.manifest() | {"layout_version": 2, "packing": "amx-32", "layer_set": "0,2"}))
_KEY = ChunkKey(SPACE.id, "ab" * 32)
_GOOD = ChunkHeader.encode(SPACE, bytes.fromhex(_KEY.hash), bytes(32), 16)
_JSON = _GOOD[8:].rstrip()


def _header_json(body: bytes) -> None:
    """The body is the JSON of a header, which is framed as it should be; two bytes say how much data follow."""
    length, text = int.from_bytes(body[:2], "little"), body[2:]
    if len(text) <= DATA_START - 8:
        _header(struct.pack("<Q", DATA_START - 8) + text.ljust(DATA_START - 8), DATA_START + length)


def _header_bytes(body: bytes) -> None:
    """The body is a file from its first byte on."""
    length, prefix = int.from_bytes(body[:2], "little"), body[2:]
    _header(prefix, DATA_START + length)
    _header(_GOOD[: len(_GOOD) - len(prefix)] + prefix, DATA_START + length)


def _header(prefix: bytes, nbytes: int) -> None:
    try:
        header = decode_header(prefix, nbytes)
    except InvalidChunk:
        return
    again = encode_header(header.tensors, header.metadata)
    must(decode_header(again, nbytes) == header, "a header that does not come back")
    file = prefix[:DATA_START] + bytes(nbytes - DATA_START)
    opened = dict(safetensors.deserialize(file))  # type: ignore[no-untyped-call]
    shapes = {name: tuple(tensor["shape"]) for name, tensor in opened.items()}
    must(shapes == {name: info.shape for name, info in header.tensors.items()}, "safetensors sees other tensors")
    try:
        found = check_chunk(prefix, nbytes, _KEY, SPACE)
    except InvalidChunk:
        return
    must((found.space, found.hash) == (_KEY.space, _KEY.hash), "a chunk of another key")
    whole_nbytes = DATA_START + SPACE.layout.nbytes
    must(nbytes == whole_nbytes if found.codec == "raw" else nbytes < whole_nbytes, "a chunk of another length")


def _manifest(body: bytes) -> None:
    try:
        space = Space.from_json(body)
    except InvalidManifest:
        return
    must(Space.from_canonical_json(space.canonical_json()) == space, "a manifest that does not come back")
    must(Space.from_manifest(space.manifest()) == space, "a manifest that does not come back from its fields")
    must(not space.difference(space), "a space that differs from itself")
    for other in (SPACE, _PACKED):
        must(bool(space.difference(other)) == (space != other), "spaces that differ in no field")


def _field(body: bytes) -> None:
    """A good manifest with one field replaced by any JSON."""
    draw = Draw(body)
    manifest = draw.pick((SPACE, _PACKED)).manifest()
    name = draw.pick(tuple(manifest))
    try:
        manifest[name] = json.loads(draw.rest())
    except (ValueError, RecursionError):
        return
    try:
        text = json.dumps(manifest).encode()
    except RecursionError:
        return
    _manifest(text)


def _json(body: bytes) -> None:
    try:
        value = strict_json.loads(body)
    except strict_json.JSONRefused:
        return
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    must(strict_json.loads(text) == value, "a JSON value that does not come back")
    must(json.loads(body) == value, "a JSON value that others read differently")


CHECKS = (_header_json, _header_bytes, _manifest, _field, _json)


def check(data: bytes) -> None:
    if data:
        with refusals():
            CHECKS[data[0] % len(CHECKS)](data[1:])


_SEEDS = (
    SPACE.layout.nbytes.to_bytes(2, "little") + _JSON,
    bytes(2) + _GOOD[:16],
    SPACE.canonical_json(),
    b'\x00\x0a{"a": [1, 2.5, "x", {}], "b": {"c": null}}',
    rb'{"a": [1, -2.5e3, true, false, null, "\u00e9\ud83d\ude00"], "": {}}',
)
_SEEDS_V2 = (b"\x02" + _PACKED.canonical_json(), b'\x03\x01\x0f"1,3"')
_WORDS = (
    *(b'"__metadata__"', b'"dtype"', b'"shape"', b'"data_offsets"', b'"kv"', b'"F16"', b'"format"', b'"codec"'),
    *(b'"rope"', b"[", b"]", b"{", b"}", b",", b":", b'"', b"null", b"NaN", b"-Infinity", b"1e999", b"1E400", b"-0"),
    *(b"-0.0", b"1.0", b"9223372036854775807", b"9223372036854775808", b"9007199254740993", b"9" * 400, b"9" * 5000),
    *(b"[" * 2000, rb"\ud800", rb"\u0000", b"\xff", b"\x00", b" ", b'{"a":1,"a":2}', b"1e16", b"5e-324"),
    *(b'{"a":' * 200, b"[]", b"0", b'"packing"', b'"layer_set"', b'"layout_version":2', b'"0-4,6"', b'"all"'),
    *(b'"raw"', b'"int8"'),
)

TARGETS = (
    Target(
        *("formats", 100_000, check),
        (*(bytes([first]) + body for first, body in enumerate(_SEEDS)), *_SEEDS_V2),
        _WORDS,
    ),
)
