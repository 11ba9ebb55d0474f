"""Errors as S3 clients see them: XML documents by the table of `kvgate.error_table`."""

from __future__ import annotations

import logging

from kvgate import errors
from kvgate.error_table import INTERNAL, message_of, retry_after, row_of
from kvgate.messages import Response
from kvgate.s3.xml import document, legible

log = logging.getLogger(__name__)


def error_response(error: Exception, *, method: str, resource: str, request_id: str) -> Response:
    """The response to a failed request. HEAD and 304 have no body."""
    row = row_of(error)
    code, status = row
    if row is INTERNAL:
        log.error("request %s failed: %s", request_id, type(error).__name__, exc_info=error)
    headers: dict[str, str] = {}
    fields: list[tuple[str, str | int]] = [("Code", code), ("Message", legible(message_of(error)))]
    if isinstance(error, errors.InvalidRange):
        headers["Content-Range"] = f"bytes */{error.nbytes}"
        fields.append(("ActualObjectSize", error.nbytes))
    if isinstance(error, errors.PreconditionFailed):
        fields.append(("Condition", error.condition))
    if isinstance(error, errors.RDMANotOffered):
        headers["x-amz-rdma-reply"] = str(status)
    if status == 503:
        headers["Retry-After"] = retry_after(error)
    if method == "HEAD" or status == 304:
        return Response(status, headers)
    fields += [("Resource", legible(resource)), ("RequestId", request_id)]
    headers["Content-Type"] = "application/xml"
    return Response(status, headers, document("Error", fields, namespace=""))
