"""The asyncio client of a gateway, on aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NoReturn, ParamSpec, Self, TypeVar

from aiohttp import (
    BaseConnector,
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    ServerDisconnectedError,
    TCPConnector,
    UnixConnector,
)
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter
from aiohttp.payload import Payload
from yarl import URL

from kvgate.auth.sigv4 import Credential
from kvgate.chunk.form import Stored
from kvgate.chunk.frame import Status
from kvgate.chunk.key import ChunkKey, check_bucket, check_key
from kvgate.chunk.layout import Layout
from kvgate.client import loader
from kvgate.client.answer import CHUNK_IS_THERE, MAX_ANSWER_NBYTES, Answer, malformed, refuses_token
from kvgate.client.buffers import ReadableBuffer, pieces, readable, writable, writable_each
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
from kvgate.errors import DeadlineExceeded, GatewayError, GatewayUnavailable, InvalidArgument
from kvgate.http.deadline import Deadline
from kvgate.http.endpoint import parse_endpoint
from kvgate.kernels.device import Event
from kvgate.memory.digest import extend_crc64nvme
from kvgate.messages import Headers

_WRITE_NBYTES = 1 << 20
_ABORT_S = 1.0
_READ_BUFFER_NBYTES = 1 << 20
_CHECKSUM_NBYTES = 8 << 20
"""Checksummed without a break: less than a millisecond of the loop's time."""

P = ParamSpec("P")
T = TypeVar("T")


