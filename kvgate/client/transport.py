"""Which way the bytes go: memory of the same GPU, shared memory, HTTP over a unix socket, or HTTP over TCP.

The gateway tells with `tenant()` what there is on its own host. A path is believed only once whoever is behind it has
told the same boot id: another host may have a gateway at a socket of the same name. Whatever fails on a faster way goes
the next one. A way that was lost is looked for again every second, and memory that is refused ever more rarely.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvgate.auth.sigv4 import Credential
from kvgate.client.loader import Wanted
from kvgate.client.local import Attachment, DeviceGrant, Gpu, Grant
from kvgate.client.local.gpu import Placed
from kvgate.client.values import LocalWays, Traffic
from kvgate.errors import DeadlineExceeded, GatewayError, GatewayUnavailable
from kvgate.http.deadline import Deadline
from kvgate.kernels.device import DeviceError, Event
from kvgate.memory import handoff

GPU, SHM, UNIX, TCP = "gpu", "shm", "unix", "tcp"

_RETRY_S, _MAX_RETRY_S = 1.0, 60.0
_CHUNKS_AT_ONCE = 64
_WAIT_SHARE = 0.5
"""Of the time that is left, how much the gateway may take to bring chunks to memory."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Count:
    transfers: int = 0
    nbytes: int = 0


