"""Bytes on their way between a socket and memory, in steps that never block.

A transfer is stepped by one thread at a time: the event loop's for small ones, a mover's for large ones. Each step
leaves the GIL to the others while the kernel copies.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

from kvgate.messages import Consume

SMALL_NBYTES = 1 << 20
"""A transfer of at most so many bytes stays on the event loop: a change of threads would cost more than it takes."""

LOOP_NBYTES = 8 << 20
"""Larger ones stay there too while they have at most so many bytes together: threads are for when there is more."""

_CALL_NBYTES = 1 << 20
"""The most that one call receives: what has arrived is digested while it is in the cache."""

_STEP_NBYTES = 8 << 20
"""After so many bytes a step ends, so that others get their turn."""

_IOV_VIEWS = 512
_ENDED = -1
_DISCARD_CALLS = 16


class Pace(NamedTuple):
    """How slow a peer may be: a pause of `pause_s` at most, and after that `rate` bytes a second on the average."""

    pause_s: float
    rate: float = 0.0


class Transfer:
    """What is moved, up to its end, whoever waits for it."""

    events = 0
    """The epoll events on which `step` can go on."""

    def __init__(self, sock: socket.socket, pace: Pace) -> None:
        self.sock = sock
        self.pace = pace
        self.began_at = self.moved_at = time.monotonic()
        self.late = False
        self._nbytes = 0
        """How many bytes there are to move."""
        self._ended: Ended | None = None

    @property
    def ended(self) -> Ended:
        """What to wait for when a step was not the last. On the event loop."""
        if self._ended is None:
            self._ended = Ended(self)
        return self._ended

    @property
    def left(self) -> int:
        """How many bytes are still to be moved."""
        raise NotImplementedError

    def step(self) -> bool:
        """Move what can be moved now; whether that was the last. Raises OSError, and what a consumer raises."""
        raise NotImplementedError

    def cut(self) -> None:
        """Make the next step end the transfer: nothing more will be moved. From any thread."""
        _shutdown(self.sock, socket.SHUT_RD)  # what has been received so far can still be answered

    def settle(self, failure: BaseException | None) -> None:
        """Tell whoever waits that it has ended, or failed. From the event loop."""
        if failure is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(failure)

    def cut_if_late(self, now: float) -> bool:
        """Cut it when nothing has moved for too long, or too little; whether that was now."""
        pause_s, rate = self.pace
        due = (now - self.began_at - pause_s) * rate
        if self.late or (now - self.moved_at <= pause_s and self._nbytes - self.left >= due):
            return False
        self.late = True
        self.cut()
        return True


class Ended(asyncio.Future[None]):
    """Done when nobody touches the memory of a transfer any more.

    A task that waits for it and is cancelled cuts the transfer, and sees the cancellation when that has ended.
    """

    def __init__(self, transfer: Transfer) -> None:
        super().__init__()
        self._transfer = transfer

    def cancel(self, msg: object = None) -> bool:
        self._transfer.cut()
        return False


class PeerGone(ConnectionError):
    """The peer ended the stream within a message."""


def peer_gone(left: int) -> PeerGone:
    """What to raise, or to say, of a body of which the last `left` bytes do not come."""
    return PeerGone(f"the peer ended the stream {left} bytes before the end of the body")


Receiver = Callable[[socket.socket, Sequence[memoryview], int], tuple[int, int]]
"""See kvgate.native.BlockDigest.receive."""


class Receive(Transfer):
    """Fills `views` in order, `nbytes` in all, and shows each piece to `consume` as it arrives."""

    events = select.EPOLLIN

    def __init__(
        self, sock: socket.socket, pace: Pace, views: Sequence[memoryview], nbytes: int, consume: Consume
    ) -> None:
        """nbytes: at most what `views` hold"""
        super().__init__(sock, pace)
        self.received = 0
        self._nbytes = nbytes
        self._consume = consume
        self._receive = getattr(consume, "receive", None)
        self._views = deque(view for view in views if view)

    @property
    def left(self) -> int:
        return self._nbytes - self.received

    def step(self) -> bool:
        """See Transfer. Raises PeerGone."""
        if self._receive is not None:
            return self._step_by(self._receive)
        budget = _STEP_NBYTES
        while self.left and budget > 0:
            view = self._views[0]
            try:
                if len(view) >= min(self.left, _CALL_NBYTES) or len(self._views) == 1:
                    asked = min(len(view), self.left, _CALL_NBYTES)
                    count = self.sock.recv_into(view, asked)
                else:
                    scattered = self._scattered()
                    asked = sum(map(len, scattered))
                    count = self.sock.recvmsg_into(scattered)[0]
            except BlockingIOError:
                return False
            if not count:
                raise peer_gone(self.left)
            self._take(count)
            budget -= count
            if count < asked:  # there is no more for now; epoll tells when there is
                break
        return not self.left

    def _step_by(self, receive: Receiver) -> bool:
        """A step that is the consumer's own."""
        views = list(islice(self._views, _IOV_VIEWS))
        count, stopped = receive(self.sock, views, min(self.left, _STEP_NBYTES))
        if count:
            self.moved_at = time.monotonic()
            self.received += count
            self._drop(count)
        if stopped == _ENDED:
            raise peer_gone(self.left)
        if stopped not in (0, errno.EAGAIN):
            raise OSError(stopped, os.strerror(stopped))
        return not self.left

    def _scattered(self) -> list[memoryview]:
        """The next views, as many as one call fills."""
        room = min(self.left, _CALL_NBYTES)
        chosen = []
        for view in islice(self._views, _IOV_VIEWS):
            chosen.append(view[:room])
            room -= len(chosen[-1])
            if not room:
                break
        return chosen

    def _take(self, count: int) -> None:
        self.moved_at = time.monotonic()
        self.received += count
        for piece in self._drop(count):
            self._consume(piece)

    def _drop(self, count: int) -> list[memoryview]:
        """The first `count` bytes of `views`, which are no longer to be filled."""
        pieces = []
        while count:
            view = self._views[0]
            piece = view[:count]
            count -= len(piece)
            if len(piece) == len(view):
                self._views.popleft()
            else:
                self._views[0] = view[len(piece) :]
            pieces.append(piece)
        return pieces


