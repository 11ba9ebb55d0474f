"""One connection of an engine: attach once, then grants and reservations.

Invariants
1. Before ATTACH has been proved, nothing but HELLO and ERROR is sent; the tenant is that of the credential.
2. A segment is handed on only if the arena says that it is the tenant's: reading, or, where the connection has asked
   to write, its own segments for writing.
3. Whatever is not a frame of its form ends the connection. When it ends, its grants and reservations end (see there).
4. What an engine does not take is bounded: beyond it the connection ends.
5. A connection that was ended from here, to which a GPU's memory was handed on, is kept until the engine closes it too:
   only then the engine is known to have unmapped that memory (see `device_segments`).

Frames are answered in the callback that reads them, without a task, unless they have to wait for something.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import secrets
import socket
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kvgate.auth.tenants import Tenant
from kvgate.error_table import INTERNAL, message_of, row_of
from kvgate.errors import AccessDenied, KVGateError, MalformedFrame, NoSuchKey, Overloaded
from kvgate.memory import handoff
from kvgate.memory.allocator import Extent
from kvgate.memory.handoff import Grant
from kvgate.memory.ledger import Ledger, Returns
from kvgate.memory.owner import engine_owner, tenant_of
from kvgate.memory.proof import attach_request
from kvgate.s3.access import Access
from kvgate.server.shm.device_segments import DeviceSegments
from kvgate.server.shm.grants import Grants
from kvgate.server.shm.reservations import Reservations
from kvgate.store.loan import Loan
from kvgate.tiers.base import Exporting
from kvgate.tiers.host import HostTier

if TYPE_CHECKING:
    from kvgate.server.shm.listener import EngineListener

logger = logging.getLogger(__name__)

MAX_GRANTS = 1024
"""Open at once, of one connection; a power of two."""

_MAX_UNSENT = 512
_MAX_WAITING = 64
_BRING_AT_ONCE = 4
_FIRST_SEGMENTS = 64
_SEND_BUFFER_NBYTES = 1 << 20

_NO_QUERY: Mapping[str, str] = MappingProxyType({})
_ABSENT = handoff.encode_grant(Grant(0, 0, reason=handoff.ABSENT))
_NOT_IN_MEMORY = handoff.encode_grant(Grant(0, 0, reason=handoff.NOT_IN_MEMORY))
_TOO_MANY = handoff.encode_grant(Grant(0, 0, reason=handoff.TOO_MANY))


@dataclass(slots=True)
class _Attached:
    """What a connection has once it is proved whose it is."""

    tenant: Tenant
    access: Access
    grants: Grants
    reservations: Reservations
    writes: bool
    device: DeviceSegments | None = None


class Connection:
    """See the module. Made when an engine has connected; calls `EngineListener.forget` at its end."""

    def __init__(self, sock: socket.socket, listener: EngineListener, attach_by: float) -> None:
        """attach_by: on the loop's clock"""
        self._sock = sock
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._nonce = secrets.token_bytes(handoff.NONCE_NBYTES)
        self._attach_by = attach_by
        self._attached: _Attached | None = None
        self._segments: set[int] = set()
        self._unsent: deque[tuple[bytes, int | None]] = deque()
        self._waiting = 0
        self._closed = False
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_NBYTES)
        self._loop.add_reader(sock.fileno(), self._readable)
        self._send(handoff.encode_hello(listener.boot_id, self._nonce))

    @property
    def tenant(self) -> str:
        """Whose connection it is; empty before that is proved."""
        return self._attached.tenant.name if self._attached else ""

    @property
    def grant_count(self) -> int:
        return len(self._attached.grants) if self._attached else 0

    # --- receiving ----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            nbytes = self._sock.recv_into(self._listener.buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            nbytes = 0
        if not nbytes:
            self.close("the engine has gone")
            return
        try:
            self._take(bytes(self._listener.buffer[:nbytes]))
        except MalformedFrame as error:
            self.close(f"the engine sent what is no frame: {error}", level=logging.WARNING)

    def _take(self, frame: bytes) -> None:
        if len(frame) > handoff.MAX_FRAME_NBYTES:
            raise MalformedFrame(f"a frame has at most {handoff.MAX_FRAME_NBYTES} bytes")
        kind, flags, items, request = handoff.head_of(frame)
        attached = self._attached
        if attached is None:
            if kind != handoff.ATTACH:
                raise MalformedFrame("the first frame has to be ATTACH")
            self._attach(request, *handoff.decode_attach(frame), writes=bool(flags & handoff.WRITE))
        elif kind == handoff.GET:
            self._get(attached, request, handoff.decode_get(frame, items), on_device=bool(flags & handoff.ON_DEVICE))
        elif kind == handoff.RELEASE:
            for number in handoff.decode_numbers(frame, items):
                loan = attached.grants.release(number)
                if flags & handoff.BAD and loan is not None and attached.device is not None:
                    self._start(request, self._verify(loan, attached.device.tier))
        elif kind == handoff.RESERVE:
            first = bool(flags & handoff.FIRST)
            self._start(request, self._reserve(attached, request, *handoff.decode_reserve(frame), first=first))
        elif kind in (handoff.COMMIT, handoff.ABORT):
            numbers = handoff.decode_numbers(frame, items)
            if len(numbers) != 1:
                raise MalformedFrame("one reservation at a time")
            finish = self._commit if kind == handoff.COMMIT else self._abort
            self._start(request, finish(attached, request, numbers[0]))
        elif kind == handoff.DEVICE:
            self._name_device(attached, request, handoff.decode_device(frame))
        elif kind == handoff.UNMAPPED:
            if attached.device is not None:
                attached.device.unmapped(handoff.decode_numbers(frame, items))
        elif kind == handoff.PING:
            self._send(handoff.encode_done(request, ""))
        else:
            raise MalformedFrame(f"there is no frame of the kind {kind}")

    # --- attaching ----------------------------------------------------------------------------------------------------

    def _attach(self, request: int, amz_date: str, authorization: str, *, writes: bool) -> None:
        listener = self._listener
        # A bearer token would be another kind of proof over the same nonce; the tenant comes out of it alike.
        claim = attach_request(listener.boot_id, self._nonce, amz_date, authorization, write=writes)
        try:
            tenant = listener.authenticator.authenticate(claim).tenant
            listener.admit(tenant.name)
            ledger, returns = Ledger(MAX_GRANTS), Returns(MAX_GRANTS)
        except (KVGateError, OSError) as error:
            self._send_error(request, error)
            self.close(f"an engine was not attached: {type(error).__name__}")
            return
        owner = engine_owner(tenant.name, listener.next_number())
        access = Access(listener.store, listener.tenants, tenant, None)
        self._attached = _Attached(
            tenant,
            access,
            Grants(ledger, returns, listener.lease_s),
            Reservations(listener.store, tenant, owner),
            writes,
        )
        lease_ms = int(listener.lease_s * 1000)
        answer = handoff.encode_attached(request, lease_ms, MAX_GRANTS, tenant.name)
        self._send_with(answer, ledger.fd, returns.fd)
        for segment in listener.arena.segments(tenant.name)[-_FIRST_SEGMENTS:]:
            self._introduce(self._attached, tenant.name, segment.id)

    def _introduce(self, attached: _Attached, owner: str, segment_id: int) -> None:
        """Hand a segment on, unless that has been done. Raises AccessDenied for one that is not the tenant's."""
        if segment_id in self._segments:
            return
        if tenant_of(owner) != attached.tenant.name:
            raise AccessDenied("the memory belongs to another tenant")
        segment = self._listener.arena.segment(segment_id)
        if segment is None:
            raise NoSuchKey("the memory has been given back meanwhile")
        write = attached.writes and owner == attached.reservations.owner
        self._segments.add(segment_id)
        self._send(handoff.encode_segment(segment_id, segment.nbytes, write=write), segment_id)

    def _introduce_on_device(self, attached: _Attached, device: DeviceSegments, loan: Loan) -> bool:
        """Hand on the segments of the GPU that a loan lies in; whether they can be. Raises AccessDenied."""
        if tenant_of(loan.owner) != attached.tenant.name:
            raise AccessDenied("the memory belongs to another tenant")
        return device.introduce(loan.extents, self._send)

    def _introduce_all(self, attached: _Attached, owner: str, extents: Sequence[Extent]) -> None:
        for segment_id, _, _ in extents:
            if segment_id not in self._segments:
                self._introduce(attached, owner, segment_id)

    def _name_device(self, attached: _Attached, request: int, uuid: bytes) -> None:
        tier = self._listener.store.exporting(uuid)
        if tier is not None and attached.device is None:
            attached.device = DeviceSegments(tier)
        there = tier is not None and attached.device is not None and attached.device.tier is tier
        self._send(handoff.encode_done(request, tier.name if tier is not None and there else ""))

    # --- reading ------------------------------------------------------------------------------------------------------

    def _get(self, attached: _Attached, request: int, asked: handoff.Asked, *, on_device: bool) -> None:
        device = attached.device if on_device else None
        if on_device and device is None:
            raise MalformedFrame("no tier lies on a GPU that this connection has named")
        lent: list[tuple[int, Loan]] = []
        rates, tenant = self._listener.store.rates, attached.tenant.name
        try:
            rates.requests.take(tenant)
            rates.read.take(tenant, 0)
            answers = [self._grant(attached, asked.bucket, key, lent, device) for key in asked.keys]
        except Exception as error:
            for number, _ in lent:
                attached.grants.release(number)
            self._send_error(request, error)
            return
        if asked.wait_ms and device is None and _NOT_IN_MEMORY in answers:
            self._start(request, self._get_later(attached, request, asked, answers))
        else:
            self._send_grants(request, answers)
        for _, loan in lent:  # while the engine copies
            loan.touch()
        self._listener.granted[HostTier.name if device is None else device.tier.name] += len(lent)

    def _grant(
        self,
        attached: _Attached,
        bucket: str,
        key: str,
        lent: list[tuple[int, Loan]],
        device: DeviceSegments | None = None,
    ) -> bytes:
        """An encoded grant, its number and loan appended to `lent`. Raises AccessDenied, NoSuchBucket."""
        attached.access.check(attached.tenant, bucket, key, "s3:GetObject", _NO_QUERY)
        if attached.grants.full:
            return _TOO_MANY
        try:
            tier = None if device is None else device.tier
            loan = self._listener.store.lend(attached.tenant.name, bucket, key, tier)
        except NoSuchKey:
            return _ABSENT
        if loan is None:
            return _NOT_IN_MEMORY
        try:
            if device is None:
                self._introduce_all(attached, loan.owner, loan.extents)
            elif not self._introduce_on_device(attached, device, loan):
                loan.end()
                return _NOT_IN_MEMORY
            number = attached.grants.open(loan, self._loop.time())
        except BaseException:
            loan.end()
            raise
        answer = handoff.encode_grant(Grant(number, loan.record.nbytes, loan.extents, loan.blocks))
        if len(answer) > handoff.MAX_GRANT_NBYTES:  # too large for one frame; HTTP streams it
            attached.grants.release(number)
            return _NOT_IN_MEMORY
        self._listener.store.rates.read.owe(attached.tenant.name, loan.record.nbytes)
        lent.append((number, loan))
        return answer

    async def _get_later(self, attached: _Attached, request: int, asked: handoff.Asked, answers: list[bytes]) -> None:
        """Bring to memory what is not there, a few at a time, and grant each as soon as it is."""
        lent: list[tuple[int, Loan]] = []
        missing = deque(place for place, answer in enumerate(answers) if answer is _NOT_IN_MEMORY)

        async def bring() -> None:
            while missing and not self._closed:
                place = missing.popleft()
                try:
                    await self._listener.store.bring_to_memory(attached.tenant.name, asked.bucket, asked.keys[place])
                    if not self._closed:
                        answers[place] = self._grant(attached, asked.bucket, asked.keys[place], lent)
                except KVGateError as error:
                    logger.debug("a chunk was not brought to memory: %s", error)

        try:
            async with asyncio.timeout(asked.wait_ms / 1000), asyncio.TaskGroup() as tasks:
                for _ in range(min(_BRING_AT_ONCE, len(missing))):
                    tasks.create_task(bring())
        except TimeoutError:
            logger.debug("chunks were not brought to memory in time")
        self._send_grants(request, answers)
        self._listener.granted[HostTier.name] += len(lent)

    async def _verify(self, loan: Loan, tier: Exporting) -> None:
        """Look at a copy on the GPU that the engine has found to be bad; it is dropped if it is."""
        tenant, bucket, key = loan.record[:3]
        self._listener.store.rates.requests.take(tenant)
        await self._listener.store.verify(tenant, bucket, key, tier)

    def _send_grants(self, request: int, answers: list[bytes]) -> None:
        if len(answers) == 1:
            self._send(handoff.encode_one_grant(request, answers[0]))
            return
        start = nbytes = 0
        for end, answer in enumerate(answers):
            if nbytes + len(answer) > handoff.MAX_GRANT_NBYTES:
                self._send(handoff.encode_grants(request, answers[start:end], more=True))
                start, nbytes = end, 0
            nbytes += len(answer)
        self._send(handoff.encode_grants(request, answers[start:], more=False))

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _reserve(
        self, attached: _Attached, request: int, nbytes: int, bucket: str, key: str, *, first: bool
    ) -> None:
        if not attached.writes:
            raise AccessDenied("this connection was attached for reading only")
        self._listener.store.rates.requests.take(attached.tenant.name)
        attached.access.check(attached.tenant, bucket, key, "s3:PutObject", _NO_QUERY)
        deadline = self._loop.time() + self._listener.lease_s
        number, write = await attached.reservations.reserve(bucket, key, nbytes, deadline, first=first)
        try:
            self._introduce_all(attached, attached.reservations.owner, write.extents)
            answer = handoff.encode_reserved(request, number, nbytes, write.extents)
            if len(answer) > handoff.MAX_FRAME_NBYTES:
                raise Overloaded("memory is too fragmented for this object")
        except BaseException:
            await attached.reservations.abort(number)
            raise
        self._send(answer)

    async def _commit(self, attached: _Attached, request: int, number: int) -> None:
        self._send(handoff.encode_done(request, await attached.reservations.commit(number)))

    async def _abort(self, attached: _Attached, request: int, number: int) -> None:
        await attached.reservations.abort(number)
        self._send(handoff.encode_done(request, ""))

    # --- sending ------------------------------------------------------------------------------------------------------

    def _start(self, request: int, work: Coroutine[Any, Any, None]) -> None:
        """Run what has to wait in a task, and answer with the error that it ends with."""
        if self._waiting >= _MAX_WAITING:
            work.close()
            self._send_error(request, Overloaded(f"{_MAX_WAITING} requests of this connection are waiting"))
            return
        self._waiting += 1
        self._listener.tasks.create_task(self._run(request, work))

    async def _run(self, request: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._send_error(request, error)
        finally:
            self._waiting -= 1

    def _send_error(self, request: int, error: Exception) -> None:
        row = row_of(error)
        if row is INTERNAL:
            logger.error("a request by shared memory failed", exc_info=error)
        self._send(handoff.encode_error(request, row.status, row.code, message_of(error)))

    def _send(self, frame: bytes, segment_id: int | None = None) -> None:
        """Send a frame, with a segment's descriptor if one is named; keep it where the socket takes none now."""
        if self._closed or (not self._unsent and self._send_now(frame, segment_id)):
            return
        self._unsent.append((frame, segment_id))
        if len(self._unsent) > _MAX_UNSENT:
            self.close("the engine does not take what it is sent", level=logging.WARNING)
        else:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _send_now(self, frame: bytes, segment_id: int | None) -> bool:
        try:
            if segment_id is None:
                self._sock.send(frame)
            else:
                self._send_segment(frame, segment_id)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.close(f"the engine cannot be sent to: {error.strerror}")
        return True

    def _send_segment(self, frame: bytes, segment_id: int) -> None:
        segment = self._listener.arena.segment(segment_id)
        if segment is None:  # given back since the frame was made: the engine finds that it does not know the segment
            return
        if handoff.head_of(frame)[1] & handoff.WRITE:
            self._send_with(frame, segment.fd)
        else:
            with open(segment.reader_fd(), "rb", buffering=0) as reader:
                self._send_with(frame, reader.fileno())

    def _send_with(self, frame: bytes, *fds: int) -> None:
        self._sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])

    def _writable(self) -> None:
        while self._unsent and not self._closed:
            if not self._send_now(*self._unsent[0]):
                return
            self._unsent.popleft()
        if not self._closed:
            self._loop.remove_writer(self._sock.fileno())

    # --- the end ------------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """End what has passed its deadline, and say which segments are gone. `now` is on the loop's clock."""
        attached = self._attached
        if self._closed:
            return
        if attached is None:
            if now > self._attach_by:
                self.close("the engine did not attach in time")
            return
        attached.grants.take_back()
        self._listener.metrics.shm_expired.inc(attached.grants.expire(now))
        if overdue := attached.reservations.overdue(now):
            self._listener.metrics.shm_expired.inc(overdue)
            self.close("a reservation was neither committed nor aborted in time", level=logging.WARNING)
            return
        gone = [each for each in self._segments if self._listener.arena.segment(each) is None]
        if gone:
            self._segments.difference_update(gone)
            self._send(handoff.encode_numbers(handoff.GONE, 0, gone))
        if attached.device is not None and (gone := attached.device.gone()):
            self._send(handoff.encode_numbers(handoff.GONE, 0, gone, handoff.ON_DEVICE))

    def close(self, why: str, level: int = logging.DEBUG) -> None:
        """End the connection and all that it holds. Idempotent."""
        if self._closed:
            return
        self._closed = True
        logger.log(level, "shared memory: %s", why)
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._unsent.clear()
        if self._attached is not None:
            self._attached.grants.close()
            self._listener.tasks.create_task(self._attached.reservations.close())
        if self._attached is not None and self._attached.device:
            with contextlib.suppress(OSError):  # it has closed its end already
                self._sock.shutdown(socket.SHUT_WR)
            self._loop.add_reader(self._sock.fileno(), self._await_end)
        else:
            self.forget()

    def forget(self) -> None:
        """Close this end of the socket, whatever the engine still maps. Idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._listener.forget(self)

    def _await_end(self) -> None:
        """Take what still comes, up to the engine's end of the socket: then it maps nothing any more."""
        try:
            if self._sock.recv_into(self._listener.buffer):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            logger.debug("shared memory: %s", error)
        if self._attached is not None and self._attached.device is not None:
            self._attached.device.end()
        self.forget()
