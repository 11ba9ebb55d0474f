"""The x-amz-expiration header: when lifecycle rules make an object expire."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from kvgate.s3.representation import http_date

if TYPE_CHECKING:
    from kvgate.store.store import Store
    from kvgate.tiers.base import Record

_LATEST_MS = 253_402_300_799_000
"""The last second of the year 9999: no date is written later. Rules may count up to 2^31 days."""


def expiration_headers(store: Store, record: Record) -> dict[str, str]:
    """The header, or none for an object that does not expire. Raises NoSuchBucket."""
    expiry = store.expiry(record)
    if expiry is None:
        return {}
    moment_ms, rule = expiry
    return {"x-amz-expiration": f'expiry-date="{http_date(min(moment_ms, _LATEST_MS))}", rule-id="{quote(rule)}"'}
