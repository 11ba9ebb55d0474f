"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.messages import Headers, Response
from kvgate.s3.body import PayloadReader
from kvgate.s3.call import Call
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.part_checksums import PartChecksums
from kvgate.s3.parts import part_number


@dataclass(frozen=True, slots=True)
class UploadPartInput:
    """`headers` say which checksum comes with the body."""

    bucket: str
    key: str
    upload_id: str
    number: int
    headers: Headers
    body: PayloadReader

    @classmethod
    def parse(cls, call: Call) -> UploadPartInput:
        """Raises InvalidArgument, InvalidRequest, UnsupportedOperation."""
        return cls(
            bucket=call.bucket,
            key=call.key,
            upload_id=call.query["uploadId"],
            number=part_number(call.query.get("partNumber", "")),
            headers=call.headers,
            body=call.payload(),
        )


async def upload_part(context: Context, input: UploadPartInput) -> Response:
    """Store a part, received and verified as an object is; an earlier one of its number is replaced."""
    multipart, body = context.store.multipart, input.body
    upload = multipart.get(context.tenant.name, input.bucket, input.key, input.upload_id)
    PartChecksums.parse(upload.attributes).check_part(input.headers)
    async with await multipart.open_part(context.tenant, upload, input.number, body.nbytes) as write:
        while body.left != 0 and await body.fill(await write.views(), write.digest):
            write.advance()
        await body.finish(write.crc64nvme)
        record = await write.commit(body.checksums, multipart.while_open(upload))
    return Response(headers={"ETag": f'"{record.etag}"', **record.attributes})


operation = Operation("UploadPart", UploadPartInput.parse, upload_part, frozenset({"partNumber"}), action="PutObject")
