"""Requests to one bucket: signed, sent from the memory that holds the body, and received where the body shall lie.

Every call blocks in the thread that makes it and ends with its deadline. Nothing is repeated here but a request on a
kept-alive connection that the store had ended before anything came back. A store that asks for a pause (Retry-After)
gets one of up to ten seconds: until then every call fails with TierAway. A body is sent as UNSIGNED-PAYLOAD with its
crc64nvme in a signed header: the store refuses what does not arrive as it was, and we hash nothing twice.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

import contextlib
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from urllib.parse import quote
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from kvgate import __version__
from kvgate.auth.sigv4 import EMPTY_SHA256, UNSIGNED_PAYLOAD, sign
from kvgate.errors import CorruptCopy, GatewayUnavailable, NotInTier, TierAway, TierError, TierFull
from kvgate.http.connection import Connection
from kvgate.http.deadline import Deadline
from kvgate.http.endpoint import Endpoint
from kvgate.http.pool import Pool
from kvgate.messages import Headers
from kvgate.tiers.s3_credentials import Identity

NOTHING: Mapping[str, str] = {}

_MAX_DOCUMENT_NBYTES = 4 << 20
_MAX_WORDS = 160
_DRAIN_NBYTES = 64 << 10
_USER_AGENT = f"kvgate/{__version__}"
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_LENGTH = re.compile(r"[0-9]{1,19}")
_RETRY_AFTER = re.compile(r"[0-9]{1,9}")
_MAX_QUIET_S = 10
_NO_XML = (ParseError, DefusedXmlException, ValueError, LookupError)
_UNPRINTABLE = re.compile(r"[^ -~]+")
_AWAY = frozenset({429, 503})
_ON_THE_WAY = frozenset(
    {"BadDigest", "IncompleteBody", "InvalidDigest", "NoSuchUpload", "RequestTimeout", "XAmzContentChecksumMismatch"}
)
"""What the store got was not what was sent, or not all of it: sent again, it may be."""

_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "StoreFull"})
_MENDS = {
    "AccessDenied": "allow its key pair s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket (docs/tiers.md)",
    "InvalidAccessKeyId": "mend access_key",
    "SignatureDoesNotMatch": "mend secret_key, or region",
    "AuthorizationHeaderMalformed": "mend region",
    "PermanentRedirect": "mend region and endpoint: the bucket is elsewhere",
    "TemporaryRedirect": "mend region and endpoint: the bucket is elsewhere",
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "renew session_token",
    "InvalidToken": "mend session_token",
    "NoSuchBucket": "make the bucket, or mend bucket",
}
"""What an operator does about a refusal."""


class ConditionFailed(TierError):
    """What If-Match or If-None-Match asked for does not hold, or somebody else writes the key at this moment."""


class ConditionIgnored(TierError):
    """The store does not offer a condition."""


class Identities(Protocol):
    """Where requests get their key pair. Both may be called from any thread."""

    def get(self) -> Identity: ...

    def forget(self) -> None: ...


class Span(NamedTuple):
    """The bytes [start, stop) of something that is `total` bytes long."""

    start: int
    stop: int
    total: int


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    head: bytes = field(repr=False)
    views: Sequence[memoryview] = field(repr=False)


class Answer:
    """An answer whose body has not been read yet."""

    def __init__(self, connection: Connection, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection

    @property
    def etag(self) -> str:
        """See strong_etag."""
        return strong_etag(self.headers)

    @property
    def span(self) -> Span:
        """What the body is of the object. Raises TierError when the store does not say."""
        if self.status == 200:
            if match := _LENGTH.fullmatch(self.headers.get("content-length")):
                nbytes = int(match[0])
                return Span(0, nbytes, nbytes)
        elif match := _CONTENT_RANGE.fullmatch(self.headers.get("content-range")):
            span = Span(int(match[1]), int(match[2]) + 1, int(match[3]))
            if span.start < span.stop <= span.total:
                return span
        raise TierError("the S3 store does not say which bytes it sends")

    def fill(self, view: memoryview) -> None:
        """Receive the next bytes of the body into all of `view`. Raises CorruptCopy when there are fewer."""
        if view and self._connection.readinto(view) < len(view):
            raise CorruptCopy("the S3 store sent fewer bytes than it announced")

    def document(self) -> bytes:
        """The rest of the body. Raises TierError when it is longer than any answer in XML."""
        body = bytearray()
        piece = memoryview(bytearray(_DRAIN_NBYTES))
        while received := self._connection.readinto(piece):
            body += piece[:received]
            if len(body) > _MAX_DOCUMENT_NBYTES:
                raise TierError("the S3 store answers with more than an answer has")
        return bytes(body)


class S3Calls:
    """See the module. For any number of threads, each with a connection of its own at a time."""

    def __init__(
        self,
        endpoint: Endpoint,
        base_path: str,
        region: str,
        identities: Identities,
        tls: ssl.SSLContext | None,
        *,
        connections: int,
        connect_s: float,
        request_s: float,
    ) -> None:
        """base_path: what stands before every key: `/bucket`, or nothing where the host names the bucket.

        connect_s, request_s: the longest that a connection and the whole of a request may take
        """
        self._endpoint = endpoint
        self._base_path = base_path
        self._region = region
        self._identities = identities
        self._pool = Pool(endpoint, tls, connections)
        self._connect_s = connect_s
        self._request_s = request_s
        self._quiet_until = 0.0  # as the store asked for

    def close(self) -> None:
        """Close every connection that is not in use. Idempotent."""
        self._pool.close()

    @contextlib.contextmanager
    def ask(
        self,
        method: str,
        key: str,
        scope: Deadline,
        *,
        query: Mapping[str, str] = NOTHING,
        headers: Mapping[str, str] = NOTHING,
        views: Sequence[memoryview] = (),
        payload_hash: str = EMPTY_SHA256,
        accept: frozenset[int] = frozenset({200}),
    ) -> Iterator[Answer]:
        """Send a request, and give its answer when that has a status of `accept`.

        scope: cut to end the request from another thread
        Raises NotInTier for a key that is not there, CorruptCopy for a range beyond the end, ConditionFailed, TierAway,
        TierFull, TierError.
        """
        if (quiet_s := self._quiet_until - time.monotonic()) > 0:
            raise TierAway(f"the S3 store at {self._endpoint} asks to be left alone for {quiet_s:.1f} s more")
        with self._wrapped():
            connection, answer = self._exchange(method, key, scope, query, headers, views, payload_hash)
            try:
                if answer.status not in accept:
                    raise self._refusal(answer)
                yield answer
                answer.document()  # nothing is left, unless whoever asked did not care
            finally:
                self._pool.give(connection)

    def call(
        self,
        method: str,
        key: str,
        scope: Deadline,
        *,
        query: Mapping[str, str] = NOTHING,
        headers: Mapping[str, str] = NOTHING,
        views: Sequence[memoryview] = (),
        crc: int | None = None,
        accept: frozenset[int] = frozenset({200}),
    ) -> tuple[Headers, bytes]:
        """The headers and the whole body of an answer; otherwise as `ask`.

        crc: the crc64nvme of what `views` hold
        """
        if crc is not None:
            headers = {**headers, "x-amz-checksum-crc64nvme": b64encode(crc.to_bytes(8, "big")).decode()}
        payload_hash = UNSIGNED_PAYLOAD if views else EMPTY_SHA256
        with self.ask(
            method, key, scope, query=query, headers=headers, views=views, payload_hash=payload_hash, accept=accept
        ) as answer:
            return answer.headers, answer.document()

    def _exchange(
        self,
        method: str,
        key: str,
        scope: Deadline,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        views: Sequence[memoryview],
        payload_hash: str,
        *,
        fresh: bool = False,
    ) -> tuple[Connection, Answer]:
        request = self._signed(method, key, query, headers, views, payload_hash)
        connection = self._pool.take(scope.capped(self._connect_s), fresh=fresh)
        try:
            status, received = connection.exchange(request, scope.capped(self._request_s))
        except BaseException as error:
            self._pool.give(connection)
            if connection.went_stale and type(error) is GatewayUnavailable and not fresh:
                return self._exchange(method, key, scope, query, headers, views, payload_hash, fresh=True)
            raise
        return connection, Answer(connection, status, received)

    def _signed(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        views: Sequence[memoryview],
        payload_hash: str,
    ) -> _Request:
        identity = self._identities.get()
        path = quote(f"{self._base_path}/{key}", safe="/~")
        raw_query = "&".join([f"{name}={quote(value, safe='~')}" for name, value in query.items()])
        sent = {"host": self._endpoint.authority, "user-agent": _USER_AGENT, **headers}
        if method in ("PUT", "POST"):
            sent["content-length"] = str(sum(map(len, views)))
        if identity.session_token:
            sent["x-amz-security-token"] = identity.session_token
        sent |= sign(
            identity.credential,
            method,
            path,
            raw_query,
            sent,
            region=self._region,
            now=time.time(),
            payload_hash=payload_hash,
        )
        target = f"{path}?{raw_query}" if raw_query else path
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
        return _Request(method, "\r\n".join([*lines, "", ""]).encode("latin-1"), views)

    @contextlib.contextmanager
    def _wrapped(self) -> Iterator[None]:
        try:
            yield
        except GatewayUnavailable as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise TierError(f"the S3 store at {self._endpoint}: {error}; mend: ca") from error
            raise TierAway(f"the S3 store at {self._endpoint}: {error}") from error

    def _refusal(self, answer: Answer) -> TierError:
        """What an answer that is none says. Its words are the store's own, and no headers are among them."""
        code, words = error_code(answer.document())
        status = answer.status
        if status == 404 and code not in ("NoSuchBucket", "NoSuchUpload"):
            return NotInTier("the S3 store has no such object")
        if status == 416:
            return CorruptCopy("the object in the S3 store is shorter than it was")
        if status == 412 or code == "ConditionalRequestConflict":
            return ConditionFailed("the object is not, or not any more, the one that was meant")
        said = f"the S3 store at {self._endpoint} answered {status} {code or 'without a reason'}"
        if status in _AWAY:
            if match := _RETRY_AFTER.fullmatch(answer.headers.get("retry-after")):
                self._quiet_until = time.monotonic() + min(int(match[0]), _MAX_QUIET_S)
            return TierAway(said)
        if code == "ExpiredToken":
            self._identities.forget()
        if code in _FULL or status == 507:
            return TierFull(f"{said}: it is full")
        if code == "NotImplemented" or status == 501:
            return ConditionIgnored(f"{said}: {words}")
        mend = _MENDS.get(code) or (_MENDS["AccessDenied"] if status == 403 else "")
        detail = f"; mend: {mend}" if mend else f": {words}" if words else ""
        return TierError(f"{said}{detail}", transient=status >= 500 or status in (408, 409) or code in _ON_THE_WAY)


