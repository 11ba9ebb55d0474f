from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from kvgate.chunk.header import NO_PARENT, ChunkHeader, check_chunk
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.safetensors import TensorInfo, decode_header, encode_header
from kvgate.chunk.space import VLLM_SHA256_CBOR, Space
from kvgate.errors import InvalidChunk

HASH, PARENT = bytes(range(32)), bytes(range(32, 64))


def nbytes_of(space: Space) -> int:
    return 4096 + space.layout.nbytes


def key_of(space: Space) -> ChunkKey:
    return ChunkKey(space.id, HASH.hex())


def altered(space: Space, /, **changes: str | None) -> bytes:
    """A valid chunk's header with some metadata replaced, or left out where None."""
    header = decode_header(ChunkHeader.encode(space, HASH, PARENT, 8), nbytes_of(space))
    metadata = {**header.metadata, **changes}
    return encode_header(header.tensors, {name: text for name, text in metadata.items() if text is not None})


def with_tensors(space: Space, tensors: dict[str, TensorInfo]) -> tuple[bytes, int]:
    header = decode_header(ChunkHeader.encode(space, HASH, PARENT, 8), nbytes_of(space))
    return encode_header(tensors, header.metadata), 4096 + max(info.stop for info in tensors.values())


def test_a_raw_chunk_is_accepted_under_its_key(space: Space) -> None:
    prefix = ChunkHeader.encode(space, HASH, PARENT, 8)
    assert len(prefix) == 4096
    header = check_chunk(prefix, nbytes_of(space), key_of(space), space)
    assert header == ChunkHeader(space.id, HASH.hex(), PARENT.hex(), 8, 4, "raw")


def test_a_chunk_under_an_engines_own_hash_names_no_parent(manifest_v2: dict[str, Any]) -> None:
    space = Space.from_manifest({**manifest_v2, "hash_scheme": VLLM_SHA256_CBOR})
    prefix = ChunkHeader.encode(space, HASH, NO_PARENT, 0)
    assert check_chunk(prefix, nbytes_of(space), key_of(space), space).parent == "0" * 64
    tensors = decode_header(prefix, nbytes_of(space)).tensors
    for parent, first_token in [(PARENT, 0), (NO_PARENT, 4)]:
        with pytest.raises(InvalidChunk, match="64 zeros"):
            ChunkHeader.encode(space, HASH, parent, first_token)
        written = ChunkHeader(space.id, HASH.hex(), parent.hex(), first_token, space.chunk_tokens)
        body = encode_header(tensors, written.metadata())
        with pytest.raises(InvalidChunk, match="64 zeros"):
            check_chunk(body, nbytes_of(space), key_of(space), space)


