"""POST /_kv/v1/match: how much of a prompt is cached, kept there until the engine has fetched it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields

if TYPE_CHECKING:
    from kvgate.store.values import Match

DEFAULT_LEASE_S = 30.0


def _match(context: Context, fields: Fields) -> Members | Awaitable[Members]:
    """{bucket, space, hashes, lease_s?} → {matched, lease, expires_s, tiers, ranks, nbytes}: the longest prefix.

    A lease longer than `store.max_lease` is granted for that long. Columns instead of a map for each chunk: with
    hundreds of thousands of hashes a second, the maps would cost more than the search.
    """
    bucket = fields.text("bucket")
    space = fields.hex_digest("space")
    hashes = fields.hash_run("hashes", context.config.max_hashes)
    lease_s = fields.seconds("lease_s", DEFAULT_LEASE_S)
    store, tenant = context.store, context.tenant.name
    if store.has_shared_tiers:
        return _answer_later(store.match_anywhere(tenant, bucket, space, hashes, lease_s))
    return _answer(store.match(tenant, bucket, space, hashes, lease_s))


async def _answer_later(found: Awaitable[Match]) -> Members:
    return _answer(await found)


def _answer(found: Match) -> Members:
    return {
        "matched": len(found.nbytes),
        "lease": found.lease or None,
        "expires_s": found.expires_s,
        "tiers": found.tiers,
        "ranks": found.ranks,
        "nbytes": found.nbytes,
    }


call = Call("Match", ("bucket", "space", "hashes", "lease_s"), _match)
