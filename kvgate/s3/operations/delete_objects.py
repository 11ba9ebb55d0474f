"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html"""

from __future__ import annotations

import asyncio
import logging
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kvgate.error_table import INTERNAL, message_of, row_of
from kvgate.errors import KVGateError, MalformedXML, NoSuchBucket, UnsupportedOperation
from kvgate.messages import Response
from kvgate.s3.body import PayloadReader
from kvgate.s3.call import Call
from kvgate.s3.conditions import Conditions
from kvgate.s3.listing import Entry
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.versions import PARAMETER, check_version
from kvgate.s3.xml import document, parse

log = logging.getLogger(__name__)

MAX_OBJECTS = 1000
MAX_BODY_NBYTES = 8 << 20
"""Room for 1,000 keys of 1,024 bytes, each byte escaped."""


@dataclass(frozen=True, slots=True)
class DeleteObjectsInput:
    """`deletions` is the body, a Delete document."""

    bucket: str
    deletions: PayloadReader

    @classmethod
    def parse(cls, call: Call) -> DeleteObjectsInput:
        return cls(call.bucket, call.payload())


@dataclass(frozen=True, slots=True)
class Deletion:
    """One key to delete. `unsupported` names an element of it that is not offered; `version` is empty if not given."""

    key: str
    conditions: Conditions
    version: str = ""
    unsupported: str = ""

    @property
    def name(self) -> list[Entry]:
        """The elements that name it in the answer."""
        return [("Key", self.key), *([("VersionId", self.version)] if self.version else [])]


async def delete_objects(context: Context, input: DeleteObjectsInput) -> Response:
    """Delete up to 1,000 keys, each on its own: one that fails is reported and does not stop the others."""
    content = await input.deletions.read_all(MAX_BODY_NBYTES)
    deletions, quiet = await asyncio.to_thread(parse_deletions, content)
    context.store.buckets.get(context.tenant.name, input.bucket)
    entries: list[Entry] = []
    for deletion in deletions:
        try:
            if deletion.unsupported:
                raise UnsupportedOperation(f"{deletion.unsupported} of an object to delete is not offered")
            await asyncio.sleep(0)
            query = {PARAMETER: deletion.version} if deletion.version else {}
            context.access.check(context.tenant, input.bucket, deletion.key, "s3:DeleteObject", query)
            check_version(query)
            await context.store.delete(context.tenant.name, input.bucket, deletion.key, deletion.conditions.for_write())
        except NoSuchBucket:
            raise
        except KVGateError as error:
            row = row_of(error)
            if row is INTERNAL:
                log.exception("could not delete an object")
            entries.append(("Error", [*deletion.name, ("Code", row.code), ("Message", message_of(error))]))
        else:
            if not quiet:
                entries.append(("Deleted", deletion.name))
    body = document("DeleteResult", entries)
    return Response(headers={"Content-Type": "application/xml"}, body=body)


def parse_deletions(content: bytes) -> tuple[list[Deletion], bool]:
    """The keys of a Delete document, and whether successes go unreported. Raises MalformedXML."""
    root = parse(content, "Delete")
    deletions = [_parse_object(element) for element in root if element.tag == "Object"]
    if not 1 <= len(deletions) <= MAX_OBJECTS:
        raise MalformedXML(f"a Delete document has 1 to {MAX_OBJECTS} objects, not {len(deletions)}")
    return deletions, (root.findtext("Quiet") or "").strip().lower() == "true"


def _parse_object(element: ET.Element) -> Deletion:
    key = element.findtext("Key")
    if not key:
        raise MalformedXML("an Object to delete needs a Key")
    etag = element.findtext("ETag")
    unsupported = ""
    for child in element:
        if child.tag not in ("Key", "ETag", "VersionId"):
            unsupported = child.tag[:64]
    conditions = Conditions(if_match=(etag.strip().strip('"'),) if etag else ())
    return Deletion(key, conditions, (element.findtext("VersionId") or "").strip(), unsupported)


operation = Operation("DeleteObjects", DeleteObjectsInput.parse, delete_objects, action="DeleteObject")
