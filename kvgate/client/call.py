"""Each call to a gateway as HTTP, without I/O.

A `Call` is everything to send, and how to read what comes back; `Calls` makes one for each thing that a client can ask,
and signs it, or gives it a session token, when it is to be sent.
Small bodies are signed with their sha256. A chunk's is not: it goes as UNSIGNED-PAYLOAD with its crc64nvme in a signed
header, which the gateway verifies and keeps, so that the bytes are checked end to end at memory speed.
"""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Generic, NoReturn, TypeVar
from urllib.parse import quote

import msgpack

from kvgate import __version__
from kvgate.auth.sigv4 import EMPTY_SHA256, UNSIGNED_PAYLOAD, Credential, sign
from kvgate.chunk.chain import HASH_NBYTES
from kvgate.chunk.key import check_bucket, check_key
from kvgate.client import answer
from kvgate.client.answer import Answer
from kvgate.client.values import (
    Bucket,
    Chosen,
    Explained,
    Job,
    Match,
    ObjectInfo,
    Page,
    Prefetched,
    Reservation,
    Retained,
    Retention,
    Session,
    SliceWritten,
    Stats,
    TenantInfo,
)
from kvgate.errors import ConfigError, InvalidArgument
from kvgate.http.endpoint import Endpoint

REGION = "us-east-1"
"""Signed into each request; a gateway accepts any."""

MSGPACK = "application/msgpack"
_MAX_KEYS_A_PAGE = 1000
_USER_AGENT = f"kvgate/{__version__}"
_ACCESS_KEY = re.compile(r"[!-+\-.0-~]+")
_FIELD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+: [ -~]*")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how to read its answer.

    path, query:  exactly as signed
    views:        the body, of bytes, in order
    payload_hash: what a signature says of the body
    repeatable:   whether it may be sent again when nothing came back
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)
    views: tuple[memoryview, ...] = field(repr=False)
    payload_hash: str
    repeatable: bool
    read: Callable[[Answer], T] = field(repr=False)

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def head(self) -> bytes:
        """The request line and header section as HTTP/1.1 has them."""
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("ascii")


