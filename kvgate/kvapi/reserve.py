"""POST and DELETE /_kv/v1/reserve, PUT /_kv/v1/slice: a chunk written in slices, by several ranks."""

from __future__ import annotations

from kvgate.chunk.layout import Layout
from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields
from kvgate.kvapi.slice_payload import SlicePayload

DEFAULT_LEASE_S = 30.0
_MAX_POSITION = 10**18
_MAX_WRITER_CHARS = 128


async def _reserve(context: Context, fields: Fields) -> Members:
    """{bucket, space, hash, parent, first_token, lease_s?, writer?} → {reservation, nbytes, expires_s}.

    No reservation, null, when the chunk is there already. Calls of the same writer share one. A lease over
    `store.max_lease` is granted for that long.
    """
    reserved = await context.store.chunk_writes.reserve(
        context.tenant,
        fields.text("bucket"),
        fields.hex_digest("space"),
        fields.hash("hash"),
        fields.hash("parent"),
        fields.count("first_token", _MAX_POSITION - 1),
        fields.seconds("lease_s", DEFAULT_LEASE_S),
        fields.optional_label("writer", _MAX_WRITER_CHARS),
    )
    return {"reservation": reserved.name or None, "nbytes": reserved.nbytes, "expires_s": reserved.expires_s}


async def _slice(context: Context, fields: Fields) -> Members:
    """?reservation&layers?&heads? and the bytes of that slice → {state, missing_nbytes}."""
    source = SlicePayload(context.request, context.payload)

    def select(layout: Layout) -> tuple[range, range]:
        layers, heads = fields.indices("layers", layout.layers), fields.indices("heads", layout.kv_heads)
        return layers or range(layout.layers), heads or range(layout.kv_heads)

    name = fields.text("reservation")
    progress = await context.store.chunk_writes.receive(context.tenant.name, name, select, source)
    return {"state": progress.state, "missing_nbytes": progress.missing_nbytes}


def _abort(context: Context, fields: Fields) -> Members:
    """?reservation → {aborted: true}. Raises NoSuchReservation, for another tenant's too."""
    context.store.chunk_writes.abort(context.tenant.name, fields.text("reservation"))
    return {"aborted": True}


reserve = Call("Reserve", ("bucket", "space", "hash", "parent", "first_token", "lease_s", "writer"), _reserve)
slice_ = Call("Slice", ("reservation", "layers", "heads"), _slice, in_query=True)
abort = Call("AbortReservation", ("reservation",), _abort, in_query=True)
