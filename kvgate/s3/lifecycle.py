"""Lifecycle rules as S3 reads and writes them.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/intro-lifecycle-rules.html

Objects expire and unfinished uploads are aborted; there are no versions and no storage classes to move between.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from kvgate.errors import InvalidArgument, InvalidRequest, InvalidTag, MalformedXML
from kvgate.s3.elements import Fields
from kvgate.s3.listing import iso_date
from kvgate.s3.tagging import MAX_OBJECT_TAGS, checked_tags
from kvgate.s3.xml import Children, document, parse
from kvgate.store.lifecycle import Rule

MAX_RULES = 1000
MAX_BODY_NBYTES = 2 << 20
MAX_ID_CHARS = 255

_MAX_ELEMENTS = MAX_RULES * 64
_PREDICATES = ("Prefix", "Tag", "ObjectSizeGreaterThan", "ObjectSizeLessThan")
_UNSUPPORTED = ("Transition", "NoncurrentVersionTransition", "NoncurrentVersionExpiration")
_NUMBER = re.compile(r"[0-9]{1,18}")
_DAY_S = 86_400


class _Filter(NamedTuple):
    """Which objects a rule is about, as in `Rule`."""

    prefix: str
    tags: tuple[tuple[str, str], ...] = ()
    larger_than: int | None = None
    smaller_than: int | None = None


def parse_lifecycle(body: bytes) -> tuple[Rule, ...]:
    """The rules of a LifecycleConfiguration document, in order; one without an ID is given one.

    Raises MalformedXML, InvalidArgument, InvalidRequest, or UnsupportedOperation naming an element of S3 that is not
    offered.
    """
    root = Fields(parse(body, "LifecycleConfiguration", _MAX_ELEMENTS), many=["Rule"])
    elements = root.all("Rule")
    if not 1 <= len(elements) <= MAX_RULES:
        raise MalformedXML(f"a LifecycleConfiguration has 1 to {MAX_RULES} rules, not {len(elements)}")
    rules = [
        Fields(
            element,
            once=["ID", "Status", "Prefix", "Filter", "Expiration", "AbortIncompleteMultipartUpload"],
            unsupported=_UNSUPPORTED,
        )
        for element in elements
    ]
    return tuple(_parse_rule(rule, id) for rule, id in zip(rules, _ids_of(rules), strict=True))


def render_lifecycle(rules: Iterable[Rule]) -> bytes:
    """The LifecycleConfiguration document of rules."""
    return document("LifecycleConfiguration", [("Rule", _render_rule(rule)) for rule in rules])


def _ids_of(rules: list[Fields]) -> list[str]:
    """The ID of each rule. One without is named by its place, in a way that no other rule is named."""
    given = [rule.text("ID") if "ID" in rule else "" for rule in rules]
    taken = {id for id in given if id}
    if len(taken) < len([id for id in given if id]):
        raise InvalidArgument("the ID of a rule must be its own; two rules have the same")
    ids = []
    for place, id in enumerate(given, 1):
        if len(id) > MAX_ID_CHARS:
            raise InvalidArgument(f"the ID of a rule has at most {MAX_ID_CHARS} characters, not {len(id)}")
        number = place
        while not id and f"rule-{number}" in taken:
            number += MAX_RULES
        ids.append(id or f"rule-{number}")
    return ids


def _parse_rule(rule: Fields, id: str) -> Rule:
    status = rule.word("Status")
    if status not in ("Enabled", "Disabled"):
        raise MalformedXML(f"the Status of a rule is Enabled or Disabled, not {status[:64]!r}")
    if ("Prefix" in rule) is ("Filter" in rule):
        raise MalformedXML("a rule needs a Filter, or in its place a Prefix")
    filter = _parse_filter(rule.one("Filter")) if "Filter" in rule else _Filter(rule.text("Prefix"))
    days, date_ms = _parse_expiration(rule.one("Expiration")) if "Expiration" in rule else (None, None)
    abort_upload_days = None
    if "AbortIncompleteMultipartUpload" in rule:
        if filter != _Filter(filter.prefix):
            raise InvalidRequest("AbortIncompleteMultipartUpload cannot be in a rule with a filter by tag or size")
        abort = Fields(rule.one("AbortIncompleteMultipartUpload"), once=["DaysAfterInitiation"])
        abort_upload_days = _days(abort, "DaysAfterInitiation")
    elif "Expiration" not in rule:
        raise InvalidRequest("a rule needs an action: Expiration or AbortIncompleteMultipartUpload")
    return Rule(
        id=id,
        enabled=status == "Enabled",
        prefix=filter.prefix,
        tags=filter.tags,
        larger_than=filter.larger_than,
        smaller_than=filter.smaller_than,
        days=days,
        date_ms=date_ms,
        abort_upload_days=abort_upload_days,
    )


def _parse_filter(element: ET.Element) -> _Filter:
    """What a Filter says. An empty one is about every object."""
    found = Fields(element, once=[*_PREDICATES, "And"])
    if len(found) > 1:
        raise MalformedXML(f"a Filter holds one element; several go into an <And>, got {len(found)}")
    if "And" in found:
        found = Fields(found.one("And"), once=[name for name in _PREDICATES if name != "Tag"], many=["Tag"])
        if not len(found):
            raise MalformedXML("an <And> needs an element")
    pairs = [Fields(tag, once=["Key", "Value"]) for tag in found.all("Tag")]
    try:
        tags = checked_tags([(pair.text("Key"), pair.text("Value")) for pair in pairs], MAX_OBJECT_TAGS)
    except InvalidTag as error:
        raise InvalidRequest(f"the Filter of a rule: {error}") from None
    larger_than = _number(found, "ObjectSizeGreaterThan") if "ObjectSizeGreaterThan" in found else None
    smaller_than = _number(found, "ObjectSizeLessThan") if "ObjectSizeLessThan" in found else None
    if larger_than is not None and smaller_than is not None and larger_than + 1 >= smaller_than:
        raise InvalidRequest("no object is both larger than ObjectSizeGreaterThan and smaller than ObjectSizeLessThan")
    if smaller_than == 0:
        raise InvalidRequest("no object is smaller than an ObjectSizeLessThan of 0")
    prefix = found.text("Prefix") if "Prefix" in found else ""
    return _Filter(prefix, tuple(tags.items()), larger_than, smaller_than)


def _parse_expiration(element: ET.Element) -> tuple[int | None, int | None]:
    """Days and the date of an Expiration, one of which is None."""
    found = Fields(element, once=["Days", "Date"], unsupported=["ExpiredObjectDeleteMarker"])
    if len(found) != 1:
        raise MalformedXML("an Expiration holds Days or Date, and not both")
    if "Days" in found:
        return _days(found, "Days"), None
    text = found.word("Date")
    try:
        date = datetime.fromisoformat(text)
        date_s = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise MalformedXML(
            f"Date: expected a date of ISO 8601, such as 2030-01-31T00:00:00Z, got {text[:64]!r}"
        ) from None
    if date_s < 0 or date_s % _DAY_S:
        raise InvalidArgument(f"Date must be at midnight UTC, from 1970 on; got {text[:64]!r}")
    return None, int(date_s) * 1000


def _days(fields: Fields, tag: str) -> int:
    days = _number(fields, tag)
    if not 1 <= days < 1 << 31:
        raise InvalidArgument(f"{tag} must be a positive number of days, less than 2^31; got {days}")
    return days


def _number(fields: Fields, tag: str) -> int:
    text = fields.word(tag)
    if text.startswith("-") and _NUMBER.fullmatch(text[1:]):
        raise InvalidArgument(f"{tag} must be positive, got {text}")
    if not _NUMBER.fullmatch(text):
        raise MalformedXML(f"{tag}: expected a whole number, got {text[:64]!r}")
    return int(text)


def _render_rule(rule: Rule) -> Children:
    predicates: list[tuple[str, str | int | Children]] = [("Prefix", rule.prefix)] if rule.prefix else []
    predicates += [("Tag", [("Key", key), ("Value", value)]) for key, value in rule.tags]
    if rule.larger_than is not None:
        predicates.append(("ObjectSizeGreaterThan", rule.larger_than))
    if rule.smaller_than is not None:
        predicates.append(("ObjectSizeLessThan", rule.smaller_than))
    several: list[tuple[str, str | int | Children]] = [("And", predicates)]
    elements: list[tuple[str, str | int | Children]] = [
        ("ID", rule.id),
        ("Filter", (several if len(predicates) > 1 else predicates) or [("Prefix", "")]),
        ("Status", "Enabled" if rule.enabled else "Disabled"),
    ]
    if rule.days is not None:
        elements.append(("Expiration", [("Days", rule.days)]))
    if rule.date_ms is not None:
        elements.append(("Expiration", [("Date", iso_date(rule.date_ms))]))
    if rule.abort_upload_days is not None:
        elements.append(("AbortIncompleteMultipartUpload", [("DaysAfterInitiation", rule.abort_upload_days)]))
    return elements