class Calls:
    """Makes the calls of one credential to one gateway."""

    def __init__(self, endpoint: Endpoint, credential: Credential, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch, for signatures. Raises ConfigError for an access key that none is."""
        if not _ACCESS_KEY.fullmatch(credential.access_key):
            raise ConfigError("the access key must be printable ASCII without spaces, commas and slashes")
        self._endpoint = endpoint
        self._credential = credential
        self._clock = clock

    def proven(self, call: Call[T], token: str = "") -> Call[T]:
        """A call with what proves who asks: the session token, or the signature of this moment where there is none."""
        proof = {"authorization": f"Bearer {token}"} if token else self._sign(call)
        return replace(call, headers={**call.headers, **proof})

    def _sign(self, call: Call[T]) -> Mapping[str, str]:
        return sign(
            self._credential,
            call.method,
            call.path,
            call.query,
            call.headers,
            region=REGION,
            now=self._clock(),
            payload_hash=call.payload_hash,
        )

    # --- KV calls ---

    def tenant(self) -> Call[TenantInfo]:
        return self._call("GET", "/_kv/v1/tenant", answer.read_tenant, headers={"accept": MSGPACK})

    def stats(self) -> Call[Stats]:
        return self._call("GET", "/_kv/v1/stats", answer.read_stats, headers={"accept": MSGPACK})

    def match(self, bucket: str, space: str, hashes: Sequence[bytes], lease_s: float) -> Call[Match]:
        """Repeatable, because a lease granted to nobody ends by itself."""
        _check_hashes(hashes)
        return self._ask(
            "/_kv/v1/match",
            {"bucket": bucket, "space": space, "hashes": b"".join(hashes), "lease_s": lease_s},
            answer.read_match,
        )

    def explain(
        self, bucket: str, space: str, hashes: Sequence[bytes], manifest: Mapping[str, object] | None
    ) -> Call[Explained]:
        _check_hashes(hashes)
        members: dict[str, object] = {"bucket": bucket, "space": space, "hashes": b"".join(hashes)}
        return self._ask(
            "/_kv/v1/explain", members | ({} if manifest is None else {"manifest": manifest}), answer.read_explained
        )

    def explain_keys(self, bucket: str, keys: Sequence[str]) -> Call[Explained]:
        return self._ask("/_kv/v1/explain", {"bucket": bucket, "keys": list(keys)}, answer.read_explained)

    def prefetch(self, bucket: str, space: str, hashes: Sequence[bytes]) -> Call[Prefetched]:
        _check_hashes(hashes)
        members = {"bucket": bucket, "space": space, "hashes": b"".join(hashes)}
        return self._ask("/_kv/v1/prefetch", members, answer.read_prefetched)

    def retain(self, chosen: Chosen, pin: str | None, pin_s: float | None, ttl_s: float | None) -> Call[Retained]:
        members = {**_chosen(chosen), **_given(pin=pin, pin_s=pin_s, ttl_s=ttl_s)}
        return self._ask("/_kv/v1/retain", members, answer.read_retained)

    def retention(self) -> Call[Retention]:
        return self._call("GET", "/_kv/v1/retention", answer.read_retention, headers={"accept": MSGPACK})

    def start_job(
        self,
        kind: str,
        chosen: Chosen,
        tier: str | None,
        source: str | None,
        codec: str | None,
        pin: str | None,
        pin_s: float | None,
    ) -> Call[Job]:
        """Not repeatable: it would begin a second job."""
        how = _given(tier=tier, source=source, codec=codec, pin=pin, pin_s=pin_s)
        members = {**_chosen(chosen), "kind": kind, **how}
        return self._ask("/_kv/v1/jobs", members, answer.read_job, repeatable=False)

    def jobs(self) -> Call[list[Job]]:
        return self._call("GET", "/_kv/v1/jobs", answer.read_jobs, headers={"accept": MSGPACK})

    def job(self, id: str) -> Call[Job]:
        return self._call("GET", "/_kv/v1/jobs", answer.read_job, query=_job_query(id), headers={"accept": MSGPACK})

    def cancel_job(self, id: str) -> Call[Job]:
        return self._call("DELETE", "/_kv/v1/jobs", answer.read_job, query=_job_query(id), headers={"accept": MSGPACK})

    def release(self, lease: str) -> Call[None]:
        """Repeatable, because what did not arrive released nothing."""
        return self._ask("/_kv/v1/release", {"lease": lease}, answer.read_nothing)

    def session(self) -> Call[Session]:
        return self._ask("/_kv/v1/session", {}, answer.read_session)

    def read(
        self,
        bucket: str,
        space: str,
        hashes: Sequence[bytes],
        layers: range | None,
        heads: range | None,
        deadline_s: float,
    ) -> Call[NoReturn]:
        """`read` takes refusals, FrameReader the rest."""
        _check_hashes(hashes)
        members: dict[str, object] = {"bucket": bucket, "space": space, "hashes": b"".join(hashes)}
        members |= {"deadline_ms": deadline_s * 1000, **_span("layers", layers), **_span("heads", heads)}
        return self._ask("/_kv/v1/read", members, answer.read_refusal)

    def reserve(
        self,
        bucket: str,
        space: str,
        chunk_hash: bytes,
        parent: bytes,
        first_token: int,
        lease_s: float,
        writer: str | None,
    ) -> Call[Reservation]:
        """Repeatable by a writer, who gets the same; else one that nobody knows of would take memory until it ends."""
        _check_hashes([chunk_hash, parent])
        members = {"bucket": bucket, "space": space, "hash": chunk_hash, "parent": parent, "first_token": first_token}
        return self._ask(
            "/_kv/v1/reserve",
            {**members, "lease_s": lease_s, **({} if writer is None else {"writer": writer})},
            answer.read_reservation,
            repeatable=writer is not None,
        )

    def write_slice(
        self,
        reservation: str,
        layers: range | None,
        heads: range | None,
        views: tuple[memoryview, ...],
        crc64nvme: int,
    ) -> Call[SliceWritten]:
        """Repeatable: a slice that has come already is compared, and one that completed the chunk is told by a 404."""
        parameters = {"reservation": reservation, **_span("layers", layers), **_span("heads", heads)}
        headers = {
            "accept": MSGPACK,
            "content-type": "application/octet-stream",
            "x-amz-checksum-crc64nvme": b64encode(crc64nvme.to_bytes(8, "big")).decode(),
        }
        return self._call(
            "PUT",
            "/_kv/v1/slice",
            answer.read_slice_written,
            query="&".join(f"{name}={quote(value, safe='~')}" for name, value in sorted(parameters.items())),
            headers=headers,
            views=views,
            payload_hash=UNSIGNED_PAYLOAD,
        )

    def abort_reservation(self, reservation: str) -> Call[None]:
        query = f"reservation={quote(reservation, safe='~')}"
        return self._call("DELETE", "/_kv/v1/reserve", answer.read_nothing, query=query, headers={"accept": MSGPACK})

    # --- objects ---

    def get(self, bucket: str, key: str, span: tuple[int, int | None] | None) -> Call[NoReturn]:
        """`span` is [start, stop) in bytes; a stop of None is the end. `read` takes refusals, Download the rest."""
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if span is not None:
            start, stop = span
            if start < 0 or (stop is not None and stop <= start):
                raise InvalidArgument(f"the range [{start}, {stop}) holds no byte")
            headers["range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        return self._call("GET", _path(bucket, key), answer.read_refusal, headers=headers)

    def head(self, bucket: str, key: str) -> Call[ObjectInfo]:
        return self._call(
            "HEAD", _path(bucket, key), partial(answer.read_info, key), headers={"x-amz-checksum-mode": "ENABLED"}
        )

    def put(
        self,
        bucket: str,
        key: str,
        views: tuple[memoryview, ...],
        crc64nvme: int,
        content_type: str | None,
        metadata: Mapping[str, str] | None,
        if_none_match: bool,
    ) -> Call[str]:
        """`views` are of bytes; `crc64nvme` is that of all of them together."""
        headers = {
            "content-type": content_type or "application/octet-stream",
            "x-amz-checksum-crc64nvme": b64encode(crc64nvme.to_bytes(8, "big")).decode(),
        }
        for name, value in (metadata or {}).items():
            headers[f"x-amz-meta-{name.lower()}"] = value
        if if_none_match:
            headers["if-none-match"] = "*"
        return self._call(
            "PUT",
            _path(bucket, key),
            answer.read_etag,
            headers=headers,
            views=views,
            payload_hash=UNSIGNED_PAYLOAD,
            repeatable=not if_none_match,  # a second try would be refused because of the first
        )

    def delete(self, bucket: str, key: str) -> Call[None]:
        return self._call("DELETE", _path(bucket, key), answer.read_nothing)

    # --- buckets ---

    def list_page(self, bucket: str, prefix: str, delimiter: str, token: str) -> Call[Page]:
        parameters = {
            "continuation-token": token,
            "delimiter": delimiter,
            "encoding-type": "url",
            "list-type": "2",
            "max-keys": str(_MAX_KEYS_A_PAGE),
            "prefix": prefix,
        }
        query = "&".join(f"{name}={quote(value, safe='~')}" for name, value in parameters.items() if value)
        return self._call("GET", _path(bucket), answer.read_page, query=query)

    def create_bucket(self, bucket: str) -> Call[None]:
        return self._call("PUT", _path(bucket), answer.read_bucket_made)

    def list_buckets(self) -> Call[list[Bucket]]:
        return self._call("GET", "/", answer.read_buckets)

    # --- the one form of all ---

    def _ask(
        self, path: str, members: Mapping[str, object], read: Callable[[Answer], T], *, repeatable: bool = True
    ) -> Call[T]:
        body = msgpack.packb(members)
        headers = {"accept": MSGPACK, "content-type": MSGPACK}
        return self._call(
            "POST",
            path,
            read,
            headers=headers,
            views=(memoryview(body),),
            payload_hash=sha256(body).hexdigest(),
            repeatable=repeatable,
        )

    def _call(
        self,
        method: str,
        path: str,
        read: Callable[[Answer], T],
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        views: tuple[memoryview, ...] = (),
        payload_hash: str = EMPTY_SHA256,
        repeatable: bool = True,
    ) -> Call[T]:
        every = {"host": self._endpoint.authority, "user-agent": _USER_AGENT, "accept-encoding": "identity"}
        every |= headers or {}
        if method in ("PUT", "POST"):
            every["content-length"] = str(sum(map(len, views)))
        for name, value in every.items():
            if not _FIELD.fullmatch(f"{name}: {value}"):
                raise InvalidArgument(f"the header {name!r} cannot be sent: a name is a token, a value printable ASCII")
        return Call(method, path, query, every, views, payload_hash, repeatable, read)


def _path(bucket: str, key: str | None = None) -> str:
    check_bucket(bucket)
    if key is None:
        return f"/{bucket}"
    check_key(key)
    return f"/{bucket}/{quote(key, safe='/~')}"


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if any(len(chunk_hash) != HASH_NBYTES for chunk_hash in hashes):
        raise InvalidArgument(f"a chunk hash is {HASH_NBYTES} bytes")


def _chosen(chosen: Chosen) -> dict[str, object]:
    """The members that select objects. Raises InvalidArgument."""
    given = [each for each in (chosen.keys, chosen.hashes, chosen.prefix) if each is not None]
    if len(given) != 1:
        raise InvalidArgument("one of keys, hashes (with a space) and prefix is needed")
    members: dict[str, object] = {"bucket": chosen.bucket}
    if chosen.keys is not None:
        return members | {"keys": list(chosen.keys)}
    if chosen.prefix is not None:
        return members | {"prefix": chosen.prefix}
    _check_hashes(chosen.hashes or ())
    return members | {"space": chosen.space, "hashes": b"".join(chosen.hashes or ())}


def _given(**members: object) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}


def _job_query(id: str) -> str:
    return f"id={quote(id, safe='~')}"


def _span(name: str, indices: range | None) -> dict[str, str]:
    if indices is None:
        return {}
    if indices.step != 1 or not 0 <= indices.start < indices.stop:
        raise InvalidArgument(f"{name}: {indices} is not a range of one index or more")
    return {name: f"{indices.start}-{indices.stop - 1}"}
