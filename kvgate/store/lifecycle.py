"""Lifecycle rules of a bucket: when its objects expire, and when unfinished uploads are aborted. Pure decisions.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lifecycle-mgmt.html

A moment is exact, not rounded up to the next midnight as with S3. A day is `day_s` seconds, so that a rule can be
watched at work.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from urllib.parse import parse_qsl

from kvgate.tiers.base import Record

TAGS = "x-amz-tagging"
"""The attribute of a record with its tags, as a query."""


SETTING = "lifecycle"
"""By which the store keeps the rules of a bucket."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: which objects it is about, and what becomes of them.

    tags:              all of which an object must have
    larger_than:       bytes that an object must have more than
    smaller_than:      bytes that an object must have fewer than
    days:              age in days at which an object expires
    date_ms:           moment since the epoch from which on every object is expired, later ones too
    abort_upload_days: age in days at which an unfinished upload is aborted
    """

    id: str
    enabled: bool
    prefix: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    larger_than: int | None = None
    smaller_than: int | None = None
    days: int | None = None
    date_ms: int | None = None
    abort_upload_days: int | None = None


def applies(rule: Rule, record: Record) -> bool:
    """Whether an enabled rule is about an object."""
    return (
        rule.enabled
        and record.key.startswith(rule.prefix)
        and (rule.larger_than is None or record.nbytes > rule.larger_than)
        and (rule.smaller_than is None or record.nbytes < rule.smaller_than)
        and (not rule.tags or set(rule.tags) <= _tags_of(record))
    )


def expires_ms(rule: Rule, record: Record, day_s: float) -> int | None:
    """The moment since the epoch at which a rule makes an object expire; None if it does not."""
    if (rule.days is None and rule.date_ms is None) or not applies(rule, record):
        return None
    if rule.days is not None:
        return record.mtime_ms + round(rule.days * day_s * 1000)
    return rule.date_ms


def first_expiry(rules: Iterable[Rule], record: Record, day_s: float) -> tuple[int, str] | None:
    """The earliest moment at which an object expires, and the id of the rule that says so; None if none does."""
    moments = [(moment, rule.id) for rule in rules if (moment := expires_ms(rule, record, day_s)) is not None]
    return min(moments, default=None, key=lambda each: each[0])


def due(rules: Iterable[Rule], record: Record, now_ms: int, day_s: float) -> bool:
    """Whether an object has expired by now."""
    first = first_expiry(rules, record, day_s)
    return first is not None and first[0] <= now_ms


def upload_due(rules: Iterable[Rule], key: str, initiated_ms: int, now_ms: int, day_s: float) -> bool:
    """Whether an upload of `key` that is still unfinished is to be aborted by now."""
    return any(
        rule.enabled
        and rule.abort_upload_days is not None
        and key.startswith(rule.prefix)
        and initiated_ms + round(rule.abort_upload_days * day_s * 1000) <= now_ms
        for rule in rules
    )


def dumps(rules: Iterable[Rule]) -> str:
    """Rules as JSON, which `loads` reads."""
    return json.dumps([asdict(rule) for rule in rules])


def loads(text: str) -> tuple[Rule, ...]:
    """The rules that `dumps` wrote."""
    return tuple(
        Rule(**members | {"tags": tuple((key, value) for key, value in members["tags"])})
        for members in json.loads(text)
    )


def _tags_of(record: Record) -> set[tuple[str, str]]:
    return set(parse_qsl(record.attributes.get(TAGS, ""), keep_blank_values=True))
