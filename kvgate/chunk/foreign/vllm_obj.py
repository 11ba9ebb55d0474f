"""Keys of vLLM's `obj` tier, which stores KV blocks through NIXL OBJ.

    [<prefix>/]<model>_<12 hex>_r<rank>/<hhh>/<hh>_g<group>/<hash>.bin

with `/` in the model as `_`; the 12 hex digits are of a digest over parallelism, dtype and block size, and the two
folders begin the hash. vLLM writes `<prefix>//<model>`, or `/<model>` when it has no prefix; the AWS SDK in NIXL drops
empty segments on the way, other clients may not. vLLM 0.32.0: `vllm/v1/kv_offload/file_mapper.py` (get_file_name,
_compute_base_path), `vllm/v1/kv_offload/tiering/obj/manager.py` (root_dir), `vllm/utils/hashing.py`.
"""

from __future__ import annotations

import re

from kvgate.chunk.foreign.base import MAX_MODEL_CHARS, NO_CONTROL, ForeignKey

_SUFFIX = ".bin"
_KEY = re.compile(
    rf"((?:[^{NO_CONTROL}]*/)?)([^/{NO_CONTROL}]{{1,{MAX_MODEL_CHARS}}})_([0-9a-f]{{12}}_r[0-9]{{1,6}})"
    r"/([0-9a-f]{3})/([0-9a-f]{2})_(g[0-9]{1,6})/(\4\5(?:[0-9a-f]{27}|[0-9a-f]{59}))\.bin"
)


class VLLMObjParser:
    """See KeyParser."""

    def parse(self, key: str) -> ForeignKey | None:
        """See KeyParser."""
        match = _KEY.fullmatch(key) if key.endswith(_SUFFIX) else None
        if match is None:
            return None
        prefix, model, layout, _, _, group, block_hash = match.groups()
        return ForeignKey("vllm", model, f"{prefix}{layout}_{group}", block_hash)
