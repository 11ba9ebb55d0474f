"""One connection to a gateway's memory.

Invariants
1. Of many threads that wait for answers, one reads the socket for all. Nobody waits past its own deadline.
2. An answer that nobody waits for any more gives back what it grants.
3. A child process does not use what its parent attached.
4. The socket is closed after the last segment of the GPU was unmapped: the gateway may give its memory back then.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Sequence
from typing import NoReturn

from kvgate.auth.sigv4 import Credential
from kvgate.client.local.copy_thread import CopyThread
from kvgate.client.local.device_grant import DeviceGrant
from kvgate.client.local.device_memory import DeviceMemory
from kvgate.client.local.gpu import Gpu
from kvgate.client.local.grant import Grant
from kvgate.client.local.reservation import Reservation
from kvgate.errors import DeadlineExceeded, GatewayError, GatewayUnavailable, MalformedFrame
from kvgate.http.deadline import Deadline
from kvgate.kernels.device import DeviceError
from kvgate.memory import handoff
from kvgate.memory.allocator import Extent
from kvgate.memory.ledger import LedgerView, ReturnsView
from kvgate.memory.mapping import Mapping
from kvgate.memory.proof import sign_attach

_POLL_S = 0.05
_SPIN_S = 100e-6
"""How long an answer is looked for before the thread sleeps: to be woken costs as much as most answers take."""

_LISTEN_EVERY_S = 1.0
"""How often an engine that asks for nothing hears which segments of the GPU it is to unmap."""

_CONTROL_NBYTES = socket.CMSG_SPACE(8)


class Attachment:
    """One connection to the gateway's memory. Thread-safe.

    Raises GatewayUnavailable when nobody is there, or it is another gateway, and GatewayError when it refuses.
    """

    def __init__(
        self, path: str, credential: Credential, deadline: Deadline, *, boot_id: bytes | None = None, write: bool = True
    ) -> None:
        """
        boot_id: of the gateway that is meant, as it has told by another way; None for whichever is there
        write:   whether objects are to be put, too
        """
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._reading = False
        self._broken = False
        self._number = 0
        self._waiting: dict[int, list[bytes]] = {}
        self._answers: dict[int, list[bytes]] = {}
        self._segments: dict[int, Mapping] = {}
        self._named = False  # which GPU this is
        self._device: DeviceMemory | None = None
        self._refused = False  # to map memory of the GPU
        self._ended = threading.Event()
        self._buffers = [memoryview(bytearray(handoff.MAX_FRAME_NBYTES))]
        self.copy_thread = CopyThread() if (os.cpu_count() or 1) > 1 else None
        self._pid = os.getpid()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._sock.settimeout(deadline.remaining_s())
            self._sock.connect(path)
            self._sock.settimeout(None)
            tick = struct.pack("ll", 0, int(_POLL_S * 1e6))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
            self._attach(credential, deadline, boot_id, write=write)
        except (OSError, MalformedFrame) as error:
            self.close()
            raise GatewayUnavailable(f"no gateway at {path}: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether the connection is there, and is this process's own."""
        return not self._broken and self._pid == os.getpid()

    def close(self) -> None:
        """End the connection, and with it every grant. Views stay mapped as long as they live. Idempotent.

        With grants on the GPU that are not released yet, it ends for the gateway when the last one is.
        """
        self._broken = True
        self._ended.set()
        if self._device is not None and self._pid == os.getpid():
            self._device.close(self._sock.close)
        else:
            self._sock.close()
        if self.copy_thread is not None:
            self.copy_thread.close()
        with self._changed:
            self._changed.notify_all()

    # --- calls --------------------------------------------------------------------------------------------------------

    def get(self, bucket: str, key: str, deadline: Deadline, *, wait_s: float = 0.0) -> Grant | int:
        """A grant, or the reason why there is none (`handoff.ABSENT`, …).

        wait_s: how long the object may be brought to memory
        """
        wait_ms = int(wait_s * 1000)
        frames = self._ask(lambda number: handoff.encode_get(number, bucket, key, wait_ms), deadline)
        return self._grants(frames)[0]

    def get_chunks(
        self, bucket: str, space: bytes, hashes: Sequence[bytes], deadline: Deadline, *, wait_s: float = 0.0
    ) -> list[Grant | int]:
        """A grant or a reason for each of up to `handoff.MAX_HASHES` chunks, in order, in one exchange."""
        wait_ms = int(wait_s * 1000)
        return self._grants(
            self._ask(lambda number: handoff.encode_get_chunks(number, bucket, space, hashes, wait_ms), deadline)
        )

    def use_gpu(self, gpu: Gpu, deadline: Deadline) -> bool:
        """Whether the gateway has a tier on this GPU, from which `get_chunks_on_gpu` gets. A connection has one GPU."""
        if not self._named:
            frames = self._ask(lambda number: handoff.encode_device(number, gpu.device.uuid), deadline)
            there = bool(self._text(frames[0]))
            with self._lock:
                first, self._named = not self._named, True
                if first and there:
                    self._device = DeviceMemory(gpu, self._say_unmapped)
                    listening = (weakref.ref(self), self._ended)
                    threading.Thread(target=_listen, args=listening, name="kvgate-gpu-memory", daemon=True).start()
        return self._device is not None and self._device.gpu is gpu and not self._refused

    def get_chunks_on_gpu(
        self, bucket: str, space: bytes, hashes: Sequence[bytes], deadline: Deadline
    ) -> list[DeviceGrant | int]:
        """As `get_chunks`, of chunks that lie in the gateway's memory on the GPU now. `use_gpu` has been true before.

        Raises GatewayUnavailable also where the driver does not let this process map that memory; then `use_gpu` is
        false from now on.
        """
        memory = self._device
        if memory is None:
            raise GatewayUnavailable("the gateway has no memory on this GPU")
        frames = self._ask(
            lambda number: handoff.encode_get_chunks(number, bucket, space, hashes, 0, on_device=True), deadline
        )
        found = self._decoded(frames)
        mapped: dict[int, DeviceGrant] = {}
        try:
            for grant in found:
                if grant.id:
                    mapped[grant.id] = DeviceGrant(self, memory, grant)
        except (DeviceError, GatewayUnavailable) as error:
            for each in mapped.values():
                each.release()
            self.release([grant.id for grant in found if grant.id and grant.id not in mapped])
            self._refused = self._refused or isinstance(error, DeviceError)
            raise GatewayUnavailable(f"the gateway's memory on the GPU cannot be used: {error}") from error
        return [mapped[grant.id] if grant.id else grant.reason for grant in found]

    def reserve(self, bucket: str, key: str, nbytes: int, deadline: Deadline, *, first: bool = False) -> Reservation:
        """Memory for an object of `nbytes`, at least one.

        first: only where there is no such object: else GatewayError PreconditionFailed, now or from `commit`
        """
        frames = self._ask(lambda number: handoff.encode_reserve(number, bucket, key, nbytes, first=first), deadline)
        try:
            number, nbytes, extents = handoff.decode_reserved(frames[0])
        except MalformedFrame as error:
            raise self._unusable(error) from error
        try:
            return Reservation(self, number, nbytes, extents)
        except GatewayUnavailable:
            self.abort(number)
            raise

    def ping(self, deadline: Deadline) -> None:
        """One exchange that does nothing."""
        self._ask(lambda number: handoff.encode_empty(handoff.PING, number), deadline)

    def listen(self, deadline: Deadline) -> None:
        """Hear what the gateway says without being asked, where that may be waited for."""
        if self._device is not None and len(self._device):
            self.ping(deadline)

    def release(self, numbers: Sequence[int], *, soon: bool = False, bad: bool = False) -> None:
        """Let grants go at once, or `soon`, which costs no call: within a fraction of a second.

        bad: what was copied from the GPU did not match its digests, which the gateway then looks at
        """
        if soon:
            for number in numbers:
                self._returns.give_back(number)
            return
        with contextlib.suppress(GatewayUnavailable, DeadlineExceeded):  # the grants end with the connection
            self._send(handoff.encode_numbers(handoff.RELEASE, 0, numbers, handoff.BAD if bad else 0), Deadline(1.0))

    def commit(self, number: int, deadline: Deadline) -> str:
        return self._text(
            self._ask(lambda request: handoff.encode_numbers(handoff.COMMIT, request, [number]), deadline)[0]
        )

    def abort(self, number: int) -> None:
        with contextlib.suppress(GatewayUnavailable, DeadlineExceeded):
            self._send(handoff.encode_numbers(handoff.ABORT, 0, [number]), Deadline(1.0))

    def holds(self, number: int) -> bool:
        return self._ledger.holds(number)

    def pieces(self, extents: Sequence[Extent], nbytes: int) -> list[tuple[Mapping, int, int]]:
        """Where the first `nbytes` of the extents lie: mapping, offset and length."""
        pieces = []
        left = nbytes
        for extent in extents:
            mapping = self._segments.get(extent.segment_id)
            take = min(extent.nbytes, left)
            if mapping is None or extent.offset + take > mapping.nbytes:
                raise GatewayUnavailable("the gateway granted memory that it has not handed on")
            pieces.append((mapping, extent.offset, take))
            left -= take
        if left:
            raise GatewayUnavailable("the gateway granted less memory than the object has")
        return pieces

    def _grants(self, frames: list[bytes]) -> list[Grant | int]:
        return [Grant(self, grant) if grant.id else grant.reason for grant in self._decoded(frames)]

    def _decoded(self, frames: list[bytes]) -> list[handoff.Grant]:
        found: list[handoff.Grant] = []
        try:
            for frame in frames:
                found += handoff.decode_grants(frame, handoff.head_of(frame)[2])
        except MalformedFrame as error:
            raise self._unusable(error) from error
        return found

    def _text(self, frame: bytes) -> str:
        try:
            return handoff.decode_text(frame)
        except MalformedFrame as error:
            raise self._unusable(error) from error

    def _say_unmapped(self, segment_ids: list[int]) -> None:
        with contextlib.suppress(GatewayUnavailable, DeadlineExceeded):
            self._send(handoff.encode_numbers(handoff.UNMAPPED, 0, segment_ids), Deadline(1.0))

    # --- attaching ----------------------------------------------------------------------------------------------------

    def _attach(self, credential: Credential, deadline: Deadline, boot_id: bytes | None, *, write: bool) -> None:
        found, nonce = handoff.decode_hello(self._hello(deadline))
        if boot_id is not None and found != boot_id:
            raise GatewayUnavailable("another gateway than the one that is meant, or another run of it")
        self.boot_id = found
        amz_date, authorization = sign_attach(credential, found, nonce, write=write, now=time.time())
        self._send(handoff.encode_attach(1, amz_date, authorization, write=write), deadline)
        frame, fds = self._receive(deadline)
        try:
            kind = handoff.head_of(frame)[0]
            if kind == handoff.ERROR:
                _refuse(frame)
            if kind != handoff.ATTACHED or len(fds) != 2:
                raise MalformedFrame("expected ATTACHED")
            lease_ms, grants, self.tenant = handoff.decode_attached(frame)
            self.lease_s = lease_ms / 1000
            self._ledger, self._returns = LedgerView(fds[0], grants), ReturnsView(fds[1], grants)
        finally:
            _close_all(fds)
        self._number = 1
        self.ping(deadline)  # what comes before its answer are the segments that there are

    def _hello(self, deadline: Deadline) -> bytes:
        frame, fds = self._receive(deadline)
        _close_all(fds)
        return frame

    # --- one exchange -------------------------------------------------------------------------------------------------

    def _ask(self, encode: Callable[[int], bytes], deadline: Deadline) -> list[bytes]:
        """The frames of the answer. Raises GatewayError for a refusal."""
        with self._lock:
            number = self._number = self._number % 0xFFFFFFFF + 1
            self._waiting[number] = []
            reads = not self._reading
            self._reading = True
        try:
            if reads:
                self._read_until(number, deadline, encode(number))
                frames = self._answers.pop(number)
            else:
                self._send(encode(number), deadline)
                frames = self._answer(number, deadline)
        except BaseException:
            with self._lock:
                self._waiting.pop(number, None)
                late = self._answers.pop(number, [])
            self._give_back(late)
            raise
        if frames[0][0] == handoff.ERROR:
            _refuse(frames[0])
        return frames

    def _send(self, frame: bytes, deadline: Deadline) -> None:
        while True:
            if self._broken or self._pid != os.getpid():
                raise GatewayUnavailable("the connection to the gateway's memory has ended")
            try:
                self._sock.send(frame)
                return
            except (BlockingIOError, InterruptedError):
                deadline.remaining_s()
            except OSError as error:
                self.close()
                raise GatewayUnavailable(f"the connection to the gateway's memory broke: {error}") from error

    def _answer(self, number: int, deadline: Deadline) -> list[bytes]:
        """Wait for the thread that reads, and read when it has stopped before the answer came."""
        with self._changed:
            while self._reading and number not in self._answers and not self._broken:
                self._changed.wait(_POLL_S)
                deadline.remaining_s()
            if number in self._answers:
                return self._answers.pop(number)
            self._reading = True
        self._read_until(number, deadline)
        return self._answers.pop(number)

    def _read_until(self, number: int, deadline: Deadline, frame: bytes = b"") -> None:
        """Send `frame`, read for every thread until the answer to one's own call is there, and let another go on."""
        try:
            if frame:
                self._send(frame, deadline)
            while number not in self._answers:
                self._dispatch(*self._receive(deadline))
        finally:
            with self._lock:
                self._reading = False
                if self._waiting or self._answers:
                    self._changed.notify_all()

    def _dispatch(self, frame: bytes, fds: list[int]) -> None:
        try:
            kind, flags, items, request = handoff.head_of(frame)
            if kind >= handoff.GRANTS:
                self._arrived(request, frame, more=kind == handoff.GRANTS and bool(flags & handoff.MORE))
            elif kind == handoff.SEGMENT and flags & handoff.ON_DEVICE:
                if self._device is not None:
                    self._device.add(*handoff.decode_device_segment(frame))
            elif kind == handoff.GONE and flags & handoff.ON_DEVICE:
                if self._device is not None:
                    self._device.gone(handoff.decode_numbers(frame, items))
            elif kind == handoff.SEGMENT:
                segment_id, nbytes = handoff.decode_segment(frame)
                if len(fds) != 1:
                    raise MalformedFrame("a segment without its descriptor")
                self._segments[segment_id] = Mapping(fds[0], nbytes, write=bool(flags & handoff.WRITE))
            elif kind == handoff.GONE:
                for segment_id in handoff.decode_numbers(frame, items):
                    self._segments.pop(segment_id, None)
            else:
                raise MalformedFrame(f"a frame of the kind {kind} that nobody asked for")
        except (MalformedFrame, OSError) as error:
            raise self._unusable(error) from error
        finally:
            if fds:
                _close_all(fds)

    def _arrived(self, request: int, frame: bytes, *, more: bool) -> None:
        with self._lock:
            frames = self._waiting.get(request)
            if frames is not None:
                frames.append(frame)
                if not more:
                    self._answers[request] = self._waiting.pop(request)
                    if self._waiting:
                        self._changed.notify_all()
                return
        self._give_back([frame])

    def _give_back(self, frames: list[bytes]) -> None:
        """Release what came for a call that does not wait any more."""
        for frame in frames:
            kind, _, items, _ = handoff.head_of(frame)
            if kind == handoff.GRANTS:
                self.release([grant.id for grant in handoff.decode_grants(frame, items) if grant.id])
            elif kind == handoff.RESERVED:
                self.abort(handoff.decode_reserved(frame)[0])

    def _receive(self, deadline: Deadline) -> tuple[bytes, list[int]]:
        """The next frame, and the descriptors that came with it, which the caller closes."""
        sleep_at = time.perf_counter() + _SPIN_S
        while True:
            deadline.remaining_s()
            if self._broken:
                raise GatewayUnavailable("the connection to the gateway's memory has ended")
            spins = time.perf_counter() < sleep_at
            flags = socket.MSG_CMSG_CLOEXEC | (socket.MSG_DONTWAIT if spins else 0)
            try:
                nbytes, control, _, _ = self._sock.recvmsg_into(self._buffers, _CONTROL_NBYTES, flags)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                self.close()
                raise GatewayUnavailable(f"the connection to the gateway's memory broke: {error}") from error
            if not nbytes:
                self.close()
                raise GatewayUnavailable("the gateway has ended the connection to its memory")
            return bytes(self._buffers[0][:nbytes]), _descriptors(control) if control else []

    def _unusable(self, error: Exception) -> GatewayUnavailable:
        """End the connection because of what the gateway has sent."""
        self.close()
        return GatewayUnavailable(f"the gateway's memory cannot be used: {error}")


def _listen(attachment: weakref.ref[Attachment], ended: threading.Event) -> None:
    """Have an engine that asks for nothing hear which segments of the GPU are gone."""
    while not ended.wait(_LISTEN_EVERY_S):
        found = attachment()
        if found is None:
            return
        with contextlib.suppress(GatewayError):
            found.listen(Deadline(_LISTEN_EVERY_S))
        del found


def _refuse(frame: bytes) -> NoReturn:
    status, code, message = handoff.decode_error(frame)
    raise GatewayError(f"the gateway answered {status} {code}: {message}", status=status, code=code)


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
