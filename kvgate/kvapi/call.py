"""What a call under /_kv/v1/ is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvgate.auth.cluster import Cluster
from kvgate.auth.identity import Payload
from kvgate.auth.session import Sessions
from kvgate.auth.tenants import Tenant
from kvgate.kvapi.config import KVApiConfig
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields
from kvgate.messages import Request, Response

if TYPE_CHECKING:
    from kvgate.store.store import Store

Answer = Members | Response


@dataclass(frozen=True, slots=True)
class Local:
    """How engines on the gateway's own host reach it; an empty path is no way.

    boot_id: of this run of the gateway. Who reaches a socket there and is told the same id has reached this gateway,
             and not another that has a socket of the same path on another host
    """

    boot_id: bytes
    shm_socket: str = ""
    unix_socket: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What a call works on, and for whom.

    tenant:    who asks; none that has objects where another gateway does
    signed_by: see Identity
    cluster:   that this gateway belongs to
    request, payload: for a call that takes its body as it comes; for all others it has been read
    """

    store: Store
    config: KVApiConfig
    tenant: Tenant
    local: Local
    sessions: Sessions
    signed_by: str
    request: Request
    payload: Payload
    cluster: Cluster | None


@dataclass(frozen=True, slots=True)
class Call:
    """One call: from the fields of a request to the members of the answer, or to a response of another form.

    fields:   those that there are; a request with another one is refused
    run:      raises any domain error; synchronous where everything that is asked is decided in memory
    in_query: the fields are parameters of the query, and the body, if there is one, is the call's to read
    for_peers: it is for gateways of the cluster, and for them alone
    """

    name: str
    fields: tuple[str, ...]
    run: Callable[[Context, Fields], Answer | Awaitable[Answer]]
    in_query: bool = False
    for_peers: bool = False
