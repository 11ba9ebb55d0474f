"""Conditional requests, with the precedence of RFC 9110, section 13.2.2, which S3 shares.

A date that is not an HTTP date is ignored, as the RFC asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from kvgate.errors import NoSuchKey, NotModified, PreconditionFailed
from kvgate.messages import Headers

if TYPE_CHECKING:
    from kvgate.store.store import Store
    from kvgate.tiers.base import Record

COPY_SOURCE_PREFIX = "x-amz-copy-source-"
COPY_SOURCE_HEADERS = frozenset(
    COPY_SOURCE_PREFIX + name for name in ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
)
"""The conditions of a copy on its source."""

_HEADERS = frozenset({"if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"})


@dataclass(frozen=True, slots=True)
class Conditions:
    """What must hold of the current object for a request to be carried out. Dates are seconds since the epoch."""

    if_match: tuple[str, ...] = ()
    if_none_match: tuple[str, ...] = ()
    if_modified_since: int | None = None
    if_unmodified_since: int | None = None
    if_range: str = ""

    @classmethod
    def parse(cls, headers: Headers) -> Conditions:
        """The conditions among a request's headers; UNCONDITIONAL itself where there are none."""
        if not headers.has_any(_HEADERS):
            return UNCONDITIONAL
        return cls(
            if_match=_entity_tags(headers.getall("if-match")),
            if_none_match=_entity_tags(headers.getall("if-none-match")),
            if_modified_since=_seconds(headers.get("if-modified-since")),
            if_unmodified_since=_seconds(headers.get("if-unmodified-since")),
            if_range=headers.get("if-range").strip(),
        )

    @classmethod
    def parse_copy_source(cls, headers: Headers) -> Conditions:
        """What must hold of the source of a copy."""
        found = [(name, value) for name in COPY_SOURCE_HEADERS for value in headers.getall(name)]
        return cls.parse(Headers((name.removeprefix(COPY_SOURCE_PREFIX), value) for name, value in found))

    def check_read(self, record: Record) -> None:
        """Raises PreconditionFailed, or NotModified when the caller has the current object already."""
        self._check_unchanged(record)
        if self.if_none_match:
            if _matches(self.if_none_match, record.etag, weakly=True):
                raise NotModified("the object is the one that If-None-Match names")
        elif self.if_modified_since is not None and record.mtime_ms // 1000 <= self.if_modified_since:
            raise NotModified("the object has not been modified since If-Modified-Since")

    def check_copy_source(self, record: Record) -> None:
        """Raises PreconditionFailed, whichever condition does not hold, as S3 does."""
        try:
            self.check_read(record)
        except PreconditionFailed as error:
            raise PreconditionFailed(COPY_SOURCE_PREFIX + error.condition) from None
        except NotModified:
            condition = "If-None-Match" if self.if_none_match else "If-Modified-Since"
            raise PreconditionFailed(COPY_SOURCE_PREFIX + condition) from None

    def for_write(self) -> Callable[[Record | None], None] | None:
        """What a write or delete must hold against the current object in the same step; None for nothing."""
        if self.if_match or self.if_none_match or self.if_unmodified_since is not None:
            return self.check_write
        return None

    def check_early(self, store: Store, tenant: str, bucket: str, key: str) -> None:
        """What `for_write` would refuse as things are, to save the transfer. Raises as `check_write`, NoSuchBucket."""
        if self.for_write() is None:
            return
        try:
            record = store.stat(tenant, bucket, key)
        except NoSuchKey:
            self.check_write(None)
        else:
            self.check_write(record)

    def check_write(self, record: Record | None) -> None:
        """Raises PreconditionFailed, or NoSuchKey for an If-Match where there is no object, as S3 does."""
        if record is None:
            if self.if_match:
                raise NoSuchKey("If-Match names an object that does not exist")
            return
        self._check_unchanged(record)
        if self.if_none_match and _matches(self.if_none_match, record.etag, weakly=True):
            raise PreconditionFailed("If-None-Match")

    def range_applies(self, record: Record) -> bool:
        """Whether a Range is to be honoured: without If-Range, or when it names the current object."""
        if not self.if_range:
            return True
        if self.if_range.startswith(('"', "W/")):
            return self.if_range == f'"{record.etag}"'
        return _seconds(self.if_range) == record.mtime_ms // 1000

    def _check_unchanged(self, record: Record) -> None:
        if self.if_match:
            if not _matches(self.if_match, record.etag, weakly=False):
                raise PreconditionFailed("If-Match")
        elif self.if_unmodified_since is not None and record.mtime_ms // 1000 > self.if_unmodified_since:
            raise PreconditionFailed("If-Unmodified-Since")


UNCONDITIONAL = Conditions()


def _entity_tags(values: list[str]) -> tuple[str, ...]:
    """The tags of a list, unquoted as clients often send them; a weak one keeps its `W/`."""
    tags = [tag.strip() for tag in ",".join(values).split(",")]
    return tuple([("W/" if tag.startswith("W/") else "") + tag.removeprefix("W/").strip('"') for tag in tags if tag])


def _matches(tags: tuple[str, ...], etag: str, *, weakly: bool) -> bool:
    return "*" in tags or etag in tags or (weakly and f"W/{etag}" in tags)


def _seconds(date: str) -> int | None:
    if not date:
        return None
    try:
        moment = parsedate_to_datetime(date)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None
