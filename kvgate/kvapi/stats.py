"""GET /_kv/v1/stats: the caller's own numbers."""

from __future__ import annotations

from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields


def _stats(context: Context, fields: Fields) -> Members:
    """{} → {objects, nbytes, quota_nbytes, tiers, leases, match_chunks_asked, match_chunks_found}."""
    stats = context.store.stats(context.tenant)
    return {
        "objects": stats.objects,
        "nbytes": stats.nbytes,
        "quota_nbytes": stats.quota_nbytes,
        "tiers": {name: {"objects": usage.objects, "nbytes": usage.nbytes} for name, usage in stats.tiers.items()},
        "leases": stats.leases,
        "match_chunks_asked": stats.match_chunks_asked,
        "match_chunks_found": stats.match_chunks_found,
    }


call = Call("Stats", (), _stats)
