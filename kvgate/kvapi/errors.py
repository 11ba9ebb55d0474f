"""The one table from domain errors to what callers under /_kv/ see. Codes and statuses are those of S3.

The most derived class of an error that is in the table decides. Whatever is not ours is an InternalError: it is logged
with its traceback, and the caller learns only the request id.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from kvgate import errors
from kvgate.kvapi.encoding import Encoding
from kvgate.messages import Response

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """An error code and an HTTP status."""

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
    errors.UnsupportedOperation: Row("NotImplemented", 501),
    errors.MethodNotAllowed: Row("MethodNotAllowed", 405),
    errors.IncompleteBody: Row("IncompleteBody", 400),
    errors.PayloadHashMismatch: Row("XAmzContentSHA256Mismatch", 400),
    errors.ObjectTooLarge: Row("EntityTooLarge", 400),
    # names
    errors.NoSuchBucket: Row("NoSuchBucket", 404),
    errors.NoSuchLease: Row("NoSuchLease", 404),
    # room
    errors.Overloaded: Row("SlowDown", 503),
}


def row_of(error: BaseException) -> Row:
    """The table's row for an error."""
    return next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), INTERNAL)


def error_response(error: Exception, encoding: Encoding, *, method: str, request_id: str) -> Response:
    """The response to a failed call: {code, message} in the caller's encoding; HEAD gets none."""
    row = row_of(error)
    message = str(error)
    if row is INTERNAL:
        logger.error("request %s failed: %s", request_id, type(error).__name__, exc_info=error)
        message = "kvgate could not carry out the request; its log has the cause under this request id"
    headers = {"Content-Type": encoding.media_type}
    if row.status == 503:
        headers["Retry-After"] = "1"
    body = b"" if method == "HEAD" else encoding.pack({"code": row.code, "message": message})
    return Response(row.status, headers, body)