def test_metadata_is_readable_by_anyone(space: Space, tmp_path: Path) -> None:
    kv = np.arange(space.layout.nbytes // 2, dtype="<u2").reshape(space.layout.shape)
    path = tmp_path / "chunk.safetensors"
    path.write_bytes(ChunkHeader.encode(space, HASH, PARENT, 8) + kv.tobytes())
    with safetensors.safe_open(path, framework="numpy") as file:
        assert list(file.keys()) == ["kv"]
        assert file.get_slice("kv").get_shape() == list(space.layout.shape)
        assert file.get_slice("kv").get_dtype() == "BF16"
        assert file.metadata() == {
            "format": "kvgate-chunk-v1",
            "space": space.id,
            "hash": HASH.hex(),
            "parent": PARENT.hex(),
            "first_token": "8",
            "tokens": "4",
            "codec": "raw",
        }


def test_the_same_chunk_has_the_same_header_bytes(space: Space) -> None:
    assert ChunkHeader.encode(space, HASH, PARENT, 8) == ChunkHeader.encode(space, HASH, PARENT, 8)
    assert altered(space) == ChunkHeader.encode(space, HASH, PARENT, 8)


@given(hash=st.binary(min_size=32, max_size=32), position=st.integers(0, 10**17 // 4))
def test_any_chunk_header_round_trips(space: Space, hash: bytes, position: int) -> None:
    prefix = ChunkHeader.encode(space, hash, PARENT, 4 * position)
    header = check_chunk(prefix, nbytes_of(space), ChunkKey(space.id, hash.hex()), space)
    assert header.first_token == 4 * position
    assert ChunkHeader.from_metadata(header.metadata()) == header


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"format": "pt"}, "format is 'pt'"),
        ({"format": None}, "format is ''"),
        ({"space": "0" * 64}, "space is 00000000"),
        ({"hash": "0" * 64}, "hash is 00000000"),
        ({"hash": HASH.hex().upper()}, "hash is not 64"),
        ({"parent": "0" * 63}, "parent is not 64"),
        ({"parent": None}, "'parent' is missing"),
        ({"note": "x"}, "'note' is unknown"),
        ({"tokens": "8"}, "tokens is 8"),
        ({"tokens": "0"}, "tokens is 0"),
        ({"tokens": "4.0"}, "tokens is not a decimal"),
        ({"tokens": "04"}, "tokens is not a decimal"),
        ({"tokens": "٤"}, "tokens is not a decimal"),
        ({"first_token": "-4"}, "first_token is not a decimal"),
        ({"first_token": "1" + "0" * 18}, "first_token is not a decimal"),
        ({"first_token": "9"}, "first_token 9 is not a multiple"),
        ({"codec": "zip"}, "unknown codec 'zip'"),
    ],
)
def test_metadata_that_does_not_fit_the_key_is_refused(space: Space, changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(InvalidChunk, match=cause):
        check_chunk(altered(space, **changes), nbytes_of(space), key_of(space), space)


def test_a_chunk_under_another_key_or_space_is_refused(space: Space, manifest: dict[str, Any]) -> None:
    prefix = ChunkHeader.encode(space, HASH, PARENT, 8)
    with pytest.raises(InvalidChunk, match="hash"):
        check_chunk(prefix, nbytes_of(space), ChunkKey(space.id, PARENT.hex()), space)
    other = Space.from_manifest({**manifest, "weights": "main"})
    with pytest.raises(InvalidChunk, match="space"):
        check_chunk(prefix, nbytes_of(space), key_of(other), other)
    with pytest.raises(InvalidChunk, match="the key is of space"):
        check_chunk(prefix, nbytes_of(space), key_of(space), other)


def test_a_body_of_another_length_is_refused(space: Space) -> None:
    prefix = ChunkHeader.encode(space, HASH, PARENT, 8)
    for nbytes in (0, 4096, nbytes_of(space) - 1, nbytes_of(space) + 1):
        with pytest.raises(InvalidChunk):
            check_chunk(prefix, nbytes, key_of(space), space)


def test_tensors_other_than_the_layout_are_refused(space: Space) -> None:
    shape, size = space.layout.shape, space.layout.nbytes
    for tensors in (
        {"KV": TensorInfo("BF16", shape, 0, size)},
        {"kv": TensorInfo("F16", shape, 0, size)},
        {"kv": TensorInfo("BF16", shape[::-1], 0, size)},
        {"kv": TensorInfo("BF16", shape[1:], 0, size // 3)},
        {"kv": TensorInfo("BF16", shape, 0, size), "v": TensorInfo("U8", (1,), size, size + 1)},
    ):
        prefix, nbytes = with_tensors(space, tensors)
        with pytest.raises(InvalidChunk, match="kv"):
            check_chunk(prefix, nbytes, key_of(space), space)


@pytest.mark.parametrize(
    ("hash", "parent", "first_token"),
    [(HASH[:31], PARENT, 0), (HASH, b"", 0), (HASH, PARENT, 3), (HASH, PARENT, -4), (HASH, PARENT, 10**18)],
)
def test_a_header_that_would_be_refused_is_not_made(space: Space, hash: bytes, parent: bytes, first_token: int) -> None:
    with pytest.raises(InvalidChunk):
        ChunkHeader.encode(space, hash, parent, first_token)


@given(edits=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_mutated_chunk_is_refused_or_says_the_same_of_itself(space: Space, edits: list[tuple[int, int]]) -> None:
    mutated = bytearray(ChunkHeader.encode(space, HASH, PARENT, 8))
    for position, byte in edits:
        mutated[position] = byte
    try:
        header = check_chunk(bytes(mutated), nbytes_of(space), key_of(space), space)
    except InvalidChunk:
        return
    assert (header.space, header.hash, header.tokens, header.codec) == (space.id, HASH.hex(), 4, "raw")
