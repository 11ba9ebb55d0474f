"""What the operations that list objects have in common: the parameters, and how entries are written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from kvgate.chunk.key import MAX_KEY_NBYTES
from kvgate.errors import InvalidArgument

if TYPE_CHECKING:
    from kvgate.store.index import Listing
    from kvgate.store.store import Store

MAX_KEYS = 1000
PARAMETERS = frozenset({"prefix", "delimiter", "max-keys", "encoding-type"})

_COUNT = re.compile(r"[0-9]{1,10}")

Entry = tuple[str, "str | int | bool | list[Entry]"]


@dataclass(frozen=True, slots=True)
class Page:
    """Which page of which listing, and how its keys are to be written."""

    prefix: str
    delimiter: str
    max_keys: int
    url_encoded: bool

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Page:
        """Raises InvalidArgument."""
        encoding = query.get("encoding-type", "")
        if encoding not in ("", "url"):
            raise InvalidArgument("encoding-type must be 'url'")
        if len(query.get("prefix", "").encode()) > MAX_KEY_NBYTES:
            raise InvalidArgument(f"prefix is over {MAX_KEY_NBYTES} bytes, and no key is that long")
        return cls(
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            max_keys=count_of(query, "max-keys", MAX_KEYS),
            url_encoded=encoding == "url",
        )

    def fetch(self, store: Store, tenant: str, bucket: str, after: str) -> Listing | None:
        """The entries after `after`; None when none are wanted. Raises NoSuchBucket."""
        if not self.max_keys:
            store.buckets.get(tenant, bucket)
            return None
        return store.list(
            tenant, bucket, prefix=self.prefix, delimiter=self.delimiter, after=after, limit=self.max_keys
        )

    def text(self, key: str) -> str:
        """A key, prefix or delimiter as the caller wants it written."""
        return quote(key, safe="/") if self.url_encoded else key

    def head(self, bucket: str) -> list[Entry]:
        """The elements that repeat the request."""
        entries: list[Entry] = [
            ("Name", bucket),
            ("Prefix", self.text(self.prefix)),
            ("MaxKeys", self.max_keys),
        ]
        if self.delimiter:
            entries.append(("Delimiter", self.text(self.delimiter)))
        if self.url_encoded:
            entries.append(("EncodingType", "url"))
        return entries

    def contents(
        self, listing: Listing | None, owner: str, *, tag: str = "Contents", version: Sequence[Entry] = ()
    ) -> list[Entry]:
        """The elements of the objects, and the CommonPrefixes; with an `owner`, every object names it.

        tag, version: of an object's element, and what else it says first
        """
        if listing is None:
            return []
        entries: list[Entry] = []
        for record in listing.records:
            item: list[Entry] = [
                ("Key", self.text(record.key)),
                *version,
                ("LastModified", iso_date(record.mtime_ms)),
                ("ETag", f'"{record.etag}"'),
                ("Size", record.nbytes),
                ("StorageClass", "STANDARD"),
            ]
            if owner:
                item.append(owner_entry(owner))
            entries.append((tag, item))
        entries += [("CommonPrefixes", [("Prefix", self.text(prefix))]) for prefix in listing.prefixes]
        return entries


def owner_entry(tenant: str) -> Entry:
    """The Owner element: tenants are the owners here."""
    return ("Owner", [("ID", tenant), ("DisplayName", tenant)])


def iso_date(ms: int) -> str:
    """A moment as S3 writes it in XML: UTC, with milliseconds."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def count_of(query: Mapping[str, str], name: str, most: int) -> int:
    """A number of entries, cut to `most`, which is also the default. Raises InvalidArgument."""
    text = query.get(name, "")
    if not text:
        return most
    if not _COUNT.fullmatch(text):
        raise InvalidArgument(f"{name} must be a number, 0 or more")
    return min(int(text), most)
