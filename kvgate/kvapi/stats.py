"""GET /_kv/v1/stats: the caller's own numbers."""

from __future__ import annotations

from dataclasses import asdict

from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields


def _stats(context: Context, fields: Fields) -> Members:
    """{} → the members of TenantStats."""
    return asdict(context.store.stats(context.tenant))


call = Call("Stats", (), _stats)
