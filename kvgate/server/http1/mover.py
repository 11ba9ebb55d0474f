"""Threads that move large bodies, so that bytes of different requests are copied on different cores.

Invariants
1. A transfer that was handed to a mover is stepped by its thread alone until `ended` is set; then by nobody.
2. Every transfer that was handed over ends: by its last byte, by an error, or because it was cut.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable

from kvgate.server.http1.transfer import Transfer

Ended = Callable[[Transfer, BaseException | None], None]
"""Told in the mover's thread that a transfer has ended, and by what error."""


class Mover:
    """One thread and the transfers that it steps."""

    def __init__(self, name: str, ended: Ended) -> None:
        self.active = 0
        """How many transfers it has, as the event loop counts them."""
        self._ended = ended
        self._inbox: deque[Transfer] = deque()
        self._waiting: dict[int, Transfer] = {}
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, transfer: Transfer) -> None:
        """Hand a transfer over. From the event loop."""
        self._inbox.append(transfer)
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """End the thread. There must be no transfers any more."""
        self._closing = True
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake_fd)

    def _run(self) -> None:
        while not self._closing:
            for fd, _ in self._epoll.poll():
                if fd == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                    while self._inbox:
                        self._begin(self._inbox.popleft())
                else:
                    self._step(fd)

    def _begin(self, transfer: Transfer) -> None:
        try:
            if transfer.step():
                self._ended(transfer, None)
                return
            fd = transfer.sock.fileno()
            self._epoll.register(fd, transfer.events)
            self._waiting[fd] = transfer
        except BaseException as error:  # whatever it is belongs to whoever waits for the transfer
            self._ended(transfer, error)

    def _step(self, fd: int) -> None:
        transfer = self._waiting[fd]
        try:
            if not transfer.step():
                return
            failure = None
        except BaseException as error:  # as above
            failure = error
        del self._waiting[fd]
        self._epoll.unregister(fd)
        self._ended(transfer, failure)


class Movers:
    """A few movers, of which the one with the fewest transfers gets the next."""

    def __init__(self, threads: int) -> None:
        """Their event loop must watch `fd`, and call `collect` when it can be read."""
        self._done: deque[tuple[Transfer, BaseException | None]] = deque()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._movers = [Mover(f"kvgate-mover-{number}", self._note_end) for number in range(threads)]
        self._of: dict[Transfer, Mover] = {}

    def submit(self, transfer: Transfer) -> None:
        """Have a transfer moved in a thread; its `ended` is set from the event loop."""
        mover = min(self._movers, key=_active)
        mover.active += 1
        self._of[transfer] = mover
        mover.submit(transfer)

    def collect(self) -> None:
        """Tell those who wait for what has ended."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        while self._done:
            transfer, failure = self._done.popleft()
            self._of.pop(transfer).active -= 1
            transfer.settle(failure)

    def close(self) -> None:
        """End the threads. There must be no transfers any more."""
        for mover in self._movers:
            mover.close()
        os.close(self.fd)

    def _note_end(self, transfer: Transfer, failure: BaseException | None) -> None:
        self._done.append((transfer, failure))
        os.eventfd_write(self.fd, 1)


def _active(mover: Mover) -> int:
    return mover.active