class Send(Transfer):
    """Sends `buffers` in order."""

    events = select.EPOLLOUT

    def __init__(self, sock: socket.socket, pace: Pace, buffers: Sequence[memoryview | bytes]) -> None:
        super().__init__(sock, pace)
        self._buffers = deque(memoryview(buffer) for buffer in buffers if buffer)
        self._nbytes = self._left = sum(map(len, self._buffers))

    @property
    def left(self) -> int:
        return self._left

    def step(self) -> bool:
        """See Transfer."""
        budget = _STEP_NBYTES
        while self._left and budget > 0:
            try:
                count = self.sock.sendmsg(list(islice(self._buffers, _IOV_VIEWS)))
            except BlockingIOError:
                return False
            self.moved_at = time.monotonic()
            self._left -= count
            budget -= count
            while count:
                first = self._buffers[0]
                if count < len(first):
                    self._buffers[0] = first[count:]
                    break
                count -= len(first)
                self._buffers.popleft()
        return not self._left

    def cut(self) -> None:
        """See Transfer."""
        _shutdown(self.sock, socket.SHUT_RDWR)


class Readable(Transfer):
    """Ends when there is something to read."""

    events = select.EPOLLIN
    _asked = False

    @property
    def left(self) -> int:
        return 0

    def step(self) -> bool:
        """See Transfer. There is nothing at first, as whoever waits has found out."""
        asked, self._asked = self._asked, True
        return asked


class Discard(Transfer):
    """Receives `nbytes` for nobody; all of them have the time of one pause."""

    events = select.EPOLLIN

    def __init__(self, sock: socket.socket, pace: Pace, nbytes: int, scratch: memoryview) -> None:
        super().__init__(sock, pace)
        self._nbytes = self._left = nbytes
        self._scratch = scratch

    @property
    def left(self) -> int:
        return self._left

    def step(self) -> bool:
        """See Transfer. Raises PeerGone."""
        for _ in range(_DISCARD_CALLS):
            try:
                count = self.sock.recv_into(self._scratch, min(len(self._scratch), self._left))
            except BlockingIOError:
                return False
            if not count:
                raise PeerGone("the peer has ended the stream")
            self._left -= count
            if not self._left:
                return True
        return False


def _shutdown(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:  # the peer has gone already
        return
