"""The blocking client of a gateway."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn, Self, TypeVar

from kvgate.auth.sigv4 import Credential
from kvgate.chunk.form import Stored
from kvgate.chunk.frame import Status
from kvgate.chunk.key import ChunkKey, check_bucket, check_key
from kvgate.chunk.layout import Layout
from kvgate.client import loader
from kvgate.client.answer import CHUNK_IS_THERE, MAX_ANSWER_NBYTES, Answer, malformed, refuses_token
from kvgate.client.buffers import ReadableBuffer, checksum, readable, writable, writable_each
from kvgate.client.call import Call, Calls
from kvgate.client.download import Download
from kvgate.client.frames import FRAMES, FrameReader
from kvgate.client.local import Gpu
from kvgate.client.session import SessionToken
from kvgate.client.transport import TCP, UNIX, Transport
from kvgate.client.values import (
    Bucket,
    Chosen,
    ChunkRead,
    Entry,
    Explained,
    Job,
    Loaded,
    Match,
    Object,
    ObjectInfo,
    Prefetched,
    Reservation,
    Retained,
    Retention,
    Slice,
    SliceWritten,
    Stats,
    TenantInfo,
    Traffic,
)
from kvgate.errors import GatewayError, GatewayUnavailable, InvalidArgument
from kvgate.http.connection import Connection
from kvgate.http.deadline import Deadline
from kvgate.http.endpoint import parse_endpoint
from kvgate.http.pool import Pool
from kvgate.http.wire import connect_unix
from kvgate.kernels.device import Event
from kvgate.messages import Headers

_READ_NBYTES = 64 << 10
_ABORT_S = 1.0

T = TypeVar("T")


class Client:
    """One tenant's calls to one gateway. Thread-safe; keeps its connections open until `close`.

    Every call ends within its deadline, whatever the gateway does, and raises
        DeadlineExceeded    not in time, the wait for a free connection included
        GatewayUnavailable  refused, reset, or broken off
        GatewayError        the gateway's own refusal (`status`, `code`), or an answer that cannot be used
        InvalidArgument     an argument that cannot be sent; also InvalidKey and InvalidBucketName
    The first two are GatewayErrors too. A call is sent again, once, only when the gateway had ended the kept-alive
    connection before anything came back, and only when repeating it changes nothing; or when it was refused for its
    session token, of which nothing was carried out.
    """

    def __init__(
        self,
        url: str,
        access_key: str,
        secret_key: str,
        *,
        deadline_s: float = 5.0,
        max_connections: int = 8,
        tls: ssl.SSLContext | None = None,
        use_session: bool = False,
        local: bool = True,
    ) -> None:
        """No I/O yet. Proxies in the environment are ignored.

        url:             http://host[:port] or https://host[:port]. Raises ConfigError for any other
        deadline_s:      for calls that give none
        max_connections: at the same time; further calls wait within their deadlines
        tls:             for https; by default the system's certificates are trusted
        use_session:     send a session token instead of signing each call, where the gateway gives one. Whoever can
                         read the connection can use it until it ends: for https and networks that are trusted
        local:           whether to use the gateway's memory and unix socket once `tenant` has told that they are here
        """
        endpoint = parse_endpoint(url)
        context = (tls or ssl.create_default_context()) if endpoint.tls else None
        self.max_connections = max_connections
        self._url = str(endpoint)
        self._access_key = access_key
        self._deadline_s = deadline_s
        credential = Credential(access_key, secret_key)
        self._calls = Calls(endpoint, credential)
        self._pool = Pool(endpoint, context, max_connections)
        self._session = SessionToken() if use_session else None
        self._transport = Transport(credential, local=local)
        self._has_unix_http = not endpoint.tls

    def __repr__(self) -> str:
        return f"Client({self._url!r}, {self._access_key!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the idle connections now, and those in use after their call. Idempotent."""
        self._transport.close()
        self._pool.close()

    def traffic(self) -> Mapping[str, Traffic]:
        """What went which way so far: `gpu`, `shm`, `unix` or `tcp`."""
        return self._transport.traffic()

    # --- KV calls ---

    def tenant(self, *, deadline_s: float | None = None) -> TenantInfo:
        """Who this credential belongs to, with the salt that roots its chain hashes.

        Where the answer says how the gateway is reached on its own host, and this is that host, chunks and objects go
        that way from now on.
        """
        deadline = self._deadline(deadline_s)
        info = self._perform(self._calls.tenant(), deadline)
        self._transport.learn(info.local)
        self._pool.use_unix_socket(self._proved_unix_socket(deadline), self._transport.lose)
        return info

    def match(
        self, bucket: str, space: str, hashes: Sequence[bytes], *, lease_s: float = 30, deadline_s: float | None = None
    ) -> Match:
        """The longest prefix of `hashes` that the gateway holds, and a lease that keeps it there.

        space:   64 hex digits; one that is unknown matches nothing
        hashes:  chain hashes of 32 bytes, in order
        lease_s: how long; the gateway may grant less
        """
        return self._ask(self._calls.match(bucket, space, hashes, lease_s), deadline_s)

    def explain(
        self,
        bucket: str,
        space: str,
        hashes: Sequence[bytes],
        *,
        manifest: Mapping[str, object] | None = None,
        deadline_s: float | None = None,
    ) -> Explained:
        """Where chunks are, or why they are not here; uses and keeps nothing.

        hashes:   chain hashes of 32 bytes, at most the gateway's `kvapi.max_explain`
        manifest: of `space`, where the bucket may not have it: then the answer tells which spaces are near
        """
        return self._ask(self._calls.explain(bucket, space, hashes, manifest), deadline_s)

    def explain_keys(self, bucket: str, keys: Sequence[str], *, deadline_s: float | None = None) -> Explained:
        """As `explain`, for any keys."""
        return self._ask(self._calls.explain_keys(bucket, keys), deadline_s)

    def prefetch(
        self, bucket: str, space: str, hashes: Sequence[bytes], *, deadline_s: float | None = None
    ) -> Prefetched:
        """Have chunks brought to memory that will be read soon, without waiting for them; where they lie now."""
        return self._ask(self._calls.prefetch(bucket, space, hashes), deadline_s)

    def retain(
        self,
        chosen: Chosen,
        *,
        pin: str | None = None,
        pin_s: float | None = None,
        ttl_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Retained:
        """Keep objects, or say when they end; what is answered survives a restart. See docs/retention.md.

        pin:   `hard`, `soft` or `none`; pin_s: for how long
        ttl_s: how long objects that are named live from now, and those under a prefix from when they are written; 0 is
               for ever
        """
        return self._ask(self._calls.retain(chosen, pin, pin_s, ttl_s), deadline_s)

    def retention(self, *, deadline_s: float | None = None) -> Retention:
        """What the tenant has asked to be kept, and how much more it may."""
        return self._ask(self._calls.retention(), deadline_s)

    def start_job(
        self,
        kind: str,
        chosen: Chosen,
        *,
        tier: str | None = None,
        source: str | None = None,
        codec: str | None = None,
        pin: str | None = None,
        pin_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Job:
        """Begin what takes long: `prefetch`, `copy`, `compress`, `pin` and others. See docs/jobs.md."""
        return self._ask(self._calls.start_job(kind, chosen, tier, source, codec, pin, pin_s), deadline_s)

    def jobs(self, *, deadline_s: float | None = None) -> Sequence[Job]:
        """The tenant's jobs, the newest first."""
        return self._ask(self._calls.jobs(), deadline_s)

    def job(self, id: str, *, deadline_s: float | None = None) -> Job:
        """One job. GatewayError NoSuchJob when it has been forgotten."""
        return self._ask(self._calls.job(id), deadline_s)

    def cancel_job(self, id: str, *, deadline_s: float | None = None) -> Job:
        """End a job where it is; as it ended. GatewayError NoSuchJob when it has been forgotten."""
        return self._ask(self._calls.cancel_job(id), deadline_s)

    def release(self, lease: str, *, deadline_s: float | None = None) -> None:
        """End a lease. GatewayError NoSuchLease when it has ended already."""
        self._ask(self._calls.release(lease), deadline_s)

    def stats(self, *, deadline_s: float | None = None) -> Stats:
        """The tenant's own numbers."""
        return self._ask(self._calls.stats(), deadline_s)

    def load_chunks(
        self,
        bucket: str,
        space: str,
        hashes: Sequence[bytes],
        buffers: Sequence[memoryview],
        deadline_s: float | None = None,
        *,
        connections: int = loader.CONNECTIONS,
        layout: Layout | Stored | None = None,
        layers: range | None = None,
        heads: range | None = None,
        exact: bool = True,
    ) -> Loaded:
        """Which chunks have arrived, complete and verified, in their buffers. See `loader.load_chunks`.

        hashes:        chain hashes of 32 bytes, in order
        buffers:       one a chunk, of exactly its size, or that of its slice
        connections:   used in parallel, at most `max_connections`
        layout:        of the space, to load slices: `kv[layers, :, heads]` of each chunk in C order, without a header;
                       `space.stored` in a space with a codec of its own
        layers, heads: of each slice; None is all
        exact:         False takes whole objects that are shorter than their buffers, as a lossless codec makes them;
                       `chunk.safetensors.file_nbytes` tells where they end
        """
        return loader.load_chunks(
            self.load_locally,
            self.fetch_chunks,
            loader.Wanted(bucket, space, hashes, buffers, loader.cut_of(layout, layers, heads), exact),
            self._deadline_s if deadline_s is None else deadline_s,
            min(connections, self.max_connections),
        )

    def load_chunks_on_gpu(
        self,
        gpu: Gpu | None,
        bucket: str,
        space: str,
        hashes: Sequence[bytes],
        targets: Sequence[int],
        buffers: Sequence[memoryview],
        deadline_s: float | None = None,
        *,
        after: Event | None = None,
        connections: int = loader.CONNECTIONS,
    ) -> Loaded:
        """Which chunks have arrived, complete and verified: `on_gpu` of them in `targets`, the others in `buffers`.

        The leading chunks that the gateway has in the memory of the same GPU are copied there; `load_chunks` has the
        rest, and all of them where there is no such gateway, no such tier or no way to map its memory.

        gpu:     as `open_gpu` gives it
        targets: an address on the GPU for each chunk object; undefined for those that are not `on_gpu`
        buffers: one a chunk, of exactly its size
        after:   what the engine has submitted that still uses the targets. When this returns, nobody writes to them
        """
        if len(targets) != len(hashes):
            raise InvalidArgument(f"{len(hashes)} chunks for {len(targets)} targets")
        on_gpu = 0

        def load_locally(wanted: loader.Wanted, deadline: Deadline) -> tuple[int, bool]:
            nonlocal on_gpu
            if gpu is not None:
                self._look_again(deadline)
                on_gpu = self._transport.load_on_gpu(gpu, wanted, targets, after, deadline)
            done, nowhere = self.load_locally(wanted.part(range(on_gpu, len(targets))), deadline)
            return on_gpu + done, nowhere

        loaded = loader.load_chunks(
            load_locally,
            self.fetch_chunks,
            loader.Wanted(bucket, space, hashes, buffers),
            self._deadline_s if deadline_s is None else deadline_s,
            min(connections, self.max_connections),
        )
        return replace(loaded, on_gpu=on_gpu)

    def load_locally(self, wanted: loader.Wanted, deadline: Deadline) -> tuple[int, bool]:
        """`Transport.load_prefix`."""
        self._look_again(deadline)
        return self._transport.load_prefix(wanted, deadline)

    def read_chunks(
        self,
        bucket: str,
        space: str,
        hashes: Sequence[bytes],
        *,
        layers: range | None = None,
        heads: range | None = None,
        into: Sequence[memoryview] | None = None,
        deadline_s: float | None = None,
    ) -> list[ChunkRead]:
        """Many chunks by one call, in order, each with what became of it.

        layers, heads: the slice `kv[layers, :, heads]` of each chunk, in C order, instead of the whole object
        into:          a buffer a chunk, of exactly the size of what is read
        """
        buffers = None if into is None else writable_each(into, len(hashes))
        deadline = self._deadline(deadline_s)
        call = self._calls.read(bucket, space, hashes, layers, heads, deadline.remaining_s())
        return self._receive_frames(call, FrameReader(len(hashes), buffers), deadline)

    def fetch_chunks(self, wanted: loader.Wanted, deadline: Deadline, arrived: loader.Arrived) -> None:
        """See loader.Fetch: over one connection to the gateway."""
        layers, heads = (wanted.cut.layers, wanted.cut.heads) if wanted.cut else (None, None)
        call = self._calls.read(wanted.bucket, wanted.space, wanted.hashes, layers, heads, deadline.remaining_s())
        reader = FrameReader(
            len(wanted.hashes),
            wanted.buffers,
            lambda index, chunk: arrived(index, chunk.status),
            exact=wanted.exact,
        )
        self._receive_frames(call, reader, deadline)

    def _receive_frames(self, call: Call[NoReturn], reader: FrameReader, deadline: Deadline) -> list[ChunkRead]:
        connection, status, headers = self._send(call, deadline)
        try:
            if status != 200 or headers.get("content-type") != FRAMES:
                call.read(_answer(connection, status, headers))
            while view := reader.room():
                received = connection.readinto(view)
                if not received:
                    break
                reader.received(received)
            connection.readinto(memoryview(bytearray(1)))  # the end of the answer
        finally:
            self._pool.give(connection)
        chunks = reader.finish()
        for chunk in chunks:
            if chunk.status == Status.PRESENT:
                self._transport.count(UNIX if connection.is_local else TCP, chunk.nbytes)
        return chunks

    def reserve(
        self,
        bucket: str,
        space: str,
        chunk_hash: bytes,
        parent: bytes,
        first_token: int,
        *,
        lease_s: float = 30,
        writer: str | None = None,
        deadline_s: float | None = None,
    ) -> Reservation:
        """Memory for a chunk that is written in slices; without a name when the chunk is there already.

        parent, first_token: as in the chunk's header, which the gateway writes
        writer:              of 1 to 128 printable characters, one text for an engine and start: its ranks get the same
                             reservation, whichever asks first, and each writes its slice
        """
        call = self._calls.reserve(bucket, space, chunk_hash, parent, first_token, lease_s, writer)
        return self._ask(call, deadline_s)

    def write_slice(
        self,
        reservation: str,
        layers: range | None,
        heads: range | None,
        views: ReadableBuffer | Sequence[ReadableBuffer],
        *,
        deadline_s: float | None = None,
    ) -> SliceWritten:
        """Write `kv[layers, :, heads]` of a reserved chunk; None is all. The chunk is visible with its last slice.

        The views go to the socket as they lie, and must not change meanwhile.
        """
        deadline = self._deadline(deadline_s)
        body = readable(views)
        return self._perform(self._calls.write_slice(reservation, layers, heads, body, checksum(body)), deadline)

    def abort_reservation(self, reservation: str, *, deadline_s: float | None = None) -> None:
        """Drop what has come of a chunk. GatewayError NoSuchReservation when it has ended already."""
        self._ask(self._calls.abort_reservation(reservation), deadline_s)

    def write_slices(
        self,
        bucket: str,
        space: str,
        chunk_hash: bytes,
        parent: bytes,
        first_token: int,
        slices: Sequence[Slice],
        *,
        lease_s: float = 30,
        writer: str | None = None,
        deadline_s: float | None = None,
    ) -> SliceWritten:
        """Reserve a chunk and write all of it, slice by slice; when that fails, the reservation is given up.

        writer: others that give the same write the rest: whatever fails, the reservation stays until its lease ends
        The state is `committed`, or `present` when the chunk was there before; `open` when the slices are not all.
        """
        deadline = self._deadline(deadline_s)
        place = bucket, space, chunk_hash, parent, first_token
        left_s = deadline.remaining_s()
        reservation = self.reserve(*place, lease_s=lease_s, writer=writer, deadline_s=left_s)
        written = SliceWritten("open" if reservation.name else "present", reservation.nbytes)
        try:
            for each in slices if reservation.name else ():
                left_s = deadline.remaining_s()
                written = self.write_slice(reservation.name, each.layers, each.heads, each.views, deadline_s=left_s)
        finally:
            if written.state == "open" and writer is None:
                with suppress(GatewayError):  # it ends by itself
                    self.abort_reservation(reservation.name, deadline_s=_ABORT_S)
        return written

    # --- objects ---

    def load(self, bucket: str, key: str, into: memoryview, *, deadline_s: float | None = None) -> int:
        """Copy a whole object to the front of `into`, verified, by the fastest way that there is; its length."""
        deadline, room = self._deadline(deadline_s), writable(into)
        self._look_again(deadline)
        nbytes = self._transport.load(bucket, key, room, deadline)
        return self.fetch(bucket, key, room, None, None, deadline).nbytes if nbytes is None else nbytes

    def get(
        self,
        bucket: str,
        key: str,
        *,
        into: memoryview | None = None,
        start: int | None = None,
        stop: int | None = None,
        deadline_s: float | None = None,
    ) -> Object:
        """The object, or its bytes [start, stop).

        into: receives the bytes, straight from the socket; it may be longer than them. After an error it holds anything
        A whole object is verified against the crc64nvme that the gateway states: GatewayError BadDigest.
        """
        return self.fetch(bucket, key, into, start, stop, self._deadline(deadline_s))

    def fetch(
        self, bucket: str, key: str, into: memoryview | None, start: int | None, stop: int | None, deadline: Deadline
    ) -> Object:
        """`get` under a deadline that others may share, or cut."""
        span = None if start is None and stop is None else (start or 0, stop)
        room = None if into is None else writable(into)
        call = self._calls.get(bucket, key, span)
        connection, status, headers = self._send(call, deadline)
        try:
            if status not in (200, 206):
                call.read(_answer(connection, status, headers))
            download = Download(key, status, headers, span, room)
            while view := download.room():
                download.received(connection.readinto(view))
            connection.readinto(memoryview(bytearray(1)))  # the end of the answer
        finally:
            self._pool.give(connection)
        found = download.finish()
        self._transport.count(UNIX if connection.is_local else TCP, found.nbytes)
        return found

    def put(
        self,
        bucket: str,
        key: str,
        views: ReadableBuffer | Sequence[ReadableBuffer],
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        deadline_s: float | None = None,
    ) -> str:
        """Store the bytes of `views`, one after the other, and return the entity tag.

        The views go to the socket as they lie, and must not change meanwhile.
        if_none_match: only when there is no such object yet; GatewayError 412 PreconditionFailed otherwise
        """
        deadline = self._deadline(deadline_s)
        body = readable(views)
        check_bucket(bucket)
        check_key(key)
        if content_type is None and not metadata:
            self._look_again(deadline)
            etag = self._transport.put(bucket, key, body, deadline, first=if_none_match)
            if etag is not None:
                return etag
        call = self._calls.put(bucket, key, body, checksum(body), content_type, metadata, if_none_match)
        connection, status, headers = self._send(call, deadline)
        try:
            answer = _answer(connection, status, headers)
        finally:
            self._pool.give(connection)
        etag = call.read(answer)
        self._transport.count(UNIX if connection.is_local else TCP, sum(map(len, body)))
        return etag

    def put_chunk(
        self,
        bucket: str,
        space: str,
        chunk_hash: bytes,
        views: ReadableBuffer | Sequence[ReadableBuffer],
        *,
        deadline_s: float | None = None,
    ) -> bool:
        """Store a whole chunk object; False when one of this name is there already, whatever its bytes.

        views: its header, as `ChunkHeader.encode` makes it, and its KV; copied once at most, by the fastest way
        The bytes are not sent, or copied, where the gateway knows beforehand that it has the chunk.
        """
        try:
            self.put(bucket, str(ChunkKey(space, chunk_hash.hex())), views, if_none_match=True, deadline_s=deadline_s)
        except GatewayError as error:
            if error.code not in CHUNK_IS_THERE:
                raise
            return False
        return True

    def head(self, bucket: str, key: str, *, deadline_s: float | None = None) -> ObjectInfo:
        """What the gateway says of an object. GatewayError 404 when there is none."""
        return self._ask(self._calls.head(bucket, key), deadline_s)

    def delete(self, bucket: str, key: str, *, deadline_s: float | None = None) -> None:
        """Delete an object; one that is not there is no error."""
        self._ask(self._calls.delete(bucket, key), deadline_s)

    # --- buckets ---

    def list(
        self, bucket: str, prefix: str = "", delimiter: str = "", *, deadline_s: float | None = None
    ) -> Iterator[Entry]:
        """The keys that begin with `prefix`, in order; those with `delimiter` after it are rolled up into prefixes.

        Pages are asked for as the iterator gets to them, each under a deadline of its own.
        """
        token, more = "", True
        while more:
            page = self._ask(self._calls.list_page(bucket, prefix, delimiter, token), deadline_s)
            yield from page.entries
            token, more = page.token, bool(page.token)

    def create_bucket(self, bucket: str, *, deadline_s: float | None = None) -> None:
        """Make a bucket; one that the tenant has already is no error."""
        self._ask(self._calls.create_bucket(bucket), deadline_s)

    def list_buckets(self, *, deadline_s: float | None = None) -> Sequence[Bucket]:
        """The tenant's buckets."""
        return self._ask(self._calls.list_buckets(), deadline_s)

    # --- the one way of all ---

    def _deadline(self, deadline_s: float | None) -> Deadline:
        return Deadline(self._deadline_s if deadline_s is None else deadline_s)

    def _look_again(self, deadline: Deadline) -> None:
        """Ask the gateway for its ways once more where one was lost; what fails here fails again later."""
        if self._transport.wants_news():
            with contextlib.suppress(GatewayError):
                self.tenant(deadline_s=deadline.remaining_s() / 2)

    def _proved_unix_socket(self, deadline: Deadline) -> str:
        """The gateway's unix socket, if it is the same run of the gateway that answers there; else empty."""
        path, call = self._transport.unix_socket if self._has_unix_http else "", self._calls.tenant()
        if not path:
            return ""
        with contextlib.suppress(GatewayError):
            connection = Connection(connect_unix(path, deadline.share(2)), is_local=True)
            try:
                status, headers = connection.exchange(self._calls.proven(call), deadline.share(2))
                local = call.read(_answer(connection, status, headers)).local
            finally:
                connection.close()
            if local is not None and local.boot_id == self._transport.boot_id:
                return path
        return ""

    def _ask(self, call: Call[T], deadline_s: float | None) -> T:
        return self._perform(call, self._deadline(deadline_s))

    def _perform(self, call: Call[T], deadline: Deadline) -> T:
        connection, status, headers = self._send(call, deadline)
        try:
            answer = _answer(connection, status, headers)
        finally:
            self._pool.give(connection)
        return call.read(answer)

    def _send(self, call: Call[T], deadline: Deadline) -> tuple[Connection, int, Headers]:
        """A connection on which the answer to `call` has begun. The caller gives it back."""
        token = self._token(self._session, deadline) if self._session is not None else ""
        connection, status, headers = self._exchange(self._calls.proven(call, token), deadline)
        if not token or status != 400:
            return connection, status, headers
        try:
            answer = _answer(connection, status, headers)
        finally:
            self._pool.give(connection)
        if not refuses_token(answer, call.method):
            call.read(answer)
        if self._session is not None:
            self._session.drop(token)
        return self._exchange(self._calls.proven(call), deadline)  # nothing of what was refused was carried out

    def _token(self, session: SessionToken, deadline: Deadline) -> str:
        """The session token to send; empty when the call is to be signed."""
        if (began := session.begin()) is not None:
            call = self._calls.session()
            try:
                connection, status, headers = self._exchange(self._calls.proven(call), deadline)
                try:
                    answer = _answer(connection, status, headers)
                finally:
                    self._pool.give(connection)
                session.adopt(call.read(answer), began)
            except GatewayUnavailable:
                raise
            except GatewayError as error:
                session.refused(error)
        return session.get()

    def _exchange(self, call: Call[T], deadline: Deadline, *, fresh: bool = False) -> tuple[Connection, int, Headers]:
        connection = self._pool.take(deadline, fresh=fresh)
        try:
            status, headers = connection.exchange(call, deadline)
        except BaseException as error:
            self._pool.give(connection)
            if call.repeatable and connection.went_stale and type(error) is GatewayUnavailable:
                return self._exchange(call, deadline, fresh=True)
            raise
        return connection, status, headers


def _answer(connection: Connection, status: int, headers: Headers) -> Answer:
    body = bytearray()
    piece = memoryview(bytearray(_READ_NBYTES))
    while received := connection.readinto(piece):
        body += piece[:received]
        if len(body) > MAX_ANSWER_NBYTES:
            malformed(status, f"it is longer than {MAX_ANSWER_NBYTES} bytes")
    return Answer(status, headers, bytes(body))
