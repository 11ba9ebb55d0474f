"""What a call under /_kv/v1/ is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvgate.auth.session import Sessions
from kvgate.auth.tenants import Tenant
from kvgate.kvapi.config import KVApiConfig
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields

if TYPE_CHECKING:
    from kvgate.store.store import Store


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

    signed_by: see Identity
    """

    store: Store
    config: KVApiConfig
    tenant: Tenant
    local: Local
    sessions: Sessions
    signed_by: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: from the fields of a request to the members of the response.

    fields: those that there are; a request with another one is refused
    run:    raises any domain error; synchronous, because everything that is asked here is decided in memory
    """

    name: str
    fields: tuple[str, ...]
    run: Callable[[Context, Fields], Members]
