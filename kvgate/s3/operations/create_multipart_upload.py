"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.part_checksums import PartChecksums
from kvgate.s3.representation import ANNOTATIONS, attributes_of
from kvgate.s3.xml import document


@dataclass(frozen=True, slots=True)
class CreateMultipartUploadInput:
    """`attributes` are the headers to store with the object."""

    bucket: str
    key: str
    attributes: Mapping[str, str]
    checksums: PartChecksums

    @classmethod
    def parse(cls, call: Call) -> CreateMultipartUploadInput:
        """Raises InvalidArgument, InvalidRequest, HeadersTooLarge."""
        return cls(call.bucket, call.key, attributes_of(call.headers), PartChecksums.parse(call.headers))


async def create_multipart_upload(context: Context, input: CreateMultipartUploadInput) -> Response:
    """Begin an upload. What is wrong with the key is said here, before a byte is sent."""
    headers = input.checksums.headers
    attributes = {**input.attributes, **headers}
    upload = await context.store.multipart.create(context.tenant, input.bucket, input.key, attributes)
    body = document(
        "InitiateMultipartUploadResult",
        [("Bucket", upload.bucket), ("Key", upload.key), ("UploadId", upload.id)],
    )
    return Response(headers={"Content-Type": "application/xml", **headers}, body=body)


operation = Operation(
    "CreateMultipartUpload",
    CreateMultipartUploadInput.parse,
    create_multipart_upload,
    headers=ANNOTATIONS,
    action="PutObject",
)
