"""POST /_kv/v1/retain and GET /_kv/v1/retention: what is to be kept, and what is to go and when."""

from __future__ import annotations

import time

from kvgate.errors import InvalidArgument
from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields
from kvgate.kvapi.selection import FIELDS, selection
from kvgate.store.retention import MAX_TTL_S, Change, Pin, Rule

PINS = {"none": Pin.NONE, "hard": Pin.HARD, "soft": Pin.SOFT}


async def _retain(context: Context, fields: Fields) -> Members:
    """A selection with {pin?, pin_s?, ttl_s?} → {states, rule}: of each object that is named, or of the prefix.

    What is answered survives. The rule of a prefix is for objects to come as well; those that there are get its pin in
    the background. Raises NoSuchBucket, TooManyMarks.
    """
    chosen, change = selection(context, fields), _change(fields)
    keeper, tenant = context.store.keeper, context.tenant.name
    if chosen.keys is not None:
        return {"states": await keeper.keep(tenant, chosen.bucket, chosen.keys, change), "rule": None}
    rule = await keeper.keep_prefix(tenant, chosen.bucket, chosen.prefix, change)
    if change.pin is not None:
        keeper.refresh_soon(tenant, chosen.bucket, chosen.prefix)
    return {"states": [], "rule": _rule(chosen.bucket, rule)}


def change_of_pin(fields: Fields) -> Change:
    """{pin?, pin_s?} as a change. Raises InvalidArgument."""
    pin, pin_s = fields.choice("pin", tuple(PINS)), fields.optional_seconds("pin_s")
    if pin_s is not None and pin in ("", "none"):
        raise InvalidArgument("pin_s: needs `pin` to be hard or soft")
    return Change(
        pin=PINS[pin] if pin else None,
        pin_until_ms=None if pin_s is None else _now_ms() + round(pin_s * 1000),
    )


def _change(fields: Fields) -> Change:
    pin, ttl_s = change_of_pin(fields), fields.optional_seconds("ttl_s")
    if pin.pin is None and ttl_s is None:
        raise InvalidArgument("pin or ttl_s is needed")
    if ttl_s is not None and ttl_s > MAX_TTL_S:
        raise InvalidArgument(f"ttl_s: expected at most {MAX_TTL_S:.0f} seconds")
    ttl_ms = None if ttl_s is None else max(int(ttl_s > 0), round(ttl_s * 1000))
    return Change(pin.pin, pin.pin_until_ms, ttl_ms)


def _retention(context: Context, fields: Fields) -> Members:
    """{} → {pinned_objects, pinned_nbytes, pinned_limit_nbytes, marks, rules}: the caller's own."""
    usage = context.store.keeper.usage(context.tenant.name)
    return {
        "pinned_objects": usage.pinned_objects,
        "pinned_nbytes": usage.pinned_nbytes,
        "pinned_limit_nbytes": usage.pinned_limit_nbytes,
        "marks": usage.marks,
        "rules": [_rule(bucket, rule) for bucket, rule in usage.rules],
    }


def _rule(bucket: str, rule: Rule) -> Members:
    return {
        "bucket": bucket,
        "prefix": rule.prefix,
        "pin": rule.pin.name.lower(),
        "pin_expires_s": None if rule.pin_until_ms is None else max(0.0, (rule.pin_until_ms - _now_ms()) / 1000),
        "ttl_s": None if rule.ttl_ms is None else rule.ttl_ms / 1000,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


retain = Call("Retain", (*FIELDS, "pin", "pin_s", "ttl_s"), _retain)
retention = Call("Retention", (), _retention)
