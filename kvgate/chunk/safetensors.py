"""The header of a safetensors file, written and read with bounds. https://github.com/huggingface/safetensors#format

A file is an 8-byte little-endian length, that many bytes of JSON, and the tensors' data. kvgate narrows the format in
one point: the header is always 4,096 bytes, padded with spaces, so that the data begin on a page. Any safetensors
reader opens such a file; `decode_header` refuses any other.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kvgate import strict_json
from kvgate.chunk.dtype import ITEMSIZE
from kvgate.chunk.layout import DATA_START
from kvgate.errors import InvalidChunk

_LENGTH = struct.Struct("<Q")
_JSON_NBYTES = DATA_START - _LENGTH.size
_METADATA = "__metadata__"
_MAX_EXTENT = 2**63 - 1  # what a reader in another language can count to


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's dtype and shape, and its bytes start … stop - 1, counted from the first byte of data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: the tensors tile the data from 0 to its end, without overlap or hole.

    data_start: offset of the first byte of data in the file
    nbytes:     length of the whole file
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    nbytes: int


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The 4,096 bytes that go before the tensors' data.

    Raises InvalidChunk when they do not fit, or when the tensors do not tile their data.
    """
    _check_metadata(metadata)
    if _METADATA in tensors:
        raise InvalidChunk(f"a tensor cannot be named {_METADATA}")
    _check_tiling(tensors, max((info.stop for info in tensors.values()), default=0))
    members: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop, item[0])):
        members[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": (info.start, info.stop)}
    try:
        text = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidChunk("a name or metadata value holds a lone surrogate") from None
    if len(text) > _JSON_NBYTES:
        raise InvalidChunk(f"the header is {len(text)} bytes of JSON; {_JSON_NBYTES} fit before the data")
    return _LENGTH.pack(_JSON_NBYTES) + text.ljust(_JSON_NBYTES, b" ")


def decode_header(prefix: bytes | memoryview, nbytes: int) -> Header:
    """The header of a file of `nbytes` bytes in all.

    prefix: the file's first 4,096 bytes or more, as bytes or a view of bytes; the whole of a smaller file
    Raises InvalidChunk, and nothing else, naming the cause. Nothing in the prefix is believed unchecked.
    """
    members = _members(prefix, nbytes)
    metadata = _check_metadata(members.pop(_METADATA, {}))
    tensors = {name: _tensor_info(name, value) for name, value in members.items()}
    _check_tiling(tensors, nbytes - DATA_START)
    return Header(MappingProxyType(tensors), MappingProxyType(metadata), DATA_START, nbytes)


def _members(prefix: bytes | memoryview, nbytes: int) -> dict[str, Any]:
    if nbytes < DATA_START:
        raise InvalidChunk(f"a file of {nbytes} bytes is shorter than its header of {DATA_START}")
    if len(prefix) < DATA_START:
        raise InvalidChunk(f"the header is cut off after {len(prefix)} of {DATA_START} bytes")
    head = bytes(prefix[:DATA_START])
    (length,) = _LENGTH.unpack_from(head)
    if length > nbytes - _LENGTH.size:
        raise InvalidChunk(f"the header claims {length} bytes in a file of {nbytes}")
    if length != _JSON_NBYTES:
        raise InvalidChunk(f"the data begin at byte {length + _LENGTH.size}, not at {DATA_START}")
    text = head[_LENGTH.size :].rstrip(b" ")
    if not (text.startswith(b"{") and text.endswith(b"}")):
        raise InvalidChunk("the header is not a JSON object padded with spaces")
    try:
        members = strict_json.loads(text)
    except strict_json.JSONRefused as error:
        raise InvalidChunk(f"the header is {error}" if not error.name else f"header: {error}") from None
    assert isinstance(members, dict)  # it begins with a brace
    return members


def file_nbytes(prefix: bytes | memoryview) -> int:
    """Where a file ends that lies at the beginning of `prefix`, by its own account.

    Raises InvalidChunk where that is no header; whether so much is there is for the caller.
    """
    members = _members(prefix, len(prefix))
    members.pop(_METADATA, None)
    return DATA_START + max((_tensor_info(name, value).stop for name, value in members.items()), default=0)


def _check_metadata(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise InvalidChunk(f"{_METADATA} is not an object")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise InvalidChunk(f"{_METADATA} entry {str(name)[:64]!r} is not a string")
    return dict(value)


def _tensor_info(name: str, value: object) -> TensorInfo:
    where = f"tensor {name[:64]!r}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidChunk(f"{where} is not an object of dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str):
        raise InvalidChunk(f"{where}: dtype is not a string")
    if not _are_extents(shape):
        raise InvalidChunk(f"{where}: shape is not a list of integers from 0 to 2**63 - 1")
    if not _are_extents(offsets) or len(offsets) != 2:
        raise InvalidChunk(f"{where}: data_offsets are not two integers from 0 to 2**63 - 1")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _are_extents(value: object) -> bool:
    return isinstance(value, list | tuple) and all(type(item) is int and 0 <= item <= _MAX_EXTENT for item in value)


def _check_tiling(tensors: Mapping[str, TensorInfo], data_nbytes: int) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        where = f"tensor {name[:64]!r}"
        if info.dtype not in ITEMSIZE:
            raise InvalidChunk(f"{where}: unknown dtype {info.dtype[:64]!r}; known: {', '.join(ITEMSIZE)}")
        if not _are_extents(info.shape):
            raise InvalidChunk(f"{where}: shape is not a list of integers from 0 to 2**63 - 1")
        if math.prod(extent or 1 for extent in info.shape) * ITEMSIZE[info.dtype] > _MAX_EXTENT:
            raise InvalidChunk(f"{where}: its shape overflows 63 bits")
        nbytes = math.prod(info.shape) * ITEMSIZE[info.dtype]
        if info.stop - info.start != nbytes:
            raise InvalidChunk(f"{where}: its shape needs {nbytes} bytes, its offsets span {info.stop - info.start}")
        if info.start != position:
            fault = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise InvalidChunk(f"{where} {fault}: it begins at {info.start}, expected {position}")
        position = info.stop
    if position != data_nbytes:
        raise InvalidChunk(f"the tensors end at byte {position} of {data_nbytes} bytes of data")
