"""POST /_kv/v1/explain: where objects are, or why they are not here."""

from __future__ import annotations

import dataclasses
import time

from kvgate.chunk.key import ChunkKey
from kvgate.chunk.space import Space
from kvgate.errors import InvalidArgument
from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields


async def _explain(context: Context, fields: Fields) -> Members:
    """{bucket, space, hashes, manifest?} or {bucket, keys} → {now_ms, since_ms, away, objects, nearest}."""
    bucket = fields.text("bucket")
    most = context.config.max_explain
    explain, tenant = context.store.explain, context.tenant.name
    if fields.has("keys"):
        for name in ("space", "hashes", "manifest"):
            if fields.has(name):
                raise InvalidArgument(f"{name}: not together with `keys`")
        space_id, space, keys = "", None, fields.texts("keys", most)
    else:
        space_id, space = fields.hex_digest("space"), _space(fields)
        keys = [str(ChunkKey(space_id, chunk_hash.hex())) for chunk_hash in fields.hashes("hashes", most)]
    objects = await explain.objects(tenant, bucket, keys)
    nearest = await explain.nearest(tenant, bucket, space_id, space) if space_id else None
    return {
        "now_ms": time.time_ns() // 1_000_000,
        "since_ms": explain.since_ms(tenant),
        "away": explain.away(),
        "objects": [dataclasses.asdict(each) for each in objects],
        "nearest": None if nearest is None else [dataclasses.asdict(each) for each in nearest],
    }


def _space(fields: Fields) -> Space | None:
    """The space that the caller describes. Raises InvalidManifest, and InvalidArgument for another than it names."""
    manifest = fields.optional_map("manifest")
    if manifest is None:
        return None
    space = Space.from_manifest(manifest)
    if space.id != fields.hex_digest("space"):
        raise InvalidArgument(f"manifest: it is the manifest of space {space.id}, and `space` names another")
    return space


call = Call("Explain", ("bucket", "space", "hashes", "manifest", "keys"), _explain)
