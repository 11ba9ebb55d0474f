"""The contract of a codec of chunks, lossless or lossy: every one passes it.

A subclass says its name and how far a number may be off after the way there and back.
"""

from __future__ import annotations

import tracemalloc
from typing import ClassVar

import numpy as np
import pytest
from safetensors import deserialize

from kvgate.chunk.dtype import ITEMSIZE
from kvgate.chunk.header import check_chunk
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.layout import DATA_START, Layout
from kvgate.chunk.safetensors import decode_header
from kvgate.chunk.space import Space
from kvgate.codec.chunk_body import decode_body, decode_kv, encode_body, encode_kv, max_body_nbytes
from kvgate.errors import InvalidChunk, InvalidManifest, LayoutError, NotFinite
from kvgate.kernels.quantise import ARRAY_DTYPES, narrow, widen
from tests.chunks import SPACE, chunk_hash

LAYOUTS = {
    "MHA": {"attention": "mha", "layers": 2, "kv_heads": 4, "head_dim": 64, "chunk_tokens": 128},
    "GQA": {"attention": "gqa", "layers": 3, "kv_heads": 2, "head_dim": 128, "chunk_tokens": 32},
    "MQA": {"attention": "mqa", "layers": 1, "kv_heads": 1, "head_dim": 256, "chunk_tokens": 16},
    "MLA": {"attention": "mla", "layers": 2, "kv_heads": 1, "head_dim": 576, "chunk_tokens": 16},
    "odd": {"attention": "gqa", "layers": 3, "kv_heads": 3, "head_dim": 7, "chunk_tokens": 77},
    "one": {"attention": "mha", "layers": 1, "kv_heads": 1, "head_dim": 1, "chunk_tokens": 1},
}
DTYPES = ("F32", "BF16", "F16")

