"""https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.form_call import REDIRECT, STATUS
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.operations.put_object import PutObjectInput, put_object
from kvgate.s3.xml import document

_URL = re.compile(r"https?://[!-~]+")


@dataclass(frozen=True, slots=True)
class PostObjectInput:
    """A PutObject, and how to answer.

    location: the path of the object
    status:   what the form asks for; anything but 200 and 201 is 204
    redirect: where to send the browser; empty for nowhere
    """

    put: PutObjectInput
    location: str
    status: str
    redirect: str

    @classmethod
    def parse(cls, call: Call) -> PostObjectInput:
        """Of the call that a form stands for. Raises what PutObjectInput.parse raises."""
        location = f"{call.request.raw_path.rstrip('/')}/{quote(call.key)}"
        return cls(PutObjectInput.parse(call), location, call.headers.get(STATUS), call.headers.get(REDIRECT))


async def post_object(context: Context, input: PostObjectInput) -> Response:
    """Store the file of a form as PutObject does, and answer as the form asks."""
    stored = await put_object(context, input.put)
    bucket, key, etag = input.put.bucket, input.put.key, stored.headers["ETag"]
    headers = stored.headers | {"Location": input.location}
    if target := _redirect(input.redirect, bucket, key, etag):
        return Response(303, headers | {"Location": target})
    if input.status != "201":
        return Response(200 if input.status == "200" else 204, headers)
    content = document(
        "PostResponse",
        [("Location", input.location), ("Bucket", bucket), ("Key", key), ("ETag", etag)],
        namespace="",
    )
    return Response(201, headers | {"Content-Type": "application/xml"}, content)


def _redirect(url: str, bucket: str, key: str, etag: str) -> str:
    """The address to send the browser to; empty for what is none of the web, which S3 ignores."""
    try:
        parts = urlsplit(url if _URL.fullmatch(url) else "")
    except ValueError:
        return ""
    if not parts.netloc:
        return ""
    query = urlencode({"bucket": bucket, "key": key, "etag": etag}, quote_via=quote)
    return parts._replace(query=f"{parts.query}&{query}" if parts.query else query).geturl()


operation = Operation("PostObject", PostObjectInput.parse, post_object, action="PutObject", form=True)
