"""What came back for a call, and what it says.

Each `read_…` takes the answer of its call and gives the value that the call returns. All of them raise GatewayError:
with the gateway's own code when it refused, and with the code MalformedAnswer when what it sent cannot be understood.
"""

from __future__ import annotations

import math
import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import NoReturn, TypeVar
from urllib.parse import unquote_plus
from xml.etree.ElementTree import Element, ParseError

import msgpack
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from kvgate.client.values import (
    Bucket,
    Entry,
    Explained,
    Explanation,
    Job,
    LocalWays,
    Match,
    NearSpace,
    ObjectInfo,
    Page,
    Prefetched,
    Reservation,
    Retained,
    Retention,
    RetentionRule,
    Session,
    SliceWritten,
    Stats,
    TenantInfo,
    TierUsage,
)
from kvgate.errors import GatewayError
from kvgate.messages import Headers

MAX_ANSWER_NBYTES = 16 << 20
"""The longest answer that is read, other than the body of an object."""

CHUNK_IS_THERE = frozenset({"PreconditionFailed", "ImmutableConflict"})
"""Refusals of a chunk of whose name the gateway has one already."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,1024}")
_META = "x-amz-meta-"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response whose body has been read to its end."""

    status: int
    headers: Headers
    body: bytes


def accept(answer: Answer, *statuses: int) -> None:
    """Nothing for one of `statuses`. Raises GatewayError with the gateway's code and message for any other."""
    if answer.status not in statuses:
        read_refusal(answer)


def read_refusal(answer: Answer) -> NoReturn:
    """Raise GatewayError with the gateway's code and message."""
    code, message = _refusal(answer)
    raise GatewayError(f"the gateway answered {answer.status} {code}: {message}", status=answer.status, code=code)


def malformed(status: int, what: str) -> NoReturn:
    """Raise GatewayError for an answer that cannot be understood."""
    raise GatewayError(f"the gateway's answer cannot be used: {what}", status=status, code="MalformedAnswer")


# --- KV calls: msgpack ------------------------------------------------------------------------------------------------


def read_tenant(answer: Answer) -> TenantInfo:
    accept(answer, 200)
    fields = _unpacked(answer)
    return TenantInfo(
        name=fields.one("tenant", str),
        salt=fields.one("salt", bytes),
        quota_nbytes=fields.one_or_none("quota_nbytes", int),
        buckets=tuple(fields.listed("buckets", str)),
        local=_local(answer.status, fields.one_or_none("local", dict)),
    )


def _local(status: int, members: dict[str, object] | None) -> LocalWays | None:
    if members is None:
        return None
    fields = _Fields(status, members)
    return LocalWays(fields.one("boot_id", bytes), fields.one("shm_socket", str), fields.one("unix_socket", str))


def read_match(answer: Answer) -> Match:
    accept(answer, 200)
    fields = _unpacked(answer)
    tiers = tuple(fields.listed("tiers", str))
    ranks, nbytes = (tuple(fields.listed(name, int)) for name in ("ranks", "nbytes"))
    if not fields.one("matched", int) == len(ranks) == len(nbytes):
        malformed(answer.status, "matched is not the number of ranks and nbytes")
    if ranks and not (min(ranks) >= 0 and max(ranks) < len(tiers) and min(nbytes) >= 0):
        malformed(answer.status, "a rank without a tier, or a negative size")
    return Match(tiers, ranks, nbytes, fields.one_or_none("lease", str) or "", fields.number("expires_s"))


def read_explained(answer: Answer) -> Explained:
    accept(answer, 200)
    fields = _unpacked(answer)
    near = fields.one_or_none("nearest", list)
    return Explained(
        tuple(_explanation(_Fields(answer.status, each)) for each in fields.one("objects", list)),
        fields.one("now_ms", int),
        fields.one("since_ms", int),
        tuple(fields.listed("away", str)),
        None if near is None else tuple(_near_space(_Fields(answer.status, each)) for each in near),
    )


