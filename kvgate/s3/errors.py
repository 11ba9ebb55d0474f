"""The one table from domain errors to what S3 clients see, and its XML.

The most derived class of an error that is in the table decides. Whatever is not ours is an InternalError: it is logged
with its traceback, and the caller learns only the request id.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from kvgate import errors
from kvgate.messages import Response
from kvgate.s3.xml import document

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """An S3 error code and an HTTP status."""

    code: str
    status: int


INTERNAL = Row("InternalError", 500)

TABLE: dict[type[BaseException], Row] = {
    # identity
    errors.AccessDenied: Row("AccessDenied", 403),
    errors.MalformedAuthorization: Row("AuthorizationHeaderMalformed", 400),
    errors.UnknownAccessKey: Row("InvalidAccessKeyId", 403),
    errors.SignatureMismatch: Row("SignatureDoesNotMatch", 403),
    errors.ClockSkew: Row("RequestTimeTooSkewed", 403),
    errors.ExpiredRequest: Row("AccessDenied", 403),
    # requests
    errors.InvalidRequest: Row("InvalidRequest", 400),
    errors.InvalidArgument: Row("InvalidArgument", 400),
    errors.HeadersTooLarge: Row("MetadataTooLarge", 400),
    errors.MalformedXML: Row("MalformedXML", 400),
    errors.UnsupportedOperation: Row("NotImplemented", 501),
    errors.MethodNotAllowed: Row("MethodNotAllowed", 405),
    errors.LengthRequired: Row("MissingContentLength", 411),
    errors.IncompleteBody: Row("IncompleteBody", 400),
    errors.BadDigest: Row("BadDigest", 400),
    errors.PayloadHashMismatch: Row("XAmzContentSHA256Mismatch", 400),
    errors.InvalidRange: Row("InvalidRange", 416),
    errors.PreconditionFailed: Row("PreconditionFailed", 412),
    errors.NotModified: Row("NotModified", 304),
    # names
    errors.InvalidKey: Row("InvalidArgument", 400),
    errors.KeyTooLong: Row("KeyTooLongError", 400),
    errors.InvalidBucketName: Row("InvalidBucketName", 400),
    errors.NoSuchBucket: Row("NoSuchBucket", 404),
    errors.BucketNotEmpty: Row("BucketNotEmpty", 409),
    errors.TooManyBuckets: Row("TooManyBuckets", 400),
    errors.NoSuchKey: Row("NoSuchKey", 404),
    # multipart uploads
    errors.NoSuchUpload: Row("NoSuchUpload", 404),
    errors.InvalidPart: Row("InvalidPart", 400),
    errors.InvalidPartOrder: Row("InvalidPartOrder", 400),
    errors.PartTooSmall: Row("EntityTooSmall", 400),
    # chunks: codes of our own, since S3 has no verified keys
    errors.InvalidManifest: Row("InvalidManifest", 400),
    errors.InvalidChunk: Row("InvalidChunk", 400),
    errors.LayoutError: Row("InvalidChunk", 400),
    errors.UnknownSpace: Row("UnknownSpace", 400),
    errors.ImmutableConflict: Row(
        "ImmutableConflict", 409
    ),  # not S3's ConditionalRequestConflict: that one says "retry"
    # room
    errors.QuotaExceeded: Row("QuotaExceeded", 403),
    errors.ObjectTooLarge: Row("EntityTooLarge", 400),
    errors.StoreFull: Row("SlowDown", 503),  # for now: what fills it is in flight, and leaves
    errors.ArenaFull: Row("SlowDown", 503),
    errors.TierFull: Row("SlowDown", 503),
    errors.Overloaded: Row("SlowDown", 503),
}


def row_of(error: BaseException) -> Row:
    """The table's row for an error."""
    for cls in type(error).__mro__:
        if cls in TABLE:
            return TABLE[cls]
    return INTERNAL


def message_of(error: BaseException) -> str:
    """What the caller may read about an error: the domain's own words, and nothing of a defect."""
    if row_of(error) is INTERNAL:
        return "kvgate could not carry out the request; its log has the cause under this request id"
    return str(error)


def error_response(error: Exception, *, method: str, resource: str, request_id: str) -> Response:
    """The response to a failed request. HEAD and 304 have no body."""
    row = row_of(error)
    code, status = row
    if row is INTERNAL:
        log.error("request %s failed: %s", request_id, type(error).__name__, exc_info=error)
    headers: dict[str, str] = {}
    fields: list[tuple[str, str | int]] = [("Code", code), ("Message", message_of(error))]
    if isinstance(error, errors.InvalidRange):
        headers["Content-Range"] = f"bytes */{error.nbytes}"
        fields.append(("ActualObjectSize", error.nbytes))
    if isinstance(error, errors.PreconditionFailed):
        fields.append(("Condition", error.condition))
    if status == 503:
        headers["Retry-After"] = "1"
    if method == "HEAD" or status == 304:
        return Response(status, headers)
    fields += [("Resource", resource), ("RequestId", request_id)]
    headers["Content-Type"] = "application/xml"
    return Response(status, headers, document("Error", fields, namespace=""))
