"""POST /_kv/v1/match: how much of a prompt is cached, kept there until the engine has fetched it."""

from __future__ import annotations

from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields

DEFAULT_LEASE_S = 30.0


def _match(context: Context, fields: Fields) -> Members:
    """{bucket, space, hashes, lease_s?} → {matched, lease, expires_s, tiers, ranks, nbytes}: the longest prefix.

    A lease longer than `store.max_lease` is granted for that long. Columns instead of a map for each chunk: with
    hundreds of thousands of hashes a second, the maps would cost more than the search.
    """
    bucket = fields.text("bucket")
    space = fields.hex_digest("space")
    hashes = fields.hash_run("hashes", context.config.max_hashes)
    lease_s = fields.seconds("lease_s", DEFAULT_LEASE_S)
    found = context.store.match(context.tenant.name, bucket, space, hashes, lease_s)
    return {
        "matched": len(found.nbytes),
        "lease": found.lease or None,
        "expires_s": found.expires_s,
        "tiers": found.tiers,
        "ranks": found.ranks,
        "nbytes": found.nbytes,
    }


call = Call("Match", ("bucket", "space", "hashes", "lease_s"), _match)
