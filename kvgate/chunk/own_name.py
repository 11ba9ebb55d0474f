"""What a body under kv/ says of its own name: whoever got it from someone else can tell a wrong object by that."""

from __future__ import annotations

from hashlib import sha256

from kvgate.chunk.key import ChunkKey, ManifestKey, parse_key
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.safetensors import decode_header
from kvgate.chunk.space import MAX_MANIFEST_NBYTES
from kvgate.errors import InvalidChunk, InvalidKey

PREFIX_NBYTES = max(DATA_START, MAX_MANIFEST_NBYTES)
"""How much of the beginning of a body its name can be told by."""


def check_own_name(key: str, prefix: bytes, nbytes: int) -> None:
    """Raises InvalidChunk for a chunk whose header has another hash or space, or a manifest of another space.

    prefix: the body's first PREFIX_NBYTES, or the whole of a shorter one; nbytes: its length
    A body with any other key has no name of its own.
    """
    try:
        name = parse_key(key)
    except InvalidKey:
        return
    if isinstance(name, ChunkKey):
        metadata = decode_header(prefix, nbytes).metadata
        if (metadata.get("space"), metadata.get("hash")) != (name.space, name.hash):
            raise InvalidChunk("the chunk says itself that it is another one")
    elif isinstance(name, ManifestKey) and (nbytes != len(prefix) or sha256(prefix).hexdigest() != name.space):
        raise InvalidChunk("the manifest is that of another space")
