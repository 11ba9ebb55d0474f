from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from kvgate.chunk.dtype import ITEMSIZE
from kvgate.chunk.safetensors import Header, TensorInfo, decode_header, encode_header
from kvgate.errors import InvalidChunk

TENSORS = {"k": TensorInfo("F32", (2, 3), 0, 24), "v": TensorInfo("U8", (5,), 24, 29)}
METADATA = {"format": "test", "note": "naïve \U0001f600"}
NBYTES = 4096 + 29
ENCODED = encode_header(TENSORS, METADATA)


def header_of(members: object, length: int = 4088) -> bytes:
    """A header with whatever JSON value, or with these very bytes for it."""
    text = members if isinstance(members, bytes) else json.dumps(members).encode()
    return struct.pack("<Q", length) + text.ljust(4088, b" ")


def tensor(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_header_round_trips() -> None:
    assert len(ENCODED) == 4096
    for prefix in (ENCODED, memoryview(ENCODED + bytes(29))):
        header = decode_header(prefix, NBYTES)
        assert (header.tensors, header.metadata) == (TENSORS, METADATA)
        assert (header.data_start, header.nbytes) == (4096, NBYTES)


@st.composite
def tilings(draw: st.DrawFn) -> dict[str, TensorInfo]:
    tensors, position = {}, 0
    names = draw(st.lists(st.text(max_size=8).filter(lambda name: name != "__metadata__"), max_size=6, unique=True))
    for name in names:
        dtype = draw(st.sampled_from(sorted(ITEMSIZE)))
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
        stop = position + int(np.prod(shape, dtype=int)) * ITEMSIZE[dtype]
        tensors[name] = TensorInfo(dtype, shape, position, stop)
        position = stop
    return tensors


@given(tensors=tilings(), metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4))
def test_any_tiling_round_trips_and_opens_in_the_safetensors_package(
    tensors: dict[str, TensorInfo], metadata: dict[str, str]
) -> None:
    encoded = encode_header(tensors, metadata)
    data_nbytes = max((info.stop for info in tensors.values()), default=0)
    header = decode_header(encoded, 4096 + data_nbytes)
    assert header.tensors == tensors
    assert header.metadata == metadata
    theirs = dict(safetensors.deserialize(encoded + bytes(data_nbytes)))
    assert {name: (entry["dtype"], tuple(entry["shape"]), len(entry["data"])) for name, entry in theirs.items()} == {
        name: (info.dtype, info.shape, info.stop - info.start) for name, info in tensors.items()
    }


def test_the_safetensors_package_reads_values_and_metadata_of_a_file(tmp_path: Path) -> None:
    k = np.arange(6, dtype="<f4").reshape(2, 3)
    v = np.arange(5, dtype=np.uint8)
    path = tmp_path / "chunk.safetensors"
    path.write_bytes(ENCODED + k.tobytes() + v.tobytes())
    loaded = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(loaded["k"], k)
    np.testing.assert_array_equal(loaded["v"], v)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == METADATA


