"""Everything that can go wrong, in the words of the domain.

No class here knows HTTP: `kvgate.s3.errors` holds the one table that maps them to status codes. Messages are written
for the caller who must mend the cause, so they name what was wrong, where, and what is accepted. They never carry
secrets, signatures or tokens.
"""

from __future__ import annotations


class KVGateError(Exception):
    """Base of every error that kvgate raises on purpose."""


# --- configuration ----------------------------------------------------------------------------------------------------


class ConfigError(KVGateError, ValueError):
    """A configuration that cannot be used; the message names the key, the value and what is accepted."""


# --- chunk identity ---------------------------------------------------------------------------------------------------


class InvalidKey(KVGateError, ValueError):
    """An object key that kvgate does not accept."""


class KeyTooLong(InvalidKey):
    """An object key of more than 1,024 bytes of UTF-8."""


class InvalidManifest(KVGateError, ValueError):
    """A space manifest with a missing, unknown or ill-typed field; `field` names it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"space manifest field {field!r}: {reason}")
        self.field = field


class NotFinite(KVGateError, ValueError):
    """KV with a NaN or an infinity, which a lossy codec cannot keep."""


class LayoutError(KVGateError, ValueError):
    """A layer or head range outside the layout, or a layout that no chunk can have."""


class LayoutMismatch(LayoutError):
    """Two sides that must have the same KV layout have not: the message names both."""


class InvalidChunk(KVGateError, ValueError):
    """A chunk body that is not a valid safetensors file, or does not match its key or space."""


class InvalidFrame(KVGateError):
    """A header in a stream of chunks that cannot be read."""


class UnknownSpace(KVGateError):
    """A chunk of a space whose manifest is not stored in the bucket."""


class ImmutableConflict(KVGateError):
    """A different body for a key under kv/ that already has one."""


# --- memory -----------------------------------------------------------------------------------------------------------


class ArenaFull(KVGateError):
    """The arena has no room for a reservation; nothing was taken."""


class LeaseReleased(KVGateError, RuntimeError):
    """A lease was used after it was released: a defect in the caller."""


# --- tiers and store --------------------------------------------------------------------------------------------------


class TierError(KVGateError):
    """A tier could not do what it was asked; `transient` says whether trying again may help."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class TierFull(TierError):
    """A tier has no room for an object, even after eviction."""


class NotAdmitted(TierError):
    """A tier does not take an object: by its rules, or because its key has another body there."""


class TierAway(TierError):
    """A tier is not reached, or is not asked for now because it was not; transient."""

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=True)


class TierSkipped(TierAway):
    """A tier is not asked for now, because it was not reached a moment ago."""


class TierBusy(TierError):
    """An operation that this gateway has no means for now: too many wait for the tier, or descriptors have run out.

    Transient; says nothing of the tier itself.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=True)


class NotInTier(TierError):
    """A tier holds no copy of the object."""


class CorruptCopy(TierError):
    """A copy whose bytes do not match the recorded length, digest or identity. The copy must be dropped."""


class NoSuchBucket(KVGateError):
    """The tenant has no bucket of this name."""


class BucketNotEmpty(KVGateError):
    """A bucket that still holds objects cannot be deleted."""


class InvalidBucketName(KVGateError, ValueError):
    """A bucket name outside the S3 rules, or one that kvgate reserves."""


class TooManyBuckets(KVGateError):
    """The tenant has as many buckets as its configuration allows."""


class TooManyMarks(KVGateError):
    """The tenant has as many pins, or prefixes with rules, as the configuration allows."""


class PinRefused(KVGateError):
    """A hard pin for which the share that pins may take has no room."""


class NoSuchKey(KVGateError):
    """A miss: no tier holds a good copy of the object."""


class NoSuchVersion(KVGateError):
    """Another version of an object than the one that there is, which S3 names "null"."""


class ObjectChanged(KVGateError):
    """The object was replaced or deleted while something of it was being changed; the caller should look again."""


class NoSuchBucketPolicy(KVGateError):
    """The bucket has no policy."""


class NoSuchCors(KVGateError):
    """The bucket has no CORS rules."""


class NoSuchLifecycle(KVGateError):
    """The bucket has no lifecycle rules."""


class NoSuchTagSet(KVGateError):
    """The bucket has no tags."""


class QuotaExceeded(KVGateError):
    """The tenant's byte quota has no room for the object."""


class ObjectTooLarge(KVGateError):
    """An object over the configured limit."""


class StoreFull(KVGateError):
    """No tier has room for the object now."""


class Overloaded(KVGateError):
    """A bounded queue is full; the caller should slow down and try again."""


