"""Owners of memory: a tenant, or one of its engines, which fills memory of its own."""

from __future__ import annotations

_SEPARATOR = "\0"


def engine_owner(tenant: str, number: int) -> str:
    """The owner of what one engine of a tenant may fill."""
    return f"{tenant}{_SEPARATOR}{number}"


def tenant_of(owner: str) -> str:
    """The tenant that an owner is, or belongs to."""
    return owner.partition(_SEPARATOR)[0]