def test_a_header_that_does_not_fit_is_not_made() -> None:
    fits = 4088 - len('{"__metadata__":{"a":""}}')
    assert decode_header(encode_header({}, {"a": "x" * fits}), 4096).metadata["a"] == "x" * fits
    with pytest.raises(InvalidChunk, match="4089 bytes of JSON"):
        encode_header({}, {"a": "x" * (fits + 1)})


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"__metadata__": TensorInfo("U8", (), 0, 1)}, {}),
        ({"k": TensorInfo("U8", (4,), 0, 3)}, {}),
        ({"k": TensorInfo("U8", (4,), 4, 8)}, {}),
        ({"k": TensorInfo("U8", (-4,), 0, -4)}, {}),
        ({"k": TensorInfo("Q4", (4,), 0, 4)}, {}),
        ({"\ud800": TensorInfo("U8", (4,), 0, 4)}, {}),
        ({}, {"a": "\ud800"}),
        ({}, {"a": 1}),
    ],
)
def test_a_header_that_could_not_be_read_back_is_not_made(
    tensors: dict[str, TensorInfo], metadata: dict[str, Any]
) -> None:
    with pytest.raises(InvalidChunk):
        encode_header(tensors, metadata)


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        (b"[]", "not a JSON object"),
        (b" {}", "not a JSON object"),
        (b"{}\n", "not a JSON object"),
        (b"{}\0", "not a JSON object"),
        (b"{} {}", "not JSON"),
        (b"{'a'}", "not JSON"),
        (b'{"\xff":1}', "not UTF-8"),
        (b'{"\\ud800":1}', "lone surrogate"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":1,"a":2}', "'a' appears twice"),
        (b'{"a":{"shape":[],"shape":[]}}', "'shape' appears twice"),
        pytest.param(b'{"a":' + b"[" * 4000 + b"}", "nested too deeply|not JSON", id="deep"),
        ({"a": 7}, "not an object of dtype"),
        ({"a": {**tensor(), "extra": 1}}, "not an object of dtype"),
        ({"a": tensor(dtype=7)}, "dtype is not a string"),
        ({"a": tensor(dtype="Q4")}, "unknown dtype 'Q4'"),
        ({"a": tensor(shape="4")}, "shape is not"),
        ({"a": tensor(shape=[-4])}, "shape is not"),
        ({"a": tensor(shape=[4.0])}, "shape is not"),
        ({"a": tensor(shape=[True])}, "shape is not"),
        ({"a": tensor(shape=[2**63])}, "shape is not"),
        ({"a": tensor(shape=[2**62, 4])}, "overflows"),
        ({"a": tensor(shape=[2**62, 4, 0], offsets=[0, 0])}, "overflows"),
        ({"a": tensor(offsets=[0])}, "data_offsets are not"),
        ({"a": tensor(offsets=[0, 4, 4])}, "data_offsets are not"),
        ({"a": tensor(offsets=[-4, 0])}, "data_offsets are not"),
        ({"a": tensor(offsets=[0, 4.0])}, "data_offsets are not"),
        ({"a": tensor(offsets=[0, 5])}, "needs 4 bytes, its offsets span 5"),
        ({"a": tensor(offsets=[4, 0])}, "needs 4 bytes, its offsets span -4"),
        ({"a": tensor(offsets=[1, 5])}, "leaves a hole"),
        ({"a": tensor(), "b": tensor(offsets=[2, 6])}, "overlaps"),
        ({"a": tensor(), "b": tensor()}, "overlaps"),
        ({"a": tensor(), "b": tensor(offsets=[5, 9])}, "leaves a hole"),
        ({}, "end at byte 0 of 4"),
        ({"a": tensor(), "b": tensor(offsets=[4, 8])}, "end at byte 8 of 4"),
        ({"a": tensor(), "__metadata__": None}, "__metadata__ is not an object"),
        ({"a": tensor(), "__metadata__": {"n": 7}}, "entry 'n' is not a string"),
        ({"a": tensor(), "__metadata__": {"n": {}}}, "entry 'n' is not a string"),
    ],
)
def test_a_header_that_lies_is_refused(members: object, cause: str) -> None:
    with pytest.raises(InvalidChunk, match=cause):
        decode_header(header_of(members), 4100)


@pytest.mark.parametrize(
    ("prefix", "nbytes", "cause"),
    [
        (b"", 0, "shorter than its header"),
        (ENCODED[:4095], 4095, "shorter than its header"),
        (ENCODED[:4095], NBYTES, "cut off after 4095"),
        (header_of({}, 4089), 4096, "claims 4089 bytes in a file of 4096"),
        (header_of({}, 2**64 - 1), 4096, "claims 18446744073709551615 bytes"),
        (header_of({}, 4080), 4096, "begin at byte 4088"),
        (header_of({}, 0), 4096, "begin at byte 8"),
        (header_of({}, 4096), 9999, "begin at byte 4104"),
        (ENCODED, NBYTES - 1, "end at byte 29 of 28"),
        (ENCODED, NBYTES + 1, "end at byte 29 of 30"),
    ],
)
def test_a_file_of_another_length_or_data_start_is_refused(prefix: bytes, nbytes: int, cause: str) -> None:
    with pytest.raises(InvalidChunk, match=cause):
        decode_header(prefix, nbytes)


def check_consistent(prefix: bytes, nbytes: int) -> None:
    """Either refused, or a header that its own encoding reproduces and that the safetensors package agrees with."""
    try:
        header = decode_header(prefix, nbytes)
    except InvalidChunk:
        return
    assert isinstance(header, Header)
    assert decode_header(encode_header(header.tensors, header.metadata), nbytes) == header
    safetensors.deserialize(prefix[:4096] + bytes(nbytes - 4096))


@given(
    edits=st.lists(st.tuples(st.integers(0, 250), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4),
    nbytes=st.sampled_from([NBYTES, NBYTES - 1, NBYTES + 1, 4096]),
)
def test_a_mutated_header_is_consistent_or_refused(edits: list[tuple[int, bytes]], nbytes: int) -> None:
    mutated = bytearray(ENCODED)
    for position, patch in edits:
        mutated[position : position + len(patch)] = patch
    check_consistent(bytes(mutated[:4096]), nbytes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["U8", "F16"]),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(max_size=4), children, max_size=3)
        | st.fixed_dictionaries({"dtype": children, "shape": children, "data_offsets": children})
    ),
    max_leaves=12,
)


@given(members=st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), json_values, max_size=3))
@example(members={"a": tensor()})
def test_any_json_is_consistent_or_refused(members: dict[str, Any]) -> None:
    check_consistent(header_of(members)[:4096], 4100)


@given(prefix=st.binary(max_size=64), nbytes=st.integers(0, 10_000))
def test_any_bytes_are_refused(prefix: bytes, nbytes: int) -> None:
    with pytest.raises(InvalidChunk):
        decode_header(prefix.ljust(4096, b"\0"), nbytes)
    with pytest.raises(InvalidChunk):
        decode_header(prefix, nbytes)
