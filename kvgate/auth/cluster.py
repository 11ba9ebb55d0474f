"""What gateways prove to each other: that they belong to one cluster.

The credential of the cluster stands beside those of the tenants, and is none of theirs. A request that it signs may ask
what peers ask, of any tenant that the asked gateway knows, and nothing else; and no tenant's credential may ask that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.identity import Identity, SignedPayload
from kvgate.auth.tenants import AccessKeyConfig, Tenant, TenantConfig, Tenants
from kvgate.config import Secret, option
from kvgate.errors import AccessDenied
from kvgate.messages import Request


@dataclass(frozen=True)
class ClusterConfig(AccessKeyConfig):
    """The credential that the gateways of one cluster have in common."""

    access_key: str = option(help="the public name of the credential, as of a tenant's; no tenant has it")
    secret_key: Secret = option(
        help="the secret that gateways sign with what they ask each other, at least 16 characters; whoever has it can "
        "read the chunks of every tenant"
    )


_HOLDER = "cluster"


class Cluster:
    """The gateways that have one credential, as one of them sees the others' requests."""

    def __init__(
        self, key: AccessKeyConfig, tenants: Tenants, clock: Callable[[], float], max_skew_s: float = 900
    ) -> None:
        """
        tenants: of this gateway
        clock:   gives seconds since the epoch
        """
        self._tenants = tenants
        holders = Tenants({_HOLDER: TenantConfig(access_keys=(key,))})
        self._authenticator = Authenticator(holders, clock, max_skew_s, sigv2=False, session_ttl_s=0)

    def authenticate(self, request: Request) -> Identity:
        """The proof that a gateway of the cluster has made this very request; its tenant is none that has objects.

        Raises what `Authenticator.authenticate` does; AccessDenied too for a presigned request, and for one that does
        not sign its body: what a peer asks for must not be changed on the way.
        """
        identity = self._authenticator.authenticate(request)
        if not identity.signed_by or not isinstance(identity.payload, SignedPayload):
            raise AccessDenied("a peer signs its requests in their headers, with the sha256 of the body")
        return identity

    def tenant(self, name: str) -> Tenant | None:
        """The tenant of this gateway that a peer means, if there is one."""
        return self._tenants.get(name)