class RateLimited(Overloaded):
    """The tenant is over one of its rates; after `retry_after_s` whole seconds it may go on."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoSuchUpload(KVGateError):
    """A multipart upload that does not exist, has ended, or is for another tenant, bucket or key."""


class InvalidPart(KVGateError):
    """A part that an upload was to be completed with, and that is not there or is not the one that was meant."""


class InvalidPartOrder(KVGateError):
    """The parts that an upload was to be completed with do not ascend."""


class PartTooSmall(KVGateError):
    """A part under the configured minimum that is not the last one."""


class NoSuchLease(KVGateError):
    """A lease that does not exist, has ended, or belongs to another tenant."""


class NoSuchJob(KVGateError):
    """A job that does not exist, has been forgotten, or belongs to another tenant."""


class NoSuchReservation(KVGateError):
    """A reservation that does not exist, has ended, or belongs to another tenant."""


class SliceConflict(KVGateError):
    """A slice that overlaps one that has come, or is coming, for the same chunk."""


# --- requests ---------------------------------------------------------------------------------------------------------


class InvalidRequest(KVGateError, ValueError):
    """A request that cannot be understood."""


class InvalidArgument(InvalidRequest):
    """A parameter or header with a value outside what is accepted."""


class NoSlices(InvalidRequest):
    """Layers or heads were asked of a chunk that is kept in a form without them."""


class MalformedFrame(InvalidRequest):
    """A frame on the socket that hands memory on which is not of its form."""


class HeadersTooLarge(InvalidRequest):
    """The header section, or its user metadata, is over the limit."""


class MalformedXML(InvalidRequest):
    """An XML body that is not well-formed, not bounded, or not of the expected shape."""


class MalformedPolicy(InvalidRequest):
    """A bucket policy with an element that is not evaluated; the message names the statement and the element."""


class InvalidPolicyDocument(InvalidRequest):
    """The policy of a POST form cannot be read."""


class MalformedForm(InvalidRequest):
    """The body of a POST is not multipart/form-data with a file in it."""


class FormTooLarge(MalformedForm):
    """What a POST form has before its file is over the limit."""


class UploadTooSmall(InvalidRequest):
    """A file under the least length that the policy of its form asks for."""


class InvalidTag(InvalidRequest):
    """A tag, or a set of tags, outside the rules of S3."""


class UnsupportedOperation(KVGateError):
    """An S3 operation or header that this gateway does not offer."""


class RDMANotOffered(UnsupportedOperation):
    """A request whose body was to go by RDMA."""


class MethodNotAllowed(KVGateError):
    """The resource exists, but not with this method."""


class LengthRequired(InvalidRequest):
    """An upload that does not say how long it is."""


class IncompleteBody(InvalidRequest):
    """The body ended before the promised length."""


class BadDigest(InvalidRequest):
    """The body does not match the checksum that came with it."""


class PayloadHashMismatch(InvalidRequest):
    """The body does not match the sha256 that the request signed."""


class InvalidRange(KVGateError):
    """No byte of the object lies in the requested range, or not all of it does where ranges are exact.

    nbytes: the object's size
    """

    def __init__(self, nbytes: int) -> None:
        super().__init__(f"the requested range is not within this object of {nbytes} bytes")
        self.nbytes = nbytes


class InvalidPartNumber(KVGateError):
    """A part of an object that has fewer of them."""


class PreconditionFailed(KVGateError):
    """A conditional header did not hold; `condition` names it."""

    def __init__(self, condition: str) -> None:
        super().__init__(f"the precondition {condition} did not hold")
        self.condition = condition


class NotModified(KVGateError):
    """The copy that the caller already has is the current one."""


# --- identity ---------------------------------------------------------------------------------------------------------


class AccessDenied(KVGateError):
    """The request carries no credential, or one that does not allow this."""


class MalformedAuthorization(AccessDenied):
    """The credential is not of a form that this gateway reads."""


class UnknownAccessKey(AccessDenied):
    """No tenant has this access key."""


class SignatureMismatch(AccessDenied):
    """The signature is not the one that the tenant's secret gives."""


class ClockSkew(AccessDenied):
    """The request's time is further from the gateway's than the allowed skew."""


class ExpiredRequest(AccessDenied):
    """A presigned request after its end."""


class InvalidToken(AccessDenied):
    """A session token that was not issued for a credential as it is now, or not as it was sent."""


class ExpiredToken(AccessDenied):
    """A session token after its end."""


# --- client -----------------------------------------------------------------------------------------------------------


class GatewayError(KVGateError):
    """The gateway answered a client's call with an error; `status` and `code` are its words."""

    def __init__(self, message: str, *, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class GatewayUnavailable(GatewayError):
    """The gateway could not be reached, or broke off."""


class DeadlineExceeded(GatewayUnavailable):
    """A call did not end within its deadline."""


class UnsupportedModel(KVGateError):
    """A model whose KV cannot be named exactly, so that it must not be cached."""
