"""Changing what is said of an object, while others may replace it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kvgate.errors import ObjectChanged
from kvgate.s3.operations.base import Context

if TYPE_CHECKING:
    from kvgate.tiers.base import Record

_ATTEMPTS = 5


async def change_attributes(
    context: Context, bucket: str, key: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]
) -> Record:
    """Store.set_attributes of whatever version is the current one when it is done.

    Raises what that raises: ObjectChanged only after several versions have come and gone meanwhile.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(ObjectChanged):
            return await context.store.set_attributes(context.tenant, bucket, key, change)
    return await context.store.set_attributes(context.tenant, bucket, key, change)


async def set_attribute(context: Context, bucket: str, key: str, name: str, value: str) -> Record:
    """Set one attribute of an object, or remove it when `value` is empty. Raises as `change_attributes`."""

    def change(present: Mapping[str, str]) -> Mapping[str, str]:
        others = {other: text for other, text in present.items() if other != name}
        return {**others, name: value} if value else others

    return await change_attributes(context, bucket, key, change)