def _explanation(fields: _Fields) -> Explanation:
    return Explanation(
        key=fields.one("key", str),
        status=fields.one("status", str),
        reason=fields.one("reason", str),
        tiers=tuple(fields.listed("tiers", str)),
        nbytes=fields.one("nbytes", int),
        pin=fields.one("pin", str),
        leases=fields.one("leases", int),
        modified_ms=fields.one("modified_ms", int),
        expires_ms=fields.one("expires_ms", int),
        tier=fields.one("tier", str),
        at_ms=fields.one("at_ms", int),
        elsewhere=fields.one("elsewhere", str),
    )


def _near_space(fields: _Fields) -> NearSpace:
    return NearSpace(fields.one("space", str), tuple(fields.listed("differs", str)), fields.one("chunks", int))


def read_reservation(answer: Answer) -> Reservation:
    accept(answer, 200)
    fields = _unpacked(answer)
    name = fields.one_or_none("reservation", str) or ""
    return Reservation(name, fields.one("nbytes", int), fields.number("expires_s"))


def read_slice_written(answer: Answer) -> SliceWritten:
    accept(answer, 200)
    fields = _unpacked(answer)
    return SliceWritten(fields.one("state", str), fields.one("missing_nbytes", int))


def read_stats(answer: Answer) -> Stats:
    accept(answer, 200)
    fields = _unpacked(answer)
    tiers, rates, refused = (
        {name: _Fields(answer.status, usage) for name, usage in fields.one("tiers", dict).items()},
        _Fields(answer.status, fields.one("rates", dict)),
        _Fields(answer.status, fields.one("refused", dict)),
    )
    return Stats(
        objects=fields.one("objects", int),
        nbytes=fields.one("nbytes", int),
        quota_nbytes=fields.one_or_none("quota_nbytes", int),
        tiers={name: _tier_usage(usage) for name, usage in tiers.items()},
        leases=fields.one("leases", int),
        match_chunks_asked=fields.one("match_chunks_asked", int),
        match_chunks_found=fields.one("match_chunks_found", int),
        rates={name: rates.number_or_none(name) for name in rates},
        refused={name: refused.one(name, int) for name in refused},
    )


def _tier_usage(usage: _Fields) -> TierUsage:
    return TierUsage(
        objects=usage.one("objects", int),
        nbytes=usage.one("nbytes", int),
        limit_nbytes=usage.one_or_none("limit_nbytes", int),
        floor_nbytes=usage.one("floor_nbytes", int),
        weight=usage.number("weight"),
        fair_nbytes=usage.one_or_none("fair_nbytes", int),
    )


def read_prefetched(answer: Answer) -> Prefetched:
    accept(answer, 200)
    fields = _unpacked(answer)
    tiers = tuple(fields.listed("tiers", str))
    ranks = tuple(fields.listed("ranks", int))
    if ranks and not (min(ranks) >= -1 and max(ranks) < len(tiers)):
        malformed(answer.status, "a rank without a tier")
    return Prefetched(tiers, ranks, fields.one("wanted", int))


def read_retained(answer: Answer) -> Retained:
    accept(answer, 200)
    fields = _unpacked(answer)
    rule = fields.one_or_none("rule", dict)
    return Retained(tuple(fields.listed("states", str)), None if rule is None else _rule(answer.status, rule))


def read_retention(answer: Answer) -> Retention:
    accept(answer, 200)
    fields = _unpacked(answer)
    return Retention(
        fields.one("pinned_objects", int),
        fields.one("pinned_nbytes", int),
        fields.one_or_none("pinned_limit_nbytes", int),
        fields.one("marks", int),
        tuple([_rule(answer.status, rule) for rule in fields.listed("rules", dict)]),
    )


def _rule(status: int, members: object) -> RetentionRule:
    fields = _Fields(status, members)
    return RetentionRule(
        fields.one("bucket", str),
        fields.one("prefix", str),
        fields.one("pin", str),
        fields.number_or_none("pin_expires_s"),
        fields.number_or_none("ttl_s"),
    )


def read_jobs(answer: Answer) -> list[Job]:
    accept(answer, 200)
    return [_job(answer.status, members) for members in _unpacked(answer).listed("jobs", dict)]