each_layout = pytest.mark.parametrize("shape", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def numbers(layout: Layout, seed: int = 0) -> np.ndarray:
    """KV such as a model makes, as float32: channels that stand out, tokens of zeros, and some very small."""
    generator = np.random.default_rng(seed)
    kv = generator.standard_normal(layout.shape).astype(np.float32)
    kv *= np.exp(generator.standard_normal((*layout.shape[:3], 1, layout.head_dim))).astype(np.float32)
    kv[:, :, :, 1::5] *= np.float32(1e-4)
    kv[:, :, :, 2::7] = 0
    return kv


def as_kv(kv: np.ndarray, dtype: str) -> bytes:
    out = np.empty(kv.shape, ARRAY_DTYPES[dtype])
    narrow(kv.copy(), dtype, out)
    return out.tobytes()


def as_numbers(kv: bytes | bytearray, layout: Layout) -> np.ndarray:
    return widen(np.frombuffer(kv, ARRAY_DTYPES[layout.dtype]).reshape(layout.shape), layout.dtype)


class ChunkCodecContract:
    name: ClassVar[str]
    lossless: ClassVar[bool] = False
    refuses: ClassVar[frozenset[str]] = frozenset()
    """Names of layouts that it does not keep."""

    def bound(self, kv: np.ndarray) -> np.ndarray:
        """How far each number may be off, before it is rounded to its dtype; broadcasts over `kv`."""
        return np.zeros(1, np.float32)

    def space(self, shape: str = "GQA", dtype: str = "BF16") -> Space:
        version = {} if self.lossless else {"layout_version": 2, "packing": "none", "layer_set": "all"}
        codec = {} if self.lossless else {"codec": self.name}
        return Space.from_manifest(SPACE.manifest() | LAYOUTS[shape] | version | codec | {"dtype": dtype})

    def accepted(self, shape: str, dtype: str = "BF16") -> Space:
        if shape in self.refuses:
            pytest.skip("its space is refused: see another test")
        return self.space(shape, dtype)

    def body(self, space: Space, kv: bytes) -> bytes:
        lossless = self.name if self.lossless else "raw"
        return b"".join(encode_body(space, chunk_hash(0), bytes(32), 0, kv, lossless=lossless))

    def decoded(self, space: Space, body: bytes) -> bytearray:
        out = bytearray(b"\xee" * space.layout.nbytes)
        decode_body(space, body, out)
        return out

    @each_layout
    @each_dtype
    def test_what_comes_back_is_within_the_bound(self, shape: str, dtype: str) -> None:
        space = self.accepted(shape, dtype)
        kv = as_kv(numbers(space.layout), dtype)
        got = self.decoded(space, self.body(space, kv))
        if self.lossless:
            assert got == kv
            return
        before, after = as_numbers(kv, space.layout), as_numbers(got, space.layout)
        rounding = {"F32": 2e-7, "BF16": 2**-8, "F16": 2**-11}[dtype]
        assert (np.abs(after - before) <= self.bound(before) * (1 + 1e-6) + np.abs(before) * rounding * 2 + 1e-7).all()
        assert np.isfinite(after).all()

    @each_layout
    def test_a_gateway_takes_it_and_any_reader_opens_it(self, shape: str) -> None:
        space = self.accepted(shape)
        body = self.body(space, as_kv(numbers(space.layout), "BF16"))
        header = check_chunk(body, len(body), ChunkKey(space.id, chunk_hash(0).hex()), space)
        assert header.codec in (self.name, "raw") if self.lossless else header.codec == self.name
        assert len(body) <= max_body_nbytes(space)
        found = decode_header(body, len(body)).tensors
        assert {name for name, _ in deserialize(body)} == found.keys()
        assert all((DATA_START + info.start) % ITEMSIZE[info.dtype] == 0 for info in found.values())

    def test_same_kv_is_the_same_bytes_and_decoding_leaves_them(self) -> None:
        space = self.space()
        kv = as_kv(numbers(space.layout), "BF16")
        body = self.body(space, kv)
        kept = bytes(body)
        assert self.decoded(space, body) == self.decoded(space, memoryview(body))
        assert body == kept == self.body(space, bytearray(kv))

    @pytest.mark.parametrize("dtype", ["F8_E4M3", "U8"])
    def test_kv_that_is_quantised_already_comes_back_or_has_no_space(self, dtype: str) -> None:
        if not self.lossless:
            with pytest.raises(InvalidManifest, match=f"codec.*{dtype}"):
                self.space("GQA", dtype)
            return
        space = self.space("GQA", dtype)
        kv = np.random.default_rng(1).integers(0, 9, space.layout.nbytes, dtype=np.uint8).tobytes()
        assert self.decoded(space, self.body(space, kv)) == kv

    def test_a_layout_that_it_does_not_keep_has_no_space(self) -> None:
        for shape in self.refuses:
            with pytest.raises(InvalidManifest, match="codec"):
                self.space(shape)

    @each_dtype
    @pytest.mark.parametrize("part", [0, 1])
    @pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
    def test_nan_and_infinity_come_back_or_are_refused(self, dtype: str, part: int, odd: float) -> None:
        space = self.space("GQA", dtype)
        kv = as_numbers(as_kv(numbers(space.layout), dtype), space.layout)
        kv[1, part, 1, 3, 5] = odd
        bits = kv.view(np.uint32) >> np.uint32(16)
        raw = (bits.astype(np.uint16) if dtype == "BF16" else kv.astype(ARRAY_DTYPES[dtype])).tobytes()
        try:
            body = self.body(space, raw)
        except NotFinite:
            assert not self.lossless
            return
        after = as_numbers(self.decoded(space, body), space.layout)
        np.testing.assert_array_equal(after[1, part, 1, 3, 5], np.float32(odd))

    @each_dtype
    def test_zeros_and_the_largest_numbers_come_back_finite(self, dtype: str) -> None:
        space = self.space("GQA", dtype)
        zeros = bytes(space.layout.nbytes)
        assert self.decoded(space, self.body(space, zeros)) == zeros
        largest = {"F32": 3.4e38, "BF16": 3.3e38, "F16": 65504.0}[dtype]
        kv = np.zeros(space.layout.shape, np.float32)
        kv[..., 0], kv[..., 1] = largest, largest / 3
        after = as_numbers(self.decoded(space, self.body(space, as_kv(kv, dtype))), space.layout)
        assert np.isfinite(after).all()
        np.testing.assert_allclose(after[..., 0], kv[..., 0], rtol=0.01)

    @pytest.mark.parametrize("shape", ["GQA", "odd"])
    def test_a_flipped_bit_anywhere_is_finite_kv_or_an_error(self, shape: str) -> None:
        space = self.accepted(shape)
        body = self.body(space, as_kv(numbers(space.layout), "BF16"))
        generator = np.random.default_rng(2)
        first = np.arange(8)
        for at in {*first, *(DATA_START + first), *generator.integers(0, len(body), 40), len(body) - 1}:
            broken = bytearray(body)
            broken[at] ^= 1 << int(generator.integers(0, 8))
            try:
                got = self.decoded(space, bytes(broken))
            except InvalidChunk:
                continue
            assert len(got) == space.layout.nbytes

    def test_any_truncation_or_addition_is_an_error(self) -> None:
        space = self.space()
        body = self.body(space, as_kv(numbers(space.layout), "BF16"))
        for nbytes in (0, 1, DATA_START - 1, DATA_START, DATA_START + 1, len(body) // 2, len(body) - 1):
            with pytest.raises(InvalidChunk):
                self.decoded(space, body[:nbytes])
        with pytest.raises(InvalidChunk):
            self.decoded(space, body + b"\0")

    def test_a_body_of_another_space_is_an_error(self) -> None:
        space, other = self.space("GQA"), self.accepted("MHA")
        body = self.body(other, as_kv(numbers(other.layout), "BF16"))
        with pytest.raises(InvalidChunk):
            self.decoded(space, body)

    def test_noise_instead_of_data_allocates_little_and_reads_nothing_beyond(self) -> None:
        space = self.space("MHA")
        body = bytearray(self.body(space, as_kv(numbers(space.layout), "BF16")))
        out = bytearray(space.layout.nbytes)
        for seed in range(4):
            body[DATA_START:] = np.random.default_rng(seed).integers(0, 256, len(body) - DATA_START, np.uint8).tobytes()
            tracemalloc.start()
            try:
                decode_body(space, body, out)
            except InvalidChunk:
                pass
            finally:
                _, peak_nbytes = tracemalloc.get_traced_memory()
                tracemalloc.stop()
            assert peak_nbytes < 4 * space.layout.nbytes + (1 << 20)

    def test_buffers_of_another_size_are_refused(self) -> None:
        space = self.space()
        kv = as_kv(numbers(space.layout), "BF16")
        body = self.body(space, kv)
        with pytest.raises(LayoutError):
            self.body(space, kv[:-1])
        with pytest.raises(LayoutError):
            decode_body(space, body, bytearray(len(kv) + 1))


class LossyCodecContract(ChunkCodecContract):
    """What a codec promises beside, whose tensors follow from the layout."""

    @pytest.mark.parametrize(
        ("layers", "heads"), [(range(1, 3), range(2)), (range(3), range(1, 2)), (range(1), range(1))]
    )
    def test_a_slice_is_the_form_of_a_smaller_layout(self, layers: range, heads: range) -> None:
        space = self.space()
        kv = as_kv(numbers(space.layout), "BF16")
        body = self.body(space, kv)
        runs = space.stored.slices(layers, heads).in_file()
        data = b"".join(body[run.start : run.stop] for run in runs.runs())
        assert len(data) == runs.nbytes
        part = Layout(len(layers), 2, len(heads), space.chunk_tokens, space.head_dim, space.dtype)
        picked = slice(layers.start, layers.stop), slice(None), slice(heads.start, heads.stop)
        out, whole = bytearray(part.nbytes), self.decoded(space, body)
        decode_kv(space, data, out, part)
        assert out == as_words(whole, space.layout)[picked].tobytes()
        written = bytearray(len(data))
        encode_kv(space, as_words(kv, space.layout)[picked].tobytes(), written, part)
        assert written == data

    def test_slices_of_all_ranks_are_the_whole_data(self) -> None:
        space = self.space()
        body = self.body(space, as_kv(numbers(space.layout), "BF16"))
        rebuilt = bytearray(len(body))
        for layers in (range(2), range(2, 3)):
            for heads in (range(1), range(1, 2)):
                for run in space.stored.slices(layers, heads).in_file().runs():
                    assert not any(rebuilt[run.start : run.stop])
                    rebuilt[run.start : run.stop] = body[run.start : run.stop]
        assert rebuilt[DATA_START:] == body[DATA_START:]


def as_words(kv: bytes | bytearray, layout: Layout) -> np.ndarray:
    return np.frombuffer(kv, np.uint16).reshape(layout.shape)
