"""What the S3 API tells a data plane that answers GETs and HEADs by itself: the headers of objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvgate.s3.representation import described

if TYPE_CHECKING:
    from kvgate.s3.operations.base import Context
    from kvgate.tiers.base import Record


def publish(context: Context, record: Record) -> bool:
    """Have the plane answer from now on for an object that its owner has just asked for, if it can; whether it does."""
    return context.access.caller is context.tenant and context.store.published.offer(record, described)