def read_job(answer: Answer) -> Job:
    jobs = read_jobs(answer)
    if len(jobs) != 1:
        malformed(answer.status, "one job was expected")
    return jobs[0]


def _job(status: int, members: object) -> Job:
    fields = _Fields(status, members)
    objects, nbytes, rate = (_Fields(status, fields.one(name, dict)) for name in ("objects", "nbytes", "rate"))
    reasons = [_Fields(status, each) for each in fields.listed("reasons", dict)]
    examples = [_Fields(status, each) for each in fields.listed("examples", dict)]
    return Job(
        id=fields.one("id", str),
        kind=fields.one("kind", str),
        state=fields.one("state", str),
        message=fields.one("message", str),
        bucket=fields.one("bucket", str),
        prefix=fields.one_or_none("prefix", str),
        selected=fields.one_or_none("selected", int),
        options=fields.one("options", dict),
        created_ms=fields.one("created_ms", int),
        started_ms=fields.one_or_none("started_ms", int),
        ended_ms=fields.one_or_none("ended_ms", int),
        total=objects.one("total", int),
        done=objects.one("done", int),
        skipped=objects.one("skipped", int),
        failed=objects.one("failed", int),
        unmet=objects.one("unmet", int),
        total_nbytes=nbytes.one("total", int),
        done_nbytes=nbytes.one("done", int),
        saved_nbytes=nbytes.signed("saved"),
        objects_s=rate.number("objects_s"),
        nbytes_s=rate.number("nbytes_s"),
        reasons=tuple([(each.one("reason", str), each.one("objects", int)) for each in reasons]),
        examples=tuple([(each.one("key", str), each.one("why", str)) for each in examples]),
    )


def read_session(answer: Answer) -> Session:
    accept(answer, 200)
    fields = _unpacked(answer)
    session = Session(fields.one("token", str), fields.number("expires_s"))
    if not _TOKEN.fullmatch(session.token):
        malformed(answer.status, "token is not one that a header can carry")
    return session


def refuses_token(answer: Answer, method: str) -> bool:
    """Whether a request was refused for its session token. The answer to a HEAD has no room to say so: then perhaps."""
    return answer.status == 400 and (method == "HEAD" or _refusal(answer)[0] in ("InvalidToken", "ExpiredToken"))


def read_nothing(answer: Answer) -> None:
    accept(answer, 200, 204)


# --- S3 calls: headers and XML ----------------------------------------------------------------------------------------


def read_etag(answer: Answer) -> str:
    accept(answer, 200)
    return answer.headers.get("etag").strip('"')


def read_bucket_made(answer: Answer) -> None:
    if answer.status != 409 or _refusal(answer)[0] != "BucketAlreadyOwnedByYou":
        accept(answer, 200)


def read_buckets(answer: Answer) -> list[Bucket]:
    accept(answer, 200)
    return [
        Bucket(_text(bucket, "Name"), _text(bucket, "CreationDate"))
        for bucket in _parsed(answer).iterfind("{*}Buckets/{*}Bucket")
    ]


def read_page(answer: Answer) -> Page:
    accept(answer, 200)
    root = _parsed(answer)
    decoded: Callable[[str], str] = unquote_plus if _text(root, "EncodingType") == "url" else str
    objects = [
        Entry(
            key=decoded(_text(line, "Key")),
            nbytes=_nbytes(answer.status, _text(line, "Size")),
            etag=_text(line, "ETag").strip('"'),
            modified=_text(line, "LastModified"),
        )
        for line in root.iterfind("{*}Contents")
    ]
    prefixes = [
        Entry(key=decoded(_text(line, "Prefix")), is_prefix=True) for line in root.iterfind("{*}CommonPrefixes")
    ]
    token = _text(root, "NextContinuationToken") if _text(root, "IsTruncated") == "true" else ""
    return Page(tuple(sorted(objects + prefixes, key=lambda entry: entry.key)), token)


def read_info(key: str, answer: Answer) -> ObjectInfo:
    """What HEAD says of the object `key`."""
    accept(answer, 200)
    return object_info(key, answer.status, answer.headers, content_length(answer.status, answer.headers))


