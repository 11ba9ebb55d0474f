"""POST /_kv/v1/match: how much of a prompt is cached, kept there until the engine has fetched it."""

from __future__ import annotations

from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields

DEFAULT_LEASE_S = 30.0


def _match(context: Context, fields: Fields) -> Members:
    """{bucket, space, hashes, lease_s?} → {matched, lease, expires_s, chunks}: the longest prefix that is present.

    A lease longer than `store.max_lease` is granted for that long.
    """
    bucket = fields.text("bucket")
    space = fields.hex_digest("space")
    hashes = fields.hashes("hashes", context.config.max_hashes)
    lease_s = fields.seconds("lease_s", DEFAULT_LEASE_S)
    found = context.store.match(context.tenant.name, bucket, space, hashes, lease_s)
    return {
        "matched": len(found.places),
        "lease": found.lease or None,
        "expires_s": found.expires_s,
        "chunks": [{"tier": place.tier, "nbytes": place.nbytes} for place in found.places],
    }


call = Call("Match", ("bucket", "space", "hashes", "lease_s"), _match)
