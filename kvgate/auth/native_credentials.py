"""The tenants' credentials as the native data plane has them (csrc/native/authenticate.h)."""

from __future__ import annotations

from kvgate.auth.session import token_key
from kvgate.auth.tenants import Tenants
from kvgate.native import Credentials


def native_credentials(tenants: Tenants, *, max_skew_s: float, session_ttl_s: float) -> Credentials:
    """What proves the identities that `Authenticator` does, with the same limits. A tenant's number is its place in
    `tenants`.

    Where kvgate.native was not built, this module cannot be imported.
    """
    numbers = {tenant.name: number for number, tenant in enumerate(tenants)}
    rows = [
        (access_key, secret_key, numbers[tenant.name], token_key(tenant.name, access_key, secret_key))
        for access_key, tenant, secret_key in tenants.credentials()
    ]
    return Credentials(rows, max_skew_s=max_skew_s, session_ttl_s=session_ttl_s)
