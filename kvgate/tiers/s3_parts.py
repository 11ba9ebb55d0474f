"""Multipart upload: an object in parts that some threads send side by side, and uploads that nobody will end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from kvgate.errors import TierError
from kvgate.http.deadline import Deadline
from kvgate.memory.lease import Lease
from kvgate.tiers.s3_body import Body
from kvgate.tiers.s3_calls import S3Calls, local_name, parse_document, text_of

if TYPE_CHECKING:
    from kvgate.tiers.s3 import S3Tier

logger = logging.getLogger(__name__)

MAX_PARTS = 10_000
_GONE = frozenset({200, 204, 404})
_PATIENCE_S = 10.0
_MAX_PAGES = 1000
_WHOLE = {"x-amz-checksum-algorithm": "CRC64NVME", "x-amz-checksum-type": "FULL_OBJECT"}


class PartsUpload:
    """One object in parts."""

    def __init__(self, tier: S3Tier, body: Body, headers: dict[str, str]) -> None:
        """headers: of the object"""
        self._tier = tier
        self._body = body
        self._headers = headers
        self._key = tier.footers.key(body.name)
        parts = body.parts(tier.part_nbytes, MAX_PARTS)
        self._waiting = deque(enumerate(parts, 1))
        self._etags = [""] * len(parts)
        self._upload_id = ""
        self._sending = 0
        self._lock = threading.Lock()

    async def send(self, leases: Sequence[Lease], condition: dict[str, str]) -> str:
        """Send all parts and complete the object under `condition`; its entity tag. Raises TierError.

        leases: hold the body's memory
        """
        tier = self._tier
        try:
            await tier.in_thread((), self._create)
            await tier.in_threads(leases, min(len(self._waiting), tier.parallel), self._send)
            return await tier.in_thread((), self._complete, condition)
        except BaseException:
            if self._upload_id:
                tier.spawn(tier.in_thread((), self._abort))
            raise

    def _create(self, scope: Deadline) -> None:
        _, body = self._tier.calls.call("POST", self._key, scope, query={"uploads": ""}, headers=self._headers | _WHOLE)
        self._upload_id = text_of(parse_document(body), "UploadId")
        if not self._upload_id:
            raise TierError("the S3 store begins a multipart upload without saying which")

    def _send(self, scope: Deadline) -> None:
        with self._lock:
            self._sending += 1
        try:
            while True:
                try:
                    number, (start, stop) = self._waiting.popleft()
                except IndexError:
                    return
                answered, _ = self._tier.calls.call(
                    "PUT",
                    self._key,
                    scope,
                    query={"partNumber": str(number), "uploadId": self._upload_id},
                    views=self._body.views(start, stop),
                    crc=self._body.crc(start, stop),
                )
                self._etags[number - 1] = answered.get("etag")
        finally:
            with self._lock:
                self._sending -= 1

    def _complete(self, condition: dict[str, str], scope: Deadline) -> str:
        parts = [
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(self._etags, 1)
        ]
        namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
        document = f'<CompleteMultipartUpload xmlns="{namespace}">{"".join(parts)}</CompleteMultipartUpload>'
        _, body = self._tier.calls.call(
            "POST",
            self._key,
            scope,
            query={"uploadId": self._upload_id},
            headers={"content-type": "application/xml", **condition},
            views=[memoryview(document.encode())],
        )
        etag = text_of(parse_document(body), "ETag")
        self._upload_id = ""
        return etag

    def _abort(self, scope: Deadline) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while self._sending and time.monotonic() < deadline:  # a part that comes after the abort would stay
            time.sleep(0.01)
        abort(self._tier.calls, self._key, self._upload_id, scope)


def abort(calls: S3Calls, key: str, upload_id: str, scope: Deadline) -> None:
    """Give up an upload and its parts. Blocks. Idempotent. Raises TierError."""
    calls.call("DELETE", key, scope, query={"uploadId": upload_id}, accept=_GONE)


def abort_old(calls: S3Calls, prefix: str, older_than_s: float, scope: Deadline) -> int:
    """Abort the uploads under `prefix` that began so long ago; how many. Blocks. Raises TierError."""
    count, marker = 0, {"key-marker": "", "upload-id-marker": ""}
    for _ in range(_MAX_PAGES):
        query = {"uploads": "", "prefix": prefix, **{name: value for name, value in marker.items() if value}}
        _, body = calls.call("GET", "", scope, query=query)
        page = parse_document(body)
        for upload in [element for element in page if local_name(element) == "Upload"]:
            key, upload_id = text_of(upload, "Key"), text_of(upload, "UploadId")
            if key.startswith(prefix) and age_s(text_of(upload, "Initiated")) > older_than_s:
                abort(calls, key, upload_id, scope)
                count += 1
        following = {
            "key-marker": text_of(page, "NextKeyMarker"),
            "upload-id-marker": text_of(page, "NextUploadIdMarker"),
        }
        if text_of(page, "IsTruncated") != "true" or following == marker:
            break
        marker = following
    return count


def age_s(initiated: str) -> float:
    """How long ago a time of S3's was; 0 for one that cannot be read."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(initiated)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
