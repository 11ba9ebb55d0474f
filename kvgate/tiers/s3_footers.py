"""What the S3 store holds of a name: the footer of its object, and the version that it was read from."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from typing import NamedTuple

from kvgate.errors import CorruptCopy
from kvgate.http.deadline import Deadline
from kvgate.tiers.base import Name, Record
from kvgate.tiers.footer import MAX_FOOTER_NBYTES, TAIL_NBYTES, decode_footer, footer_nbytes
from kvgate.tiers.s3_calls import Answer, S3Calls
from kvgate.tiers.s3_keys import object_key

WRITER = "x-amz-meta-kvgate-writer"
"""The header that says which upload an object is from."""

_FIRST_NBYTES = 4096
_MAX_BLOCKS = 1024
_PART_OR_ALL = frozenset({200, 206, 416})


class Found(NamedTuple):
    """An object that ends in a sound footer. `total_nbytes` is its length with that."""

    record: Record
    blocks: array[int]
    etag: str
    total_nbytes: int
    writer: str


class Footers:
    """Asks for footers, and remembers those seen last. For any number of threads."""

    def __init__(self, calls: S3Calls, prefix: str, remembered: int) -> None:
        self._calls = calls
        self._prefix = prefix
        self._remembered = remembered
        self._seen: OrderedDict[Name, Found] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, name: Name) -> str:
        """The key in the bucket."""
        return object_key(self._prefix, name)

    def seen(self, record: Record) -> Found | None:
        """What is remembered of the object with exactly this body."""
        with self._lock:
            found = self._seen.get(Name(*record[:3]))
            if found is None or not found.record.same_body(record):
                return None
            self._seen.move_to_end(Name(*record[:3]))
            return found

    def remember(self, found: Found) -> None:
        """Take note of an object, in place of the one that was seen longest ago. Very large ones are not kept."""
        if len(found.blocks) > _MAX_BLOCKS:
            return
        with self._lock:
            self._seen[Name(*found.record[:3])] = found
            self._seen.move_to_end(Name(*found.record[:3]))
            while len(self._seen) > self._remembered:
                self._seen.popitem(last=False)

    def forget(self, name: Name) -> None:
        """Ask the store the next time."""
        with self._lock:
            self._seen.pop(name, None)

    def look(self, name: Name, scope: Deadline) -> Found:
        """The object of a name. Blocks.

        Raises NotInTier; CorruptEtag when what is there is not whole, or another object's; TierError.
        """
        self.forget(name)
        key = self.key(name)
        tail, span_nbytes, answer = self._read(key, f"bytes=-{_FIRST_NBYTES}", {}, scope)
        try:
            length = footer_nbytes(tail, span_nbytes)
            if length > len(tail):
                pin = {"if-match": answer.etag} if answer.etag else {}
                first = f"bytes={span_nbytes - length}-{span_nbytes - 1}"
                tail, again_nbytes, _ = self._read(key, first, pin, scope)
                if (len(tail), again_nbytes) != (length, span_nbytes):
                    raise CorruptCopy("the object in the S3 store changed while its footer was read")
            record, blocks = decode_footer(tail[-length:], span_nbytes)
            if record[:3] != name:
                raise CorruptCopy("the object in the S3 store is another one's")
        except CorruptCopy as error:
            raise CorruptEtag(str(error), answer.etag) from error
        found = Found(record, blocks, answer.etag, span_nbytes, answer.headers.get(WRITER))
        self.remember(found)
        return found

    def _read(self, key: str, span: str, pin: dict[str, str], scope: Deadline) -> tuple[bytes, int, Answer]:
        """The bytes of a range at the end, and how long the object is."""
        with self._calls.ask("GET", key, scope, headers={"range": span, **pin}, accept=_PART_OR_ALL) as answer:
            if answer.status == 416:  # a range at the end of nothing
                answer.document()
                return b"", 0, answer
            start, stop, total = answer.span
            if stop != total or stop - start > MAX_FOOTER_NBYTES + TAIL_NBYTES:
                raise CorruptCopy("the S3 store sends other bytes than it was asked for")
            body = bytearray(stop - start)
            answer.fill(memoryview(body))
            return bytes(body), total, answer


class CorruptEtag(CorruptCopy):
    """As CorruptCopy; `etag` is of the version that is corrupt."""

    def __init__(self, message: str, etag: str) -> None:
        super().__init__(message)
        self.etag = etag
