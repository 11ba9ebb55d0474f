"""Every codec of chunks that is installed, by the contract; and what holds for all of them together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvgate import plugins
from kvgate.chunk.form import LOSSY_GROUP
from kvgate.chunk.header import ChunkHeader, check_chunk
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.safetensors import TensorInfo, decode_header, encode_header
from kvgate.codec.chunk_body import decode_body, decode_in_place, decode_slice, encode_body, max_body_nbytes
from kvgate.codec.installed import installed_names
from kvgate.codec.lossy import lossy_codec
from kvgate.errors import InvalidChunk, InvalidManifest, LayoutError
from tests.chunks import SPACE, chunk_hash
from tests.contracts.chunk_codec import (
    ChunkCodecContract,
    LossyCodecContract,
    as_kv,
    each_dtype,
    each_layout,
    numbers,
)


class TestRaw(ChunkCodecContract):
    name = "raw"
    lossless = True

    @each_layout
    @each_dtype
    def test_it_is_decoded_where_it_lies(self, shape: str, dtype: str) -> None:
        space = self.space(shape, dtype)
        kv = as_kv(numbers(space.layout), dtype)
        body = self.body(space, kv)
        buffer = memoryview(bytearray(b"\xee" * max_body_nbytes(space)))
        buffer[: len(body)] = body
        decode_in_place(space, buffer, len(body))
        assert buffer[DATA_START:] == kv

    @each_layout
    def test_any_layers_and_heads_are_those_of_the_kv(self, shape: str) -> None:
        space = self.space(shape)
        layout = space.layout
        kv = as_kv(numbers(layout), "BF16")
        body = self.body(space, kv)
        whole = np.frombuffer(kv, np.uint16).reshape(layout.shape)
        for layers in {range(layout.layers), range(1), range(layout.layers - 1, layout.layers)}:
            for heads in {range(layout.kv_heads), range(1), range(layout.kv_heads // 2, layout.kv_heads)}:
                expected = whole[layers.start : layers.stop, :, heads.start : heads.stop].tobytes()
                data = bytearray(b"\xee" * len(expected))
                decode_slice(space, body, data, layers, heads)
                assert data == expected
                with pytest.raises(LayoutError):
                    decode_slice(space, body, data + b"x", layers, heads)

    def test_what_is_broken_is_the_same_error_however_it_is_decoded(self) -> None:
        space = self.space()
        layout, body = space.layout, self.body(space, as_kv(numbers(space.layout), "BF16"))
        generator = np.random.default_rng(3)
        for at in {DATA_START, DATA_START + 7, *generator.integers(0, len(body), 40)}:
            broken = bytearray(body)
            broken[at] ^= 1 << int(generator.integers(0, 8))
            buffer = memoryview(bytearray(max_body_nbytes(space)))
            buffer[: len(body)] = broken
            data = bytearray(layout.nbytes)
            try:
                expected = self.decoded(space, bytes(broken))
            except InvalidChunk:
                with pytest.raises(InvalidChunk):
                    decode_in_place(space, buffer, len(body))
                with pytest.raises(InvalidChunk):
                    decode_slice(space, broken, data, range(layout.layers), range(layout.kv_heads))
                continue
            decode_in_place(space, buffer, len(body))
            decode_slice(space, broken, data, range(layout.layers), range(layout.kv_heads))
            assert buffer[DATA_START:] == data == expected


class TestLZ4(TestRaw):
    name = "lz4"


class TestLZ4Split(TestRaw):
    name = "lz4-split"


class TestZstd(TestRaw):
    name = "zstd"


class TestZstdSplit(TestRaw):
    name = "zstd-split"


def of_tokens(kv: np.ndarray, group: int) -> np.ndarray:
    """The largest magnitude of every `group` channels of a token."""
    starts = range(0, kv.shape[-1], group)
    return np.repeat(np.maximum.reduceat(np.abs(kv), starts, -1), group, -1)[..., : kv.shape[-1]]


class TestInt8(LossyCodecContract):
    name = "int8"

    def bound(self, kv: np.ndarray) -> np.ndarray:
        return of_tokens(kv, 128) / 127 * (1 + 2**-7) / 2


class TestFp8(LossyCodecContract):
    name = "fp8"

    def bound(self, kv: np.ndarray) -> np.ndarray:
        return np.abs(kv) / 16 + of_tokens(kv, 128) / 448 * (1 + 2**-7) * 2**-10


class OfValues(LossyCodecContract):
    """Keys come back as they are."""

    refuses = frozenset({"MLA"})


class TestK16V8(OfValues):
    name = "k16v8"

    def bound(self, kv: np.ndarray) -> np.ndarray:
        return TestInt8().bound(kv) * np.array([0, 1], np.float32).reshape(2, 1, 1, 1)


class TestK16V8Fp8(OfValues):
    name = "k16v8-fp8"

    def bound(self, kv: np.ndarray) -> np.ndarray:
        return TestFp8().bound(kv) * np.array([0, 1], np.float32).reshape(2, 1, 1, 1)


class TestInt4(LossyCodecContract):
    name = "int4"

    def bound(self, kv: np.ndarray) -> np.ndarray:
        def step(kv: np.ndarray, axis: int) -> np.ndarray:
            starts = range(0, kv.shape[axis], 64)
            low, high = np.minimum.reduceat(kv, starts, axis), np.maximum.reduceat(kv, starts, axis)
            # The low is rounded down by at most 2**-7 of itself, and the scale up.
            steps = (high - low + np.abs(low) * 2**-7) / 15 * (1 + 2**-7)
            return np.repeat(steps, 64, axis).take(range(kv.shape[axis]), axis) / 2

        if kv.shape[1] == 1:
            return step(kv, -1)
        return np.stack([step(kv[:, 0], -2), step(kv[:, 1], -1)], 1)


def test_every_installed_codec_is_tested_here() -> None:
    tested = {TestLZ4, TestLZ4Split, TestZstd, TestZstdSplit, TestInt8, TestFp8, TestK16V8, TestK16V8Fp8, TestInt4}
    lossy = plugins.names(LOSSY_GROUP)
    assert {each.name for each in tested} == {*installed_names(), *lossy}
    assert [lossy_codec(name).name for name in lossy] == lossy


SMALL = replace(SPACE, dtype="BF16")
KV = as_kv(numbers(SMALL.layout), "BF16")


def body_of(lossless: str = "zstd-split", kv: bytes = KV) -> bytes:
    return b"".join(encode_body(SMALL, chunk_hash(0), bytes(32), 0, kv, lossless=lossless))


def test_what_a_lossless_codec_does_not_make_smaller_is_raw() -> None:
    noise = np.random.default_rng(0).integers(0, 256, SMALL.layout.nbytes, np.uint8).tobytes()
    body = body_of("lz4", noise)
    assert ChunkHeader.from_metadata(decode_header(body, len(body)).metadata).codec == "raw"
    assert body[DATA_START:] == noise


def test_a_layer_that_does_not_shrink_lies_among_the_others_as_it_is() -> None:
    layer_nbytes = SMALL.layout.nbytes // 2
    kv = np.random.default_rng(0).integers(0, 256, layer_nbytes, np.uint8).tobytes() + bytes(layer_nbytes)
    body, out = body_of("lz4", kv), bytearray(len(kv))
    assert kv[:layer_nbytes] in body
    decode_body(SMALL, body, out)
    assert out == kv


def test_blocks_of_no_layer_are_refused() -> None:
    body = body_of()
    sizes = np.frombuffer(body[DATA_START : DATA_START + 16], "<u8")
    for wrong in (
        [sizes[0] + 1, sizes[1]],
        [sizes[0] + 1, sizes[1] - 1],
        [2**64 - 1, 1 + sizes.sum()],
        [0, sizes.sum()],
    ):
        broken = body[:DATA_START] + np.array(wrong, "<u8").tobytes() + body[DATA_START + 16 :]
        with pytest.raises(InvalidChunk):
            decode_body(SMALL, broken, bytearray(SMALL.layout.nbytes))


def test_a_block_longer_than_its_layer_is_refused_before_it_is_written_over() -> None:
    layer_nbytes = SMALL.layout.nbytes // 2
    for first in (layer_nbytes + 1, layer_nbytes - 40):
        sizes = [first, 1]
        blocks = TensorInfo("U8", (sum(sizes),), 16, 16 + sum(sizes))
        tensors = {"kv_nbytes": TensorInfo("U64", (2,), 0, 16), "kv": blocks}
        header = ChunkHeader(SMALL.id, chunk_hash(0).hex(), "0" * 64, 0, SMALL.chunk_tokens, "lz4")
        body = encode_header(tensors, header.metadata()) + np.array(sizes, "<u8").tobytes() + bytes(sum(sizes))
        buffer = memoryview(bytearray(max_body_nbytes(SMALL)))
        buffer[: len(body)] = body
        with pytest.raises(InvalidChunk):
            decode_in_place(SMALL, buffer, len(body))


@pytest.mark.parametrize(
    "tensors",
    [
        {"kv_nbytes": TensorInfo("U64", (2,), 0, 16)},
        {"kv_nbytes": TensorInfo("U64", (1,), 0, 8), "kv": TensorInfo("U8", (92,), 8, 100)},
        {"kv": TensorInfo("U8", (84,), 0, 84), "kv_nbytes": TensorInfo("U64", (2,), 84, 100)},
        {"kv_nbytes": TensorInfo("U64", (2,), 0, 16), "kv": TensorInfo("I8", (84,), 16, 100)},
        {"kv_nbytes": TensorInfo("U64", (2,), 0, 16), "kv": TensorInfo("U8", (2, 42), 16, 100)},
        {"kv_nbytes": TensorInfo("U64", (2,), 0, 16), "kv": TensorInfo("U8", (4096,), 16, 4112)},
    ],
)
def test_other_tensors_are_no_blocks(tensors: dict[str, TensorInfo]) -> None:
    header = ChunkHeader(SMALL.id, chunk_hash(0).hex(), "0" * 64, 0, SMALL.chunk_tokens, "lz4")
    data = bytes(max(info.stop for info in tensors.values()))
    body = encode_header(tensors, header.metadata()) + data
    key = ChunkKey(SMALL.id, chunk_hash(0).hex())
    for refuse in (lambda: check_chunk(body, len(body), key, SMALL), lambda: decode_body(SMALL, body, bytearray(2048))):
        with pytest.raises(InvalidChunk):
            refuse()


def test_a_lossy_space_takes_its_own_codec_only() -> None:
    int8 = Space8()
    body = b"".join(encode_body(int8, chunk_hash(0), bytes(32), 0, KV))
    with pytest.raises(InvalidChunk, match="int8"):
        decode_body(SMALL, body, bytearray(SMALL.layout.nbytes))
    with pytest.raises(InvalidChunk, match="zstd-split"):
        decode_body(int8, body_of(), bytearray(SMALL.layout.nbytes))


def Space8(**changes):
    return replace(SMALL, layout_version=2, codec="int8", **changes)


def test_a_codec_that_nobody_has_names_no_space() -> None:
    with pytest.raises(InvalidManifest, match=r"codec.*int8.*k16v8"):
        replace(SMALL, layout_version=2, codec="int3")
    with pytest.raises(InvalidManifest, match=r"codec.*packed"):
        Space8(packing="cpu-avx512")
    with pytest.raises(InvalidManifest, match=r"codec.*layout_version 2"):
        replace(SMALL, codec="int8")
    assert Space8().id != SMALL.id
