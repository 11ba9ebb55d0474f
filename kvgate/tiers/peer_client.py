"""One other gateway, asked over HTTP. Everything here blocks, under the deadline of the caller; thread-safe."""

from __future__ import annotations

import ssl
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote

import msgpack

from kvgate import __version__
from kvgate.auth.sigv4 import EMPTY_SHA256, Credential, sign
from kvgate.chunk.own_name import PREFIX_NBYTES, check_own_name
from kvgate.errors import CorruptCopy, GatewayError, InvalidChunk, NotInTier, TierAway, TierError
from kvgate.http.connection import Connection
from kvgate.http.deadline import Deadline
from kvgate.http.endpoint import parse_endpoint
from kvgate.http.pool import Pool
from kvgate.memory.digest import verify_blocks
from kvgate.memory.lease import slice_views
from kvgate.messages import Headers
from kvgate.tiers.base import Arrived, Name, Record
from kvgate.tiers.peer_records import OBJECT, RECORDS, unpack_records

_REGION = "us-east-1"
_MSGPACK = "application/msgpack"
_MAX_ANSWER_NBYTES = 16 << 20
_PIECE_NBYTES = 64 << 10
_BUSY = (429, 500, 502, 503, 504)


class Found(NamedTuple):
    """An object that a gateway has: its record, the crc64nvme of its blocks, and the gateway's URL."""

    record: Record
    blocks: array[int]
    url: str


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    head: bytes
    views: tuple[memoryview, ...] = ()


class PeerClient:
    """The gateway at one URL, as one that holds the credential of its cluster.

    All methods raise TierAway when it is not reached in time, CorruptCopy for an answer that is not what was asked for,
    and TierError when it refuses.
    """

    def __init__(self, url: str, credential: Credential, tls: ssl.SSLContext | None, max_connections: int) -> None:
        """tls: for an https URL"""
        endpoint = parse_endpoint(url)
        self.url = url
        self._authority = endpoint.authority
        self._credential = credential
        self._pool = Pool(endpoint, tls if endpoint.tls else None, max_connections)

    def records(self, names: Sequence[Name], deadline: Deadline) -> list[Found | None]:
        """What the gateway itself has of some objects of one bucket, in their order."""
        tenant, bucket, _ = names[0]
        body = msgpack.packb({"tenant": tenant, "bucket": bucket, "keys": [name.key for name in names]})
        with self._exchange("POST", RECORDS, "", body, deadline) as (connection, status, _):
            answer = _read(connection)
        if status != 200:
            _refuse(self.url, status)
        found = unpack_records(answer, names)
        return [Found(*each, self.url) if each is not None else None for each in found]

    def read(
        self,
        found: Found,
        start: int,
        steps: Sequence[Sequence[memoryview]],
        arrived: Arrived | None,
        deadline: Deadline,
    ) -> None:
        """Fill `steps` with the object's bytes from `start`, each step of whole blocks, and verify each as it comes.

        Raises NotInTier when the gateway has not got exactly this object any more.
        """
        record = found.record
        nbytes = sum(len(view) for views in steps for view in views)
        parameters = {
            "bucket": record.bucket,
            "crc64nvme": f"{record.crc64nvme:016x}",
            "key": record.key,
            "nbytes": record.nbytes,
            "start": start,
            "stop": start + nbytes,
            "tenant": record.tenant,
        }
        query = "&".join(f"{name}={quote(str(value), safe='~')}" for name, value in parameters.items())
        with self._exchange("GET", OBJECT, query, b"", deadline) as (connection, status, headers):
            if status != 200:
                _read(connection)
                _refuse(self.url, status)
            if headers.get("content-length") != str(nbytes):
                raise CorruptCopy(f"{self.url} does not send the {nbytes} bytes that were asked for")
            at = start
            for number, views in enumerate(steps):
                if arrived is not None and number:
                    arrived(at - start)
                stop = at
                for view in views:
                    if connection.readinto(view) != len(view):
                        raise TierAway(f"{self.url} broke off")
                    stop += len(view)
                if not verify_blocks(views, at, stop, record.nbytes, found.blocks):
                    raise CorruptCopy(f"the bytes that {self.url} sent do not match their digest")
                if not at:
                    _check_own_name(record, views)
                at = stop

    def close(self) -> None:
        """Close what is idle now, and what is in use when it is given back."""
        self._pool.close()

    @contextmanager
    def _exchange(
        self, method: str, path: str, query: str, body: bytes, deadline: Deadline
    ) -> Iterator[tuple[Connection, int, Headers]]:
        """The connection on which the answer has begun, its status and its headers."""
        try:
            connection, status, headers = self._send(self._signed(method, path, query, body), deadline)
            try:
                yield connection, status, headers
            finally:
                self._pool.give(connection)
        except GatewayError as error:
            raise TierAway(f"{self.url} does not answer: {error}") from error

    def _send(self, request: _Request, deadline: Deadline, *, fresh: bool = False) -> tuple[Connection, int, Headers]:
        connection = self._pool.take(deadline, fresh=fresh)
        try:
            status, headers = connection.exchange(request, deadline)
        except BaseException:
            stale = connection.went_stale and not deadline.over
            self._pool.give(connection)
            if stale and not fresh:  # the gateway had hung up between two exchanges; nothing was carried out
                return self._send(request, deadline, fresh=True)
            raise
        return connection, status, headers

    def _signed(self, method: str, path: str, query: str, body: bytes) -> _Request:
        headers = {"host": self._authority, "user-agent": f"kvgate/{__version__}", "accept-encoding": "identity"}
        if body:
            headers |= {"accept": _MSGPACK, "content-type": _MSGPACK, "content-length": str(len(body))}
        headers |= sign(
            self._credential,
            method,
            path,
            query,
            headers,
            region=_REGION,
            now=time.time(),
            payload_hash=sha256(body).hexdigest() if body else EMPTY_SHA256,
        )
        target = f"{path}?{query}" if query else path
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return _Request(method, "\r\n".join(lines).encode("ascii"), (memoryview(body),))


def _check_own_name(record: Record, views: Sequence[memoryview]) -> None:
    """Raises CorruptCopy for the beginning of a body that says itself that it is another object's."""
    prefix = b"".join(slice_views(views, 0, min(record.nbytes, PREFIX_NBYTES)))
    try:
        check_own_name(record.key, prefix, record.nbytes)
    except InvalidChunk as error:
        raise CorruptCopy(f"a gateway sent another object: {error}") from error


def _read(connection: Connection) -> bytes:
    body = bytearray()
    piece = memoryview(bytearray(_PIECE_NBYTES))
    while received := connection.readinto(piece):
        body += piece[:received]
        if len(body) > _MAX_ANSWER_NBYTES:
            raise CorruptCopy("the answer is longer than any that a gateway gives")
    return bytes(body)


def _refuse(url: str, status: int) -> None:
    """Raise what a status other than 200 means."""
    if status == 404:
        raise NotInTier(f"{url} has not got the object any more")
    if status == 403:
        raise TierError(f"{url} refuses this gateway: compare `cluster` in both configurations, and both clocks")
    raise TierError(f"{url} answered {status}", transient=status in _BUSY)
