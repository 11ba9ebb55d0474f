"""Keys of LMCache in process: `S3Connector`, on the model's own workers.

    <model>@<world size>@<worker>@<hash>@<dtype>[@<layer>][@<tag>%<value>]…

with `/` as `_` throughout. The hash is a signed integer of at most 64 bits, or bytes, in hex; the layer is there when
layers are stored one by one. LMCache 0.5.6: `lmcache/utils.py` (CacheEngineKey.to_string,
LayerCacheEngineKey.to_string, TORCH_DTYPE_TO_STR_DTYPE), `lmcache/v1/storage_backend/connector/s3_connector.py`
(_format_safe_path).
"""

from __future__ import annotations

import re

from kvgate.chunk.foreign.base import MAX_MODEL_CHARS, NO_CONTROL, ForeignKey

DTYPE = r"half|bfloat16|float|double|u?int8|int16|int32|int64|bool|fp8_e4m3fn(?:uz)?|fp8_e5m2(?:fnuz)?"
NUMBER = r"(?:0|[1-9][0-9]{0,4})"
HASH = r"-?(?:0|[1-9a-f][0-9a-f]{0,15})|[0-9a-f]{32}|[0-9a-f]{64}"

_KEY = re.compile(
    rf"([^@/{NO_CONTROL}]{{1,{MAX_MODEL_CHARS}}})@({NUMBER}@{NUMBER})@({HASH})"
    rf"@((?:{DTYPE})(?:@{NUMBER})?(?:@[^@/%{NO_CONTROL}]{{1,128}}%[^@/{NO_CONTROL}]{{0,256}}){{0,8}})"
)


class LMCacheParser:
    """See KeyParser."""

    def parse(self, key: str) -> ForeignKey | None:
        """See KeyParser."""
        match = _KEY.fullmatch(key) if "@" in key else None
        if match is None:
            return None
        model, ranks, chunk_hash, rest = match.groups()
        return ForeignKey("lmcache", model, f"{ranks}@{rest}", chunk_hash)
