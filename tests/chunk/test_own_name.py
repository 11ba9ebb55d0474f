from __future__ import annotations

import os

import pytest

from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.own_name import check_own_name
from kvgate.errors import InvalidChunk
from tests.client.chunks import SPACE, chunks

(HASH, BODY), (OTHER_HASH, OTHER_BODY) = chunks(b"salt", 2)
MANIFEST = SPACE.canonical_json()
CHUNK_KEY, MANIFEST_KEY = str(ChunkKey(SPACE.id, HASH.hex())), str(ManifestKey(SPACE.id))


@pytest.mark.parametrize(
    ("key", "body"), [(CHUNK_KEY, BODY), (MANIFEST_KEY, MANIFEST), ("any/other", b"any"), ("kv/other", b"any")]
)
def test_body_under_its_own_name_is_taken(key: str, body: bytes) -> None:
    check_own_name(key, body[: 64 << 10], len(body))


@pytest.mark.parametrize(
    ("key", "body"),
    [
        (CHUNK_KEY, OTHER_BODY),
        (str(ChunkKey("0" * 64, HASH.hex())), BODY),
        (CHUNK_KEY, b""),
        (CHUNK_KEY, BODY[:4095]),
        (CHUNK_KEY, os.urandom(len(BODY))),
        (CHUNK_KEY, MANIFEST),
        (MANIFEST_KEY, BODY),
        (MANIFEST_KEY, MANIFEST + b" "),
        (MANIFEST_KEY, b""),
        (str(ManifestKey("0" * 64)), MANIFEST),
    ],
)
def test_body_under_another_ones_name_is_refused(key: str, body: bytes) -> None:
    with pytest.raises(InvalidChunk):
        check_own_name(key, body[: 64 << 10], len(body))
