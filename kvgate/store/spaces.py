"""The rules of keys under kv/: what may be stored there, and the manifests that say so."""

from __future__ import annotations

from kvgate.chunk.header import check_chunk
from kvgate.chunk.key import ChunkKey, ManifestKey, check_key, parse_key
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.space import MAX_MANIFEST_NBYTES, Space
from kvgate.errors import ImmutableConflict, InvalidChunk, InvalidManifest
from kvgate.store.index import Entry
from kvgate.tiers.base import Record

KEPT_PREFIX_NBYTES = max(DATA_START, MAX_MANIFEST_NBYTES)
"""How much of the beginning of a body the rules look at."""


def parse_any_key(key: str) -> ChunkKey | ManifestKey | None:
    """What a key names, None for an opaque one. Raises InvalidKey for one that must not be stored."""
    check_key(key)
    return parse_key(key)


def check_length(key: ChunkKey | ManifestKey, nbytes: int, space: Space | None) -> None:
    """Refuse a body by its length alone, before it is sent. Raises InvalidChunk, InvalidManifest."""
    if isinstance(key, ManifestKey) and nbytes > MAX_MANIFEST_NBYTES:
        raise InvalidManifest("(body)", f"{nbytes} bytes; at most {MAX_MANIFEST_NBYTES} are accepted")
    if isinstance(key, ChunkKey) and space is not None and nbytes < DATA_START:
        raise InvalidChunk(f"a chunk has a header of {DATA_START} bytes; this body has {nbytes}")


def check_body(key: ChunkKey | ManifestKey, prefix: bytes, nbytes: int, space: Space | None) -> Space:
    """The space of a body that is what its key says. Raises InvalidChunk, InvalidManifest."""
    if isinstance(key, ChunkKey):
        assert space is not None
        check_chunk(prefix, nbytes, key, space)
        return space
    found = Space.from_canonical_json(prefix[:nbytes])
    if found.id != key.space:
        raise InvalidManifest("(body)", f"this is the manifest of space {found.id}, the key says {key.space}")
    return found


def check_immutable(record: Record, current: Entry | None) -> bool:
    """Whether the key holds this very body already. Raises ImmutableConflict when it holds another one."""
    if current is None:
        return False
    if not current.record.same_body(record):
        raise ImmutableConflict(
            f"{record.key} holds another body; keys under kv/ never change: delete it first if it is wrong"
        )
    return True


class Spaces:
    """Manifests that have been read, each for as long as its object is the current one."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], tuple[Entry, Space]] = {}

    def get(self, entry: Entry) -> Space | None:
        """The space of a manifest object, if it has been read."""
        known = self._known.get(entry.record[:3])
        return known[1] if known is not None and known[0] is entry else None

    def put(self, entry: Entry, space: Space) -> None:
        """Remember what a manifest object says."""
        if len(self._known) >= 10_000:
            self._known.clear()
        self._known[entry.record[:3]] = (entry, space)
