"""The one table from domain errors to the codes and HTTP statuses that callers see, under S3 and under /_kv/ alike.

The most derived class of an error that is in the table decides. Whatever is not ours is an InternalError: it is logged
with its traceback, and the caller learns only the request id. Codes are S3's where S3 has one.
"""

from __future__ import annotations

from typing import NamedTuple

from kvgate import errors


class Row(NamedTuple):
    """An error code and an HTTP status."""

    code: str
    status: int


INTERNAL = Row("InternalError", 500)
UNAVAILABLE = Row("ServiceUnavailable", 503)
"""A tier cannot be used now. Its words, which name servers and paths, are the operator's."""

TABLE: dict[type[BaseException], Row] = {
    # identity
    errors.AccessDenied: Row("AccessDenied", 403),
    errors.MalformedAuthorization: Row("AuthorizationHeaderMalformed", 400),
    errors.UnknownAccessKey: Row("InvalidAccessKeyId", 403),
    errors.SignatureMismatch: Row("SignatureDoesNotMatch", 403),
    errors.ClockSkew: Row("RequestTimeTooSkewed", 403),
    errors.ExpiredRequest: Row("AccessDenied", 403),
    errors.InvalidToken: Row("InvalidToken", 400),
    errors.ExpiredToken: Row("ExpiredToken", 400),
    # requests
    errors.InvalidRequest: Row("InvalidRequest", 400),
    errors.InvalidArgument: Row("InvalidArgument", 400),
    errors.HeadersTooLarge: Row("MetadataTooLarge", 400),
    errors.MalformedXML: Row("MalformedXML", 400),
    errors.MalformedPolicy: Row("MalformedPolicy", 400),
    errors.InvalidPolicyDocument: Row("InvalidPolicyDocument", 400),
    errors.MalformedForm: Row("MalformedPOSTRequest", 400),
    errors.FormTooLarge: Row("MaxPostPreDataLengthExceeded", 400),
    errors.UploadTooSmall: Row("EntityTooSmall", 400),
    errors.InvalidTag: Row("InvalidTag", 400),
    errors.UnsupportedOperation: Row("NotImplemented", 501),
    errors.MethodNotAllowed: Row("MethodNotAllowed", 405),
    errors.LengthRequired: Row("MissingContentLength", 411),
    errors.IncompleteBody: Row("IncompleteBody", 400),
    errors.BadDigest: Row("BadDigest", 400),
    errors.PayloadHashMismatch: Row("XAmzContentSHA256Mismatch", 400),
    errors.InvalidRange: Row("InvalidRange", 416),
    errors.InvalidPartNumber: Row("InvalidPartNumber", 416),
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
    errors.NoSuchVersion: Row("NoSuchVersion", 404),
    errors.ObjectChanged: Row("OperationAborted", 409),
    # what owners set for their buckets
    errors.NoSuchBucketPolicy: Row("NoSuchBucketPolicy", 404),
    errors.NoSuchCors: Row("NoSuchCORSConfiguration", 404),
    errors.NoSuchLifecycle: Row("NoSuchLifecycleConfiguration", 404),
    errors.NoSuchTagSet: Row("NoSuchTagSet", 404),
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
    errors.ImmutableConflict: Row("ImmutableConflict", 409),  # S3's ConditionalRequestConflict would say "retry"
    # room
    errors.QuotaExceeded: Row("QuotaExceeded", 403),
    errors.ObjectTooLarge: Row("EntityTooLarge", 400),
    errors.TooManyMarks: Row("TooManyMarks", 400),
    errors.PinRefused: Row("PinRefused", 403),
    errors.StoreFull: Row("SlowDown", 503),  # for now: what fills it is in flight, and leaves
    errors.ArenaFull: Row("SlowDown", 503),
    errors.TierFull: Row("SlowDown", 503),
    errors.TierBusy: Row("SlowDown", 503),
    errors.TierError: UNAVAILABLE,
    errors.NotInTier: INTERNAL,  # as is the next one, where the store lets it out: by a defect
    errors.CorruptCopy: INTERNAL,
    errors.Overloaded: Row("SlowDown", 503),
    # leases and reservations
    errors.NoSuchLease: Row("NoSuchLease", 404),
    errors.NoSuchJob: Row("NoSuchJob", 404),
    errors.NoSuchReservation: Row("NoSuchReservation", 404),
    errors.SliceConflict: Row("SliceConflict", 409),
}


def row_of(error: BaseException) -> Row:
    """The table's row for an error."""
    for cls in type(error).__mro__:
        if cls in TABLE:
            return TABLE[cls]
    return INTERNAL


def retry_after(error: BaseException) -> str:
    """The value of Retry-After for an error with status 503: after how many seconds to try again."""
    return str(error.retry_after_s) if isinstance(error, errors.RateLimited) else "1"


def message_of(error: BaseException) -> str:
    """What the caller may read about an error: the domain's own words, and nothing of a defect."""
    if row_of(error) is INTERNAL:
        return "kvgate could not carry out the request; its log has the cause under this request id"
    if row_of(error) is UNAVAILABLE:
        return "a tier that this needs cannot be used now; try again"
    return str(error)