class Transport:
    """The ways of one client. Thread-safe; every method but `put` leaves failures to the next way."""

    def __init__(self, credential: Credential, *, local: bool) -> None:
        """local: whether anything but TCP is to be used"""
        self._credential = credential
        self._local = local
        self._lock = threading.Lock()
        self._ways: LocalWays | None = None
        self._attachment: Attachment | None = None
        self._retry_at, self._retry_s = 0.0, _RETRY_S
        self._lost = False
        self._counts = {way: _Count() for way in (GPU, SHM, UNIX, TCP)}

    def learn(self, ways: LocalWays | None) -> None:
        """Take what the gateway says of itself."""
        with self._lock:
            if ways != self._ways:
                self._ways = ways
                self._retry_at, self._retry_s = 0.0, _RETRY_S
            self._lost = False

    @property
    def has_memory(self) -> bool:
        """Whether the gateway has told of memory to attach to, so that a way without HTTP is worth a thread."""
        return self._local and self._ways is not None and bool(self._ways.shm_socket)

    @property
    def unix_socket(self) -> str:
        """Where the gateway says that it answers HTTP on its own host; empty for nowhere."""
        return self._ways.unix_socket if self._local and self._ways else ""

    @property
    def boot_id(self) -> bytes:
        """Of the gateway that has told its ways last."""
        return self._ways.boot_id if self._ways else b""

    def wants_news(self) -> bool:
        """Whether a way is lost, so that the gateway should be asked again. True once in a while."""
        if not self._lost:
            return False
        with self._lock:
            wants = self._lost and time.monotonic() >= self._retry_at
            if wants:
                self._retry_at = time.monotonic() + _RETRY_S
            return wants

    def lose(self) -> None:
        """Note that a way does not work any more."""
        with self._lock:
            self._lost = True

    def attachment(self, deadline: Deadline) -> Attachment | None:
        """The gateway's memory, if it can be had."""
        found = self._attachment
        if found is not None and found.usable:
            return found
        with self._lock:
            if self._attachment is not None and self._attachment.usable:
                return self._attachment
            ways = self._ways
            if not self._local or self._lost or ways is None or not ways.shm_socket:
                return None
            if self._attachment is not None:
                self._attachment.close()
                self._attachment = None
            try:
                self._attachment = Attachment(ways.shm_socket, self._credential, deadline, boot_id=ways.boot_id)
            except GatewayError as error:
                _log.debug("no shared memory: %s", error)
                self._lost = True
                self._retry_at = time.monotonic() + self._retry_s
                self._retry_s = min(2 * self._retry_s, _MAX_RETRY_S)
            else:
                self._retry_s = _RETRY_S
            return self._attachment

    def load_prefix(self, wanted: Wanted, deadline: Deadline) -> tuple[int, bool]:
        """How many leading chunks were copied into their buffers, and whether the next one is known to be nowhere.

        A chunk of another size ends the prefix too, for the next way to say why.
        """
        done, hashes, views, cut = 0, wanted.hashes, wanted.buffers, wanted.cut
        runs = cut.runs if cut is not None else None
        with self._falling_back():
            while done < len(hashes) and (attachment := self.attachment(deadline)) is not None:
                asked = hashes[done : done + _CHUNKS_AT_ONCE]
                wait_s = deadline.remaining_s() * _WAIT_SHARE
                space = bytes.fromhex(wanted.space)
                grants = attachment.get_chunks(wanted.bucket, space, asked, deadline, wait_s=wait_s)
                try:
                    for grant in grants:
                        if not isinstance(grant, Grant):
                            return done, grant == handoff.ABSENT
                        fits_nbytes = len(views[done]) if cut is None else cut.chunk_nbytes
                        if grant.nbytes > fits_nbytes or (wanted.exact and grant.nbytes < fits_nbytes):
                            return done, False
                        grant.copy_into(views[done], deadline, runs)
                        grant.release()
                        self.count(SHM, grant.nbytes if cut is None else len(views[done]))
                        done += 1
                finally:
                    for grant in grants:
                        if isinstance(grant, Grant):
                            grant.release()
        return done, False

    def load_on_gpu(
        self, gpu: Gpu, wanted: Wanted, targets: Sequence[int], after: Event | None, deadline: Deadline
    ) -> int:
        """How many leading chunks were copied to `targets` on the GPU, and verified there.

        targets: an address for each chunk of `wanted`, which has the length of its buffer
        after:   what the engine has submitted that still uses the targets
        """
        done, space = 0, bytes.fromhex(wanted.space)
        with self._falling_back():
            while done < len(wanted.hashes) and (attachment := self.attachment(deadline)) is not None:
                if not attachment.use_gpu(gpu, deadline):
                    break
                asked = wanted.hashes[done : done + _CHUNKS_AT_ONCE]
                grants = attachment.get_chunks_on_gpu(wanted.bucket, space, asked, deadline)
                try:
                    right = self._copy_on_gpu(gpu, grants, wanted.buffers[done:], targets[done:], after)
                finally:
                    for grant in grants:
                        if isinstance(grant, DeviceGrant):
                            grant.release()
                done += right
                if right < len(asked):
                    break
        return done

    def _copy_on_gpu(
        self,
        gpu: Gpu,
        grants: Sequence[DeviceGrant | int],
        buffers: Sequence[memoryview],
        targets: Sequence[int],
        after: Event | None,
    ) -> int:
        """How many leading grants there are, of their buffers' lengths, whose copies count."""
        taken: list[DeviceGrant] = []
        for grant, buffer in zip(grants, buffers, strict=False):
            if not isinstance(grant, DeviceGrant) or grant.nbytes != len(buffer):
                break
            taken.append(grant)
        if not taken:
            return 0
        placed = [Placed(grant.extents, grant.nbytes, at) for grant, at in zip(taken, targets, strict=False)]
        try:
            found = gpu.copy(placed, after)
        except DeviceError as error:
            _log.warning("a copy on the GPU failed, and chunks go another way: %s", error)
            return 0
        right = 0
        for grant, blocks in zip(taken, found, strict=True):
            if not grant.holds:
                break
            if blocks != grant.blocks:
                _log.warning("a chunk on the GPU does not match its digest, and goes another way")
                grant.release(bad=True)
                break
            self.count(GPU, grant.nbytes)
            right += 1
        return right

    def load(self, bucket: str, key: str, view: memoryview, deadline: Deadline) -> int | None:
        """The length of an object that was copied into the front of `view`; None to go another way."""
        with self._falling_back():
            attachment = self.attachment(deadline)
            if attachment is not None:
                found = attachment.get(bucket, key, deadline, wait_s=deadline.remaining_s() * _WAIT_SHARE)
                if isinstance(found, Grant):
                    with found:
                        if found.nbytes <= len(view):
                            found.copy_into(view, deadline)
                            self.count(SHM, found.nbytes)
                            return found.nbytes
        return None

    def put(
        self, bucket: str, key: str, views: Sequence[memoryview], deadline: Deadline, *, first: bool = False
    ) -> str | None:
        """The entity tag of an object that was stored; None to go another way.

        first: only where there is no such object
        Raises GatewayError for a refusal that another way would meet too, and DeadlineExceeded.
        """
        nbytes = sum(map(len, views))
        try:
            attachment = self.attachment(deadline)
            if attachment is None or not nbytes:
                return None
            with attachment.reserve(bucket, key, nbytes, deadline, first=first) as reservation:
                reservation.fill(views, deadline)
                etag = reservation.commit(deadline)
        except DeadlineExceeded:
            raise
        except GatewayError as error:
            if 400 <= error.status < 500 and error.code != "NoSuchLease":
                raise
            self._failed(error)
            return None
        self.count(SHM, nbytes)
        return etag

    def count(self, way: str, nbytes: int) -> None:
        """Note a transfer."""
        with self._lock:
            self._counts[way].transfers += 1
            self._counts[way].nbytes += nbytes

    def traffic(self) -> Mapping[str, Traffic]:
        """What went which way so far."""
        with self._lock:
            return {way: Traffic(count.transfers, count.nbytes) for way, count in self._counts.items()}

    def close(self) -> None:
        """End the connection to the gateway's memory. Idempotent."""
        with self._lock:
            self._local = False
            if self._attachment is not None:
                self._attachment.close()

    @contextlib.contextmanager
    def _falling_back(self) -> Iterator[None]:
        try:
            yield
        except GatewayError as error:
            self._failed(error)

    def _failed(self, error: GatewayError) -> None:
        _log.debug("shared memory failed, and the next way is taken: %s", error)
        attachment = self._attachment
        if isinstance(error, GatewayUnavailable) and attachment is not None and not attachment.usable:
            self.lose()
