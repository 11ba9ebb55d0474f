"""GET /_kv/v1/tenant: who the caller is, and the salt that its chain hashes begin with."""

from __future__ import annotations

from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields


def _tenant(context: Context, fields: Fields) -> Members:
    """{} → {tenant, salt, quota_nbytes, buckets, local}; an empty path in `local` is no way."""
    tenant, local = context.tenant, context.local
    return {
        "tenant": tenant.name,
        "salt": tenant.salt,
        "quota_nbytes": tenant.quota_nbytes,
        "buckets": [bucket.name for bucket in context.store.buckets.list(tenant.name)],
        "local": {
            "boot_id": local.boot_id,
            "shm_socket": local.shm_socket,
            "unix_socket": local.unix_socket,
        },
    }


call = Call("Tenant", (), _tenant)