def strong_etag(headers: Headers) -> str:
    """The entity tag as If-Match takes it; empty for a weak one, which cannot be matched, and where there is none."""
    etag = headers.get("etag")
    return etag if etag.startswith('"') else ""


def parse_document(body: bytes) -> Element:
    """The root of an answer in XML. Raises TierError, also for an error that came with status 200."""
    try:
        root: Element = defusedxml.ElementTree.fromstring(body)
    except _NO_XML as error:
        raise TierError(f"the S3 store answers with something that is no XML: {error}") from error
    if local_name(root) == "Error":
        code, words = error_code(body)
        if code == "PreconditionFailed":
            raise ConditionFailed("the object is not, or not any more, the one that was meant")
        raise TierError(f"the S3 store answered {code}: {words}", transient=True)
    return root


def local_name(element: Element) -> str:
    """The name of an element without its namespace, which some stores leave out."""
    return element.tag.rpartition("}")[2]


def text_of(element: Element, name: str) -> str:
    """The text of the first child of that name; empty when there is none."""
    return next((child.text or "" for child in element if local_name(child) == name), "")


def error_code(body: bytes) -> tuple[str, str]:
    """The code and the message of an error document, as far as it is one, bounded and in printable ASCII."""
    try:
        root = defusedxml.ElementTree.fromstring(body)
    except _NO_XML:
        return "", ""
    return (
        _UNPRINTABLE.sub("?", text_of(root, "Code"))[:64],
        _UNPRINTABLE.sub("?", text_of(root, "Message"))[:_MAX_WORDS],
    )
