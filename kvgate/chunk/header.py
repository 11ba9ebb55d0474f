"""The header of a chunk object: what `__metadata__` says of it, and the proof that a body is the chunk its key names.

    format       kvgate-chunk-v1
    space, hash  64 hex digits each, as in the key
    parent       64 hex digits: the chain hash of the chunk before, or the root for the first
    first_token  position of the chunk's first token in its sequence, decimal
    tokens       how many it holds, decimal
    codec        how the KV is kept: the space's own codec, whose tensors `kvgate.chunk.form` tells; and where that is
                 `raw`, any lossless one

In a space whose hashes an engine makes, parent is 64 zeros and first_token is 0: not every writer of such a chunk knows
them, and its hash covers both.

Nothing else is accepted there, so that two writers of the same KV write the same metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from kvgate.chunk.chain import HASH_NBYTES
from kvgate.chunk.form import RAW, blocks_tensors, check_blocks, check_stored, lossless_codecs
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.safetensors import Header, decode_header, encode_header
from kvgate.chunk.space import Space
from kvgate.errors import InvalidChunk

FORMAT = "kvgate-chunk-v1"
NO_PARENT = bytes(HASH_NBYTES)
"""What the header of a chunk under an engine's own hash says of its parent."""

_HEX = re.compile(r"[0-9a-f]{64}")
_MAX_POSITION = 10**18
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """A chunk's own account of itself. Hashes are 64 lower-case hex digits.

    Raises InvalidChunk for a field that no chunk can have; whether it fits a key and a space is for `check_chunk`.
    """

    space: str
    hash: str
    parent: str
    first_token: int
    tokens: int
    codec: str = RAW

    def __post_init__(self) -> None:
        for name in ("space", "hash", "parent"):
            if not _HEX.fullmatch(getattr(self, name)):
                raise InvalidChunk(f"metadata {name} is not 64 lower-case hex digits")
        if self.tokens < 1:
            raise InvalidChunk(f"metadata tokens is {self.tokens}; a chunk holds at least one")
        if not 0 <= self.first_token < _MAX_POSITION or self.first_token % self.tokens:
            raise InvalidChunk(
                f"metadata first_token {self.first_token} is not a multiple of tokens {self.tokens} from 0 to 10**18"
            )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ChunkHeader:
        """The header that `__metadata__` holds: every key of it, and no other. Raises InvalidChunk."""
        if metadata.get("format") != FORMAT:
            raise InvalidChunk(f"metadata format is {metadata.get('format', '')[:64]!r}, not {FORMAT!r}")
        names = {"format", *(field.name for field in fields(cls))}
        if metadata.keys() != names:
            odd = sorted(metadata.keys() ^ names)[0]
            raise InvalidChunk(f"metadata {odd[:64]!r} is {'missing' if odd in names else 'unknown'}")
        first_token, tokens = (_decimal(name, metadata[name]) for name in ("first_token", "tokens"))
        space, hash, parent, codec = (metadata[name] for name in ("space", "hash", "parent", "codec"))
        return cls(space, hash, parent, first_token, tokens, codec)

    def metadata(self) -> dict[str, str]:
        """The entries of `__metadata__`; `from_metadata` takes them back."""
        return {"format": FORMAT} | {name: str(value) for name, value in asdict(self).items()}

    @staticmethod
    def encode(
        space: Space, hash: bytes, parent: bytes, first_token: int, *, blocks: tuple[str, int] | None = None
    ) -> bytes:
        """The 4,096 bytes that go before the KV: `space.stored.nbytes` bytes, or fewer in blocks.

        hash, parent: 32 bytes each, as `chain_hashes` gives them; the parent of the first chunk is the root
        first_token:  a multiple of the space's chunk_tokens
        In a space that `has_foreign_hashes`, NO_PARENT and 0.
        blocks:       the lossless codec that made them, and the bytes of all of them
        The same arguments give the same bytes. Raises InvalidChunk for arguments that no chunk has.
        """
        codec, tensors = space.codec, space.stored.tensors
        if blocks is not None:
            codec, tensors = blocks[0], blocks_tensors(space.layout, blocks[1])
        header = ChunkHeader(space.id, hash.hex(), parent.hex(), first_token, space.chunk_tokens, codec)
        _check_place(header, space)
        return encode_header(tensors, header.metadata())


def check_chunk(prefix: bytes | memoryview, nbytes: int, key: ChunkKey, space: Space) -> ChunkHeader:
    """The header of a body that is a chunk of exactly this key and space.

    prefix: the body's first 4,096 bytes or more; nbytes: its whole length
    The KV itself is not looked at. Raises InvalidChunk naming what does not agree.
    """
    if space.id != key.space:
        raise InvalidChunk(f"the key is of space {key.space[:8]}, the manifest of {space.id[:8]}")
    body = decode_header(prefix, nbytes)
    header = ChunkHeader.from_metadata(body.metadata)
    for name, expected in (("space", key.space), ("hash", key.hash)):
        if getattr(header, name) != expected:
            raise InvalidChunk(f"metadata {name} is {getattr(header, name)[:8]}…, the key says {expected[:8]}…")
    if header.tokens != space.chunk_tokens:
        raise InvalidChunk(f"metadata tokens is {header.tokens}, chunks of this space hold {space.chunk_tokens}")
    _check_place(header, space)
    check_tensors(body, header.codec, space)
    return header


def check_tensors(body: Header, codec: str, space: Space) -> None:
    """Accept the tensors of a chunk that a codec has made for a space. Raises InvalidChunk."""
    if codec == space.codec:
        check_stored(body, space.stored)
    elif space.codec == RAW and codec in lossless_codecs():
        check_blocks(body, space.layout)
    else:
        known = [space.codec, *(sorted(lossless_codecs()) if space.codec == RAW else [])]
        raise InvalidChunk(f"unknown codec {codec[:64]!r} of a chunk of this space; known: {', '.join(known)}")


def _check_place(header: ChunkHeader, space: Space) -> None:
    if space.has_foreign_hashes and (header.parent != NO_PARENT.hex() or header.first_token):
        raise InvalidChunk(f"under {space.hash_scheme} metadata parent is {2 * HASH_NBYTES} zeros and first_token is 0")


def _decimal(name: str, text: str) -> int:
    if not _DECIMAL.fullmatch(text):
        raise InvalidChunk(f"metadata {name} is not a decimal number below 10**18")
    return int(text)