class AsyncClient:
    """The calls of `kvgate.client.sync.Client`, with the same arguments, deadlines and errors, for one event loop.

    A cancelled call has let go of the caller's buffers when it raises CancelledError.
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
        """No I/O yet, and no event loop needed. The arguments are those of `Client`."""
        endpoint = parse_endpoint(url)
        self.max_connections = max_connections
        self._url = str(endpoint)
        self._access_key = access_key
        self._deadline_s = deadline_s
        self._tls = (tls or ssl.create_default_context()) if endpoint.tls else None
        credential = Credential(access_key, secret_key)
        self._calls = Calls(endpoint, credential)
        self._transport = Transport(credential, local=local)
        self._token = SessionToken() if use_session else None
        self._session: ClientSession | None = None
        self._unix_session: ClientSession | None = None
        self._unix_socket = ""
        self._closed = False

    def __repr__(self) -> str:
        return f"AsyncClient({self._url!r}, {self._access_key!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every connection. Idempotent."""
        self._closed = True
        self._transport.close()
        for session in (self._session, self._unix_session):
            if session is not None:
                await session.close()
        if self._session is not None or self._unix_session is not None:
            await asyncio.sleep(0)  # transports that were closed just before let their sockets go in the next turn

    def traffic(self) -> Mapping[str, Traffic]:
        return self._transport.traffic()

    # --- KV calls ---

    async def tenant(self, *, deadline_s: float | None = None) -> TenantInfo:
        info = await self._perform(self._calls.tenant(), deadline_s)
        self._transport.learn(info.local)
        await self._prove_unix_socket(deadline_s)
        return info

    async def match(
        self, bucket: str, space: str, hashes: Sequence[bytes], *, lease_s: float = 30, deadline_s: float | None = None
    ) -> Match:
        return await self._perform(self._calls.match(bucket, space, hashes, lease_s), deadline_s)

    async def explain(
        self,
        bucket: str,
        space: str,
        hashes: Sequence[bytes],
        *,
        manifest: Mapping[str, object] | None = None,
        deadline_s: float | None = None,
    ) -> Explained:
        return await self._perform(self._calls.explain(bucket, space, hashes, manifest), deadline_s)

    async def explain_keys(self, bucket: str, keys: Sequence[str], *, deadline_s: float | None = None) -> Explained:
        return await self._perform(self._calls.explain_keys(bucket, keys), deadline_s)

    async def prefetch(
        self, bucket: str, space: str, hashes: Sequence[bytes], *, deadline_s: float | None = None
    ) -> Prefetched:
        return await self._perform(self._calls.prefetch(bucket, space, hashes), deadline_s)

    async def retain(
        self,
        chosen: Chosen,
        *,
        pin: str | None = None,
        pin_s: float | None = None,
        ttl_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Retained:
        return await self._perform(self._calls.retain(chosen, pin, pin_s, ttl_s), deadline_s)

    async def retention(self, *, deadline_s: float | None = None) -> Retention:
        return await self._perform(self._calls.retention(), deadline_s)

    async def start_job(
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
        return await self._perform(self._calls.start_job(kind, chosen, tier, source, codec, pin, pin_s), deadline_s)

    async def jobs(self, *, deadline_s: float | None = None) -> Sequence[Job]:
        return await self._perform(self._calls.jobs(), deadline_s)

    async def job(self, id: str, *, deadline_s: float | None = None) -> Job:
        return await self._perform(self._calls.job(id), deadline_s)

    async def cancel_job(self, id: str, *, deadline_s: float | None = None) -> Job:
        return await self._perform(self._calls.cancel_job(id), deadline_s)

    async def release(self, lease: str, *, deadline_s: float | None = None) -> None:
        await self._perform(self._calls.release(lease), deadline_s)

    async def stats(self, *, deadline_s: float | None = None) -> Stats:
        return await self._perform(self._calls.stats(), deadline_s)

    async def load_chunks(
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
        return await loader.load_chunks_async(
            self.load_locally,
            self.fetch_chunks,
            loader.Wanted(bucket, space, hashes, buffers, loader.cut_of(layout, layers, heads), exact),
            self._deadline_s if deadline_s is None else deadline_s,
            min(connections, self.max_connections),
        )

    async def load_chunks_on_gpu(
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
        if len(targets) != len(hashes):
            raise InvalidArgument(f"{len(hashes)} chunks for {len(targets)} targets")
        on_gpu = 0

        async def load_locally(wanted: loader.Wanted, deadline: Deadline) -> tuple[int, bool]:
            nonlocal on_gpu
            await self._look_again(deadline)
            if gpu is not None and self._transport.has_memory:
                load = self._transport.load_on_gpu
                on_gpu = await _in_thread(deadline, load, gpu, wanted, targets, after, deadline)
            done, nowhere = await self.load_locally(wanted.part(range(on_gpu, len(targets))), deadline)
            return on_gpu + done, nowhere

        loaded = await loader.load_chunks_async(
            load_locally,
            self.fetch_chunks,
            loader.Wanted(bucket, space, hashes, buffers),
            self._deadline_s if deadline_s is None else deadline_s,
            min(connections, self.max_connections),
        )
        return replace(loaded, on_gpu=on_gpu)

    async def load_locally(self, wanted: loader.Wanted, deadline: Deadline) -> tuple[int, bool]:
        await self._look_again(deadline)
        if not self._transport.has_memory:
            return 0, False
        return await _in_thread(deadline, self._transport.load_prefix, wanted, deadline)

    async def read_chunks(
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
        buffers = None if into is None else writable_each(into, len(hashes))
        deadline = Deadline(self._deadline_s if deadline_s is None else deadline_s)
        call = self._calls.read(bucket, space, hashes, layers, heads, deadline.remaining_s())
        return await self._receive_frames(call, FrameReader(len(hashes), buffers), deadline)

    async def fetch_chunks(self, wanted: loader.Wanted, deadline: Deadline, arrived: loader.Arrived) -> None:
        """See loader.FetchAsync: over one connection to the gateway."""
        layers, heads = (wanted.cut.layers, wanted.cut.heads) if wanted.cut else (None, None)
        call = self._calls.read(wanted.bucket, wanted.space, wanted.hashes, layers, heads, deadline.remaining_s())
        reader = FrameReader(
            len(wanted.hashes),
            wanted.buffers,
            lambda index, chunk: arrived(index, chunk.status),
            exact=wanted.exact,
        )
        await self._receive_frames(call, reader, deadline)

    async def _receive_frames(self, call: Call[NoReturn], reader: FrameReader, deadline: Deadline) -> list[ChunkRead]:
        async with self._limit(deadline.remaining_s()), self._exchange(call) as response:
            if response.status != 200 or response.headers.get("content-type") != FRAMES:
                call.read(await _answer(response))
            async for arrived in response.content.iter_any():
                reader.feed(arrived)
        chunks = reader.finish()
        for chunk in chunks:
            if chunk.status == Status.PRESENT:
                self._transport.count(self._way, chunk.nbytes)
        return chunks

    async def reserve(
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
        call = self._calls.reserve(bucket, space, chunk_hash, parent, first_token, lease_s, writer)
        return await self._perform(call, deadline_s)

    async def write_slice(
        self,
        reservation: str,
        layers: range | None,
        heads: range | None,
        views: ReadableBuffer | Sequence[ReadableBuffer],
        *,
        deadline_s: float | None = None,
    ) -> SliceWritten:
        body = readable(views)
        async with self._limit(deadline_s):
            return await self._ask(self._calls.write_slice(reservation, layers, heads, body, await _checksum(body)))

    async def abort_reservation(self, reservation: str, *, deadline_s: float | None = None) -> None:
        await self._perform(self._calls.abort_reservation(reservation), deadline_s)

    async def write_slices(
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
        deadline = Deadline(self._deadline_s if deadline_s is None else deadline_s)
        place = bucket, space, chunk_hash, parent, first_token
        left_s = deadline.remaining_s()
        reservation = await self.reserve(*place, lease_s=lease_s, writer=writer, deadline_s=left_s)
        written = SliceWritten("open" if reservation.name else "present", reservation.nbytes)
        try:
            for each in slices if reservation.name else ():
                written = await self.write_slice(
                    reservation.name, each.layers, each.heads, each.views, deadline_s=deadline.remaining_s()
                )
        finally:
            if written.state == "open" and writer is None:
                with contextlib.suppress(GatewayError):  # it ends by itself
                    await self.abort_reservation(reservation.name, deadline_s=_ABORT_S)
        return written

    # --- objects ---

    async def load(self, bucket: str, key: str, into: memoryview, *, deadline_s: float | None = None) -> int:
        deadline, room = Deadline(self._deadline_s if deadline_s is None else deadline_s), writable(into)
        await self._look_again(deadline)
        if self._transport.has_memory:
            nbytes = await _in_thread(deadline, self._transport.load, bucket, key, room, deadline)
            if nbytes is not None:
                return nbytes
        return (await self.get(bucket, key, into=room, deadline_s=deadline.remaining_s())).nbytes

    async def get(
        self,
        bucket: str,
        key: str,
        *,
        into: memoryview | None = None,
        start: int | None = None,
        stop: int | None = None,
        deadline_s: float | None = None,
    ) -> Object:
        span = None if start is None and stop is None else (start or 0, stop)
        room = None if into is None else writable(into)
        call = self._calls.get(bucket, key, span)
        async with self._limit(deadline_s), self._exchange(call) as response:
            headers = Headers(response.headers.items())
            if response.status not in (200, 206):
                call.read(await _answer(response))
            download = Download(key, response.status, headers, span, room)
            async for arrived in response.content.iter_any():
                download.feed(arrived)
        found = download.finish()
        self._transport.count(self._way, found.nbytes)
        return found

    async def put(
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
        body = readable(views)
        check_bucket(bucket)
        check_key(key)
        deadline = Deadline(self._deadline_s if deadline_s is None else deadline_s)
        await self._look_again(deadline)
        if content_type is None and not metadata and self._transport.has_memory:
            put = self._transport.put
            etag = await _in_thread(deadline, put, bucket, key, body, deadline, first=if_none_match)
            if etag is not None:
                return etag
        async with self._limit(deadline.remaining_s()):
            crc = await _checksum(body)
            call = self._calls.put(bucket, key, body, crc, content_type, metadata, if_none_match)
            etag = await self._ask(call)
        self._transport.count(self._way, sum(map(len, body)))
        return etag

    async def put_chunk(
        self,
        bucket: str,
        space: str,
        chunk_hash: bytes,
        views: ReadableBuffer | Sequence[ReadableBuffer],
        *,
        deadline_s: float | None = None,
    ) -> bool:
        key = str(ChunkKey(space, chunk_hash.hex()))
        try:
            await self.put(bucket, key, views, if_none_match=True, deadline_s=deadline_s)
        except GatewayError as error:
            if error.code not in CHUNK_IS_THERE:
                raise
            return False
        return True

    async def head(self, bucket: str, key: str, *, deadline_s: float | None = None) -> ObjectInfo:
        return await self._perform(self._calls.head(bucket, key), deadline_s)

    async def delete(self, bucket: str, key: str, *, deadline_s: float | None = None) -> None:
        await self._perform(self._calls.delete(bucket, key), deadline_s)

    # --- buckets ---

    async def list(
        self, bucket: str, prefix: str = "", delimiter: str = "", *, deadline_s: float | None = None
    ) -> AsyncIterator[Entry]:
        token, more = "", True
        while more:
            page = await self._perform(self._calls.list_page(bucket, prefix, delimiter, token), deadline_s)
            for entry in page.entries:
                yield entry
            token, more = page.token, bool(page.token)

    async def create_bucket(self, bucket: str, *, deadline_s: float | None = None) -> None:
        await self._perform(self._calls.create_bucket(bucket), deadline_s)

    async def list_buckets(self, *, deadline_s: float | None = None) -> Sequence[Bucket]:
        return await self._perform(self._calls.list_buckets(), deadline_s)

    # --- ways ---

    @property
    def _way(self) -> str:
        return UNIX if self._unix_socket else TCP

    async def _look_again(self, deadline: Deadline) -> None:
        if self._transport.wants_news():
            with contextlib.suppress(GatewayError):
                await self.tenant(deadline_s=deadline.remaining_s() / 2)

    async def _prove_unix_socket(self, deadline_s: float | None) -> None:
        """Use the gateway's unix socket, if it is the same run of the gateway that answers there."""
        path = self._transport.unix_socket if self._tls is None else ""
        if path == self._unix_socket:
            return
        await self._leave_unix_socket()
        if path:
            self._unix_socket = path
            info: TenantInfo | None = None
            with contextlib.suppress(GatewayError):
                info = await self._perform(self._calls.tenant(), deadline_s)
            if info is None or info.local is None or info.local.boot_id != self._transport.boot_id:
                await self._leave_unix_socket()

    async def _leave_unix_socket(self) -> None:
        self._unix_socket = ""
        session, self._unix_session = self._unix_session, None
        if session is not None:
            await session.close()

    # --- the one way of all ---

    async def _perform(self, call: Call[T], deadline_s: float | None) -> T:
        async with self._limit(deadline_s):
            return await self._ask(call)

    async def _ask(self, call: Call[T]) -> T:
        async with self._exchange(call) as response:
            answer = await _answer(response)
        return call.read(answer)

    @asynccontextmanager
    async def _limit(self, deadline_s: float | None) -> AsyncIterator[None]:
        """The deadline of what is done within."""
        total_s = self._deadline_s if deadline_s is None else deadline_s
        try:
            async with asyncio.timeout(total_s):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(f"the call did not end within {total_s:g} s") from error

    @asynccontextmanager
    async def _exchange(self, call: Call[T]) -> AsyncIterator[ClientResponse]:
        """The response to `call`, with a session token or a signature; see `_carry`."""
        token = await self._renewed(self._token) if self._token is not None else ""
        async with self._carry(self._calls.proven(call, token)) as response:
            if not token or response.status != 400:
                yield response
                return
            answer = await _answer(response)
        if not refuses_token(answer, call.method):
            call.read(answer)
        if self._token is not None:
            self._token.drop(token)
        async with self._carry(self._calls.proven(call)) as response:  # nothing of what was refused was carried out
            yield response

    async def _renewed(self, token: SessionToken) -> str:
        """The session token to send; empty when the call is to be signed."""
        if (began := token.begin()) is not None:
            call = self._calls.session()
            try:
                async with self._carry(self._calls.proven(call)) as response:
                    answer = await _answer(response)
                token.adopt(call.read(answer), began)
            except GatewayUnavailable:
                raise
            except GatewayError as error:
                token.refused(error)
        return token.get()

    @asynccontextmanager
    async def _carry(self, call: Call[T]) -> AsyncIterator[ClientResponse]:
        """The response to `call`, its body still to be read; what is not read is thrown away with the connection."""
        body = _Views(call.views, repeatable=call.repeatable) if call.views else None
        try:
            response = await self._send(call, body)
            try:
                yield response
            except BaseException:
                response.close()
                raise
            response.release()
        except BaseException as error:
            if body is not None:
                body.abort()
            if isinstance(error, ClientError | OSError) and not isinstance(error, TimeoutError):
                raise GatewayUnavailable(f"no answer from {self._url}: {error}") from error
            raise
        if body is not None and not body.written:  # answered before it was sent: the connection is of no more use
            body.abort()

    async def _send(self, call: Call[T], body: _Views | None) -> ClientResponse:
        if self._closed:
            raise GatewayUnavailable("this client is closed")
        try:
            return await self._request(call, body)
        except ClientConnectorError:
            if not self._unix_socket:
                raise
            await self._leave_unix_socket()
            self._transport.lose()
            return await self._request(call, body)
        except (ClientOSError, ServerDisconnectedError):
            if call.method != "POST" or not call.repeatable:  # aiohttp itself repeats the idempotent methods
                raise
            return await self._request(call, body)

    async def _request(self, call: Call[T], body: _Views | None) -> ClientResponse:
        return await self._opened().request(
            call.method,
            URL(self._url + call.target, encoded=True),
            headers=call.headers,
            data=body,
            allow_redirects=False,
        )

    def _opened(self) -> ClientSession:
        if self._unix_socket:
            if self._unix_session is None:
                self._unix_session = _session(UnixConnector(self._unix_socket, limit=self.max_connections))
            return self._unix_session
        if self._session is None:
            tls = self._tls if self._tls is not None else True
            self._session = _session(TCPConnector(limit=self.max_connections, ssl=tls))
        return self._session


def _session(connector: BaseConnector) -> ClientSession:
    return ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=_READ_BUFFER_NBYTES,
    )


async def _in_thread(deadline: Deadline, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `fn` returns or raises in a thread; when cancelled, once the thread has let go of what it was given."""
    task = asyncio.create_task(asyncio.to_thread(fn, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        deadline.cut()
        await asyncio.wait([task])
        raise


class _Views(Payload):
    """A request body of views, written piece by piece as the socket takes them.

    written: whether the last piece was handed to the transport
    """

    def __init__(self, views: tuple[memoryview, ...], *, repeatable: bool) -> None:
        super().__init__(views)
        self.written = False
        self._views = views
        self._repeatable = repeatable
        self._size = sum(map(len, views))
        self._transport: asyncio.WriteTransport | None = None

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._consumed = not self._repeatable  # aiohttp does not send a consumed payload again
        self.written = False
        self._transport = writer.transport if isinstance(writer, StreamWriter) else None
        for piece in pieces(self._views, _WRITE_NBYTES):
            await writer.write(piece)
        self.written = True

    def abort(self) -> None:
        """Drop what the transport still holds. Closing alone would keep it, and the socket, until the peer takes it."""
        if self._transport is not None:
            self._transport.abort()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._views).decode(encoding, errors)


async def _checksum(body: tuple[memoryview, ...]) -> int:
    crc = 0
    for piece in pieces(body, _CHECKSUM_NBYTES):
        crc = extend_crc64nvme(piece, crc)
        await asyncio.sleep(0)
    return crc


async def _answer(response: ClientResponse) -> Answer:
    body = bytearray()
    async for arrived in response.content.iter_any():
        body += arrived
        if len(body) > MAX_ANSWER_NBYTES:
            malformed(response.status, f"it is longer than {MAX_ANSWER_NBYTES} bytes")
    return Answer(response.status, Headers(response.headers.items()), bytes(body))
