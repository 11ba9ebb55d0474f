"""POST /_kv/v1/prefetch: chunks that lie in lower tiers are brought to memory, and nobody waits for it."""

from __future__ import annotations

from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields

_MISSING = -1


async def _prefetch(context: Context, fields: Fields) -> Members:
    """{bucket, space, hashes} → {tiers, ranks, wanted}: where each chunk lies now, and how many are to be brought up.

    As with `match` a rank is that of the fastest tier, an index into `tiers`; -1 for a chunk that is nowhere.
    """
    found = await context.store.prefetch(
        context.tenant.name,
        fields.text("bucket"),
        fields.hex_digest("space"),
        fields.hashes("hashes", context.config.max_hashes),
    )
    ranks = [_MISSING if rank is None else rank for rank in found.ranks]
    return {"tiers": found.tiers, "ranks": ranks, "wanted": found.wanted}


call = Call("Prefetch", ("bucket", "space", "hashes"), _prefetch)