def object_info(key: str, status: int, headers: Headers, nbytes: int) -> ObjectInfo:
    """What the headers of a GET or HEAD say of the object `key`, which has `nbytes` bytes."""
    return ObjectInfo(
        key=key,
        nbytes=nbytes,
        etag=headers.get("etag").strip('"'),
        content_type=headers.get("content-type"),
        modified=headers.get("last-modified"),
        metadata={name.removeprefix(_META): value for name, value in headers.items() if name.startswith(_META)},
        crc64nvme=_checksum(status, headers.get("x-amz-checksum-crc64nvme")),
    )


def content_length(status: int, headers: Headers) -> int:
    """The length of the body. Raises GatewayError when the answer does not state it."""
    return _nbytes(status, headers.get("content-length"))


def _nbytes(status: int, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        malformed(status, "it does not state the length of a body")
    return int(text)


def _checksum(status: int, text: str) -> int | None:
    if not text:
        return None
    try:
        octets = b64decode(text, validate=True)
    except ValueError:
        octets = b""
    if len(octets) != 8:
        malformed(status, "x-amz-checksum-crc64nvme is not 8 bytes of base64")
    return int.from_bytes(octets, "big")


# --- encodings --------------------------------------------------------------------------------------------------------


def _refusal(answer: Answer) -> tuple[str, str]:
    """The code and message of a refusal; the status's own words when it has no body, as after HEAD."""
    code = message = ""
    media_type = answer.headers.get("content-type").partition(";")[0].strip()
    try:
        if media_type == "application/msgpack":
            fields = _unpacked(answer)
            code, message = fields.one("code", str), fields.one("message", str)
        elif answer.body.lstrip().startswith(b"<"):
            root = _parsed(answer)
            code, message = _text(root, "Code"), _text(root, "Message")
    except GatewayError:  # not our words, for example a proxy's page; the status is all that can be told
        pass
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Unknown"
    return code or phrase.replace(" ", ""), message or phrase


class _Fields:
    """The members of a map, each of the type that is asked for; numbers are finite and not negative.

    Raises GatewayError for any other.
    """

    def __init__(self, status: int, members: object) -> None:
        if not isinstance(members, dict):
            malformed(status, "a map was expected")
        self._status = status
        self._members: Mapping[object, object] = members

    def one(self, name: str, kind: type[T]) -> T:
        value = self._members.get(name)
        if type(value) is not kind or (isinstance(value, int | float) and not 0 <= value < math.inf):
            malformed(self._status, f"{name} is missing, of another type or out of range")
        return value

    def signed(self, name: str) -> int:
        """A whole number that may be negative."""
        value = self._members.get(name)
        if type(value) is not int:
            malformed(self._status, f"{name} is missing, or no whole number")
        return value

    def one_or_none(self, name: str, kind: type[T]) -> T | None:
        return None if self._members.get(name) is None else self.one(name, kind)

    def number(self, name: str) -> float:
        value = self._members.get(name)
        return float(self.one(name, int)) if type(value) is int else self.one(name, float)

    def number_or_none(self, name: str) -> float | None:
        return None if self._members.get(name) is None else self.number(name)

    def __iter__(self) -> Iterator[str]:
        """The names, which are text."""
        for name in self._members:
            if not isinstance(name, str):
                malformed(self._status, "a name is no text")
            yield name

    def listed(self, name: str, kind: type[T]) -> list[T]:
        values = self.one(name, list)
        if not all(type(value) is kind for value in values):
            malformed(self._status, f"{name} has an item of another type")
        return values


def _unpacked(answer: Answer) -> _Fields:
    try:  # the lengths within are bounded by the body's own
        members = msgpack.unpackb(answer.body, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        malformed(answer.status, f"not msgpack: {error}")
    return _Fields(answer.status, members)


def _parsed(answer: Answer) -> Element:
    try:
        root: Element = fromstring(answer.body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        malformed(answer.status, f"not XML: {error}")
    return root


def _text(parent: Element, name: str) -> str:
    """The text of the child `name` in any namespace; empty when there is none."""
    return parent.findtext(f"{{*}}{name}") or ""
