"""Keys of LMCache's multi-process server: its S3 adapter, and its native NIXL adapter over OBJ.

    <model>@<kv rank as %08x>@<object group as %x>@<hash in hex>[@<salt>]

The model keeps its `/`. Neither model nor salt holds `@`, and the salt has at most 128 characters. Hashes are whole
bytes: 8 for an integer, 16 or 32 for a digest. LMCache 0.5.6: `lmcache/v1/distributed/api.py` (ObjectKey),
`lmcache/v1/distributed/l2_adapters/s3_l2_adapter.py` and `native_connector_l2_adapter.py` (_object_key_to_string),
`lmcache/v1/multiprocess/token_hasher.py` (hash_to_bytes).
"""

from __future__ import annotations

import re

from kvgate.chunk.foreign.base import MAX_MODEL_CHARS, NO_CONTROL, ForeignKey

_KEY = re.compile(
    rf"([^@{NO_CONTROL}]{{1,{MAX_MODEL_CHARS}}})@([0-9a-f]{{8}}@(?:0|[1-9a-f][0-9a-f]{{0,7}}))"
    rf"@([0-9a-f]{{16}}|[0-9a-f]{{32}}|[0-9a-f]{{64}})(?:@([^@/\\{NO_CONTROL}]{{1,128}}))?"
)


class LMCacheMPParser:
    """See KeyParser."""

    def parse(self, key: str) -> ForeignKey | None:
        """See KeyParser."""
        match = _KEY.fullmatch(key) if "@" in key else None
        if match is None:
            return None
        model, place, chunk_hash, salt = match.groups("")
        return ForeignKey("lmcache-mp", model, f"{place}@{salt}", chunk_hash)
