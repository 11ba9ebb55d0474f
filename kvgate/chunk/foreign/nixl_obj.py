"""Keys that NIXL's OBJ plugin and LMCache's storage backend over it make themselves.

The plugin stores under whatever text a program registers, and without one under the device id, a decimal number of at
most 64 bits; such a program's order is all that can be learnt. LMCache registers

    obj_<number>_<4 hex>                                              slots of a fixed pool
    <model>_<world size>_<worker>_<hash>_<dtype>[_<tag>%25<value>]…   its key in process, with `/` and `@` as `_`

NIXL 1.5.1: `src/plugins/obj/s3/engine_impl.cpp` (registerMem). LMCache 0.5.6:
`lmcache/v1/storage_backend/nixl_storage_backend.py` and `lmcache/v1/distributed/l2_adapters/nixl_store_l2_adapter.py`
(init_storage_handlers_object, _format_object_key_url_safe).
"""

from __future__ import annotations

import re

from kvgate.chunk.foreign.base import MAX_MODEL_CHARS, NO_CONTROL, UNKNOWN_MODEL, ForeignKey
from kvgate.chunk.foreign.lmcache import DTYPE, HASH, NUMBER

_DIGITS = frozenset("0123456789")
_DEVICE_ID = re.compile(r"0|[1-9][0-9]{0,19}")
_SLOT = re.compile(r"obj_(?:0|[1-9][0-9]{0,9})_[0-9a-f]{4}")
_FLAT = re.compile(
    rf"([^@/{NO_CONTROL}]{{1,{MAX_MODEL_CHARS}}})_({NUMBER}_{NUMBER})_({HASH})"
    rf"_((?:{DTYPE})(?:_[^@/%{NO_CONTROL}]{{1,128}}%25[^@/{NO_CONTROL}]{{0,512}})?)"
)


class NixlObjParser:
    """See KeyParser."""

    def parse(self, key: str) -> ForeignKey | None:
        """See KeyParser."""
        if key[:1] in _DIGITS and _DEVICE_ID.fullmatch(key):
            return ForeignKey("nixl", UNKNOWN_MODEL, "device id", key) if int(key) < 2**64 else None
        if key.startswith("obj_") and _SLOT.fullmatch(key):
            return ForeignKey("nixl", UNKNOWN_MODEL, "slot", key)
        match = _FLAT.fullmatch(key) if "_" in key else None
        if match is None:
            return None
        model, ranks, chunk_hash, rest = match.groups()
        return ForeignKey("nixl", model, f"{ranks}_{rest}", chunk_hash)
