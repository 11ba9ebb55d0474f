"""POST /_kv/v1/release: the engine has fetched what it wanted."""

from __future__ import annotations

from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields


def _release(context: Context, fields: Fields) -> Members:
    """{lease} → {released: true}. Raises NoSuchLease, for another tenant's lease too."""
    lease = fields.text("lease")
    context.store.release(context.tenant.name, lease)
    return {"released": True}


call = Call("Release", ("lease",), _release)
