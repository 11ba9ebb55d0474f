"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.operations.base import Context, Operation


@dataclass(frozen=True, slots=True)
class AbortMultipartUploadInput:
    bucket: str
    key: str
    upload_id: str

    @classmethod
    def parse(cls, call: Call) -> AbortMultipartUploadInput:
        return cls(call.bucket, call.key, call.query["uploadId"])


async def abort_multipart_upload(context: Context, input: AbortMultipartUploadInput) -> Response:
    """End an upload and delete its parts. Raises NoSuchUpload."""
    multipart = context.store.multipart
    await multipart.abort(multipart.get(context.tenant.name, input.bucket, input.key, input.upload_id))
    return Response(204)


operation = Operation("AbortMultipartUpload", AbortMultipartUploadInput.parse, abort_multipart_upload)
