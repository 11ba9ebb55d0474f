"""Keys of SGLang's HiCache over NIXL OBJ.

    <64 hex>_<model>_<rank>_<size>[_<component>]       each rank has its own share of a page
    <64 hex>_<model>[_<component>]                     ranks hold the same (MLA)

with `/` in the model as `-`; a deployment that does not name its model leaves it empty. The hash is a sha256 chained
over the pages. The component is `k` or `v`, or the name of a pool besides the main one. SGLang 0.5.23:
`sglang/srt/mem_cache/storage/nixl/hicache_nixl.py` (config_suffix, _get_key_list_from_meta,
_get_hybrid_component_keys), `sglang/srt/mem_cache/hicache_storage.py` (PoolName), `sglang/srt/mem_cache/utils.py`
(get_hash_str).
"""

from __future__ import annotations

import re

from kvgate.chunk.foreign.base import MAX_MODEL_CHARS, NO_CONTROL, UNKNOWN_MODEL, ForeignKey

_POOL = r"mamba|swa|auxiliary_swa|indexer|deepseek_v4_[a-z0-9_]{1,32}|draft(?:_indexer|_swa)?"
_COMPONENT = rf"k|v|(?:{_POOL})(?:_k|_v|_[0-9]{{1,4}}|_temporal|_conv_[0-9]{{1,4}})?"
_HASH_CHARS = 64
_KEY = re.compile(
    rf"([0-9a-f]{{{_HASH_CHARS}}})_(?!ukv[0-9])([^/{NO_CONTROL}]{{0,{MAX_MODEL_CHARS}}}?)"
    rf"((?:_[0-9]{{1,6}}_[0-9]{{1,6}})?(?:_(?:{_COMPONENT}))?)"
)
"""`ukv` begins what the unified key scheme appends, which the NIXL backend does not use and which names no model."""


class SGLangParser:
    """See KeyParser."""

    def parse(self, key: str) -> ForeignKey | None:
        """See KeyParser."""
        match = _KEY.fullmatch(key) if key[_HASH_CHARS : _HASH_CHARS + 1] == "_" else None
        if match is None:
            return None
        page_hash, model, rest = match.groups()
        return ForeignKey("sglang", model or UNKNOWN_MODEL, rest, page_hash)
