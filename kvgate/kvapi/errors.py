"""Errors as callers under /_kv/ see them: {code, message}, by the table of `kvgate.error_table`."""

from __future__ import annotations

import logging

from kvgate.error_table import INTERNAL, message_of, retry_after, row_of
from kvgate.kvapi.encoding import Encoding
from kvgate.messages import Response

logger = logging.getLogger(__name__)


def error_response(error: Exception, encoding: Encoding, *, method: str, request_id: str) -> Response:
    """The response to a failed call: {code, message} in the caller's encoding; HEAD gets none."""
    row = row_of(error)
    if row is INTERNAL:
        logger.error("request %s failed: %s", request_id, type(error).__name__, exc_info=error)
    headers = {"Content-Type": encoding.media_type}
    if row.status == 503:
        headers["Retry-After"] = retry_after(error)
    body = b"" if method == "HEAD" else encoding.pack({"code": row.code, "message": message_of(error)})
    return Response(row.status, headers, body)
