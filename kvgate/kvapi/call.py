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
class Context:
    """What a call works on, and for whom.

    signed_by: see Identity
    """

    store: Store
    config: KVApiConfig
    tenant: Tenant
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
