"""The transfers that this worker, as a decode worker, has asked others for.

1. A transfer ends with one event, and only when nothing can be written to its blocks any more.
2. Once the peer has been asked, only its word or the end of our agent frees the blocks; before, they are free at once.
3. Bytes count as arrived only when all of them have landed and each block matches its digest, where digests are on.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from engine_adapters.nixl.digest import BlockDigests
from engine_adapters.nixl.errors import MalformedMessage
from engine_adapters.nixl.events import Arrived, Event, Failed, Stats
from engine_adapters.nixl.layout import BlockRun, HostBlocks, Layout
from engine_adapters.nixl.messages import Cancel, Landed, Stopped, Want
from engine_adapters.nixl.quarantine import Quarantine
from engine_adapters.nixl.session import Session


class _State(enum.Enum):
    QUEUED = enum.auto()  # the peer knows nothing of it
    WANTED = enum.auto()
    VERIFYING = enum.auto()  # all has landed
    HELD = enum.auto()  # over, and the peer may still write


@dataclass(eq=False, slots=True)
class Incoming:
    """One transfer. address: of the prefill worker; end_s: its deadline."""

    request_id: str
    address: tuple[str, int]
    blocks: tuple[BlockRun, ...]
    end_s: float
    number: int = 0
    session: Session | None = None
    state: _State = _State.QUEUED
    reason: str = ""
    expected: tuple[int, ...] = ()
    digests: BlockDigests | None = None

    @property
    def ids(self) -> list[tuple[int, ...]]:
        return [run.ids for run in self.blocks]

    @property
    def count(self) -> int:
        return sum(map(len, self.ids))


class IncomingTransfers:
    """For the worker's thread."""

    def __init__(
        self,
        layout: Layout,
        memory: HostBlocks | None,
        quarantine: Quarantine[object],
        emit: Callable[[Event], None],
        stats: Stats,
        confirm_within_s: float,
    ) -> None:
        """memory: where blocks are verified, None when they are not"""
        self._layout = layout
        self._memory = memory
        self._quarantine = quarantine
        self._emit = emit
        self._stats = stats
        self._confirm_within_s = confirm_within_s
        self._number = 0
        self._transfers: dict[int, Incoming] = {}

    def add(self, transfer: Incoming) -> None:
        self._number += 1
        transfer.number = self._number
        self._transfers[transfer.number] = transfer

    def ask(self, transfer: Incoming, session: Session, now_s: float) -> None:
        """Ask the peer of `session` for a transfer that no peer knows of, as soon as the session is ready."""
        transfer.session = session
        if session.ready:
            self._send_want(transfer, now_s)

    def ready(self, session: Session, now_s: float) -> None:
        """A session is ready: ask for what waits for it."""
        for transfer in self.queued(session):
            self._send_want(transfer, now_s)

    def of(self, session: Session) -> list[Incoming]:
        """The transfers that a session is needed for."""
        return [transfer for transfer in self._transfers.values() if transfer.session is session]

    def queued(self, session: Session) -> list[Incoming]:
        """Those of a session that its peer knows nothing of."""
        return [transfer for transfer in self.of(session) if transfer.state is _State.QUEUED]

    def waits_for(self, agent: str) -> bool:
        """Whether a transfer through an agent of ours may still arrive."""
        return any(
            transfer.state is _State.WANTED and transfer.session is not None and transfer.session.agent == agent
            for transfer in self._transfers.values()
        )

    def landed(self, session: Session, message: Landed) -> None:
        """Raises MalformedMessage for a transfer that the session does not have."""
        transfer = self._named(session, message.number)
        transfer.session = None
        if transfer.state is _State.HELD:
            self._quarantine.confirmed(transfer)
            self.fail(transfer, transfer.reason)
        elif self._memory is None:
            self._arrive(transfer)
        elif len(message.digests) != transfer.count:
            self.fail(transfer, f"{len(message.digests)} digests came with {transfer.count} blocks")
        else:
            transfer.state = _State.VERIFYING
            transfer.expected = message.digests
            transfer.digests = BlockDigests(self._memory, transfer.ids)

    def stopped(self, session: Session, message: Stopped, now_s: float) -> None:
        """Raises MalformedMessage for a transfer that the session does not have."""
        transfer = self._named(session, message.number)
        reason = transfer.reason or f"the prefill worker stopped: {message.reason}"
        if message.clean:
            self._quarantine.confirmed(transfer)
            self.fail(transfer, reason)
        else:
            self._hold(transfer, reason, now_s)

    def cancel(self, request_id: str, reason: str, now_s: float) -> None:
        """Give a transfer up. What is being verified has arrived, and goes on."""
        for transfer in list(self._transfers.values()):
            if transfer.request_id == request_id:
                self._give_up(transfer, reason, now_s)

    def tick(self, now_s: float) -> None:
        """Give up what has not arrived by its deadline."""
        for transfer in list(self._transfers.values()):
            if now_s >= transfer.end_s:
                self._give_up(transfer, "it did not arrive by its deadline", now_s)

    def verify(self, nbytes: int) -> bool:
        """Verify about `nbytes` more; whether there is more to verify."""
        for transfer in list(self._transfers.values()):
            if transfer.digests is not None:
                if transfer.digests.step(nbytes):
                    self._judge(transfer, transfer.digests.digests)
                else:
                    return True
        return any(transfer.digests is not None for transfer in self._transfers.values())

    def lost(self, session: Session, reason: str, now_s: float) -> None:
        """A session is no more."""
        for transfer in self.of(session):
            if transfer.state is _State.QUEUED:
                self.fail(transfer, reason)
            else:
                self._hold(transfer, transfer.reason or reason, now_s)

    def fail(self, transfer: Incoming, reason: str) -> None:
        """End a transfer whose blocks nobody writes to."""
        del self._transfers[transfer.number]
        self._stats.failed += 1
        self._emit(Failed(transfer.request_id, reason))

    def _send_want(self, transfer: Incoming, now_s: float) -> None:
        assert transfer.session is not None
        transfer.state = _State.WANTED
        left_ms = max(0, round((transfer.end_s - now_s) * 1e3))
        transfer.session.send(Want(transfer.number, transfer.request_id, left_ms, transfer.blocks), now_s)

    def _give_up(self, transfer: Incoming, reason: str, now_s: float) -> None:
        if transfer.state is _State.QUEUED:
            self.fail(transfer, reason)
        elif transfer.state is _State.WANTED:
            self._hold(transfer, reason, now_s + self._confirm_within_s)
            assert transfer.session is not None
            if transfer.session.ready:
                transfer.session.send(Cancel(transfer.number), now_s)

    def _hold(self, transfer: Incoming, reason: str, close_at_s: float) -> None:
        assert transfer.session is not None
        transfer.state = _State.HELD
        transfer.reason = reason
        self._quarantine.hold(transfer, transfer.session.agent, transfer.count, close_at_s)

    def _judge(self, transfer: Incoming, digests: tuple[int, ...]) -> None:
        wrong = sum(ours != theirs for ours, theirs in zip(digests, transfer.expected, strict=True))
        transfer.digests = None
        if wrong:
            self._stats.corrupt += 1
            self.fail(transfer, f"{wrong} of {transfer.count} blocks do not match their digests")
        else:
            self._arrive(transfer)

    def _arrive(self, transfer: Incoming) -> None:
        del self._transfers[transfer.number]
        self._stats.arrived += 1
        self._stats.arrived_nbytes += self._layout.nbytes(transfer.ids)
        self._emit(Arrived(transfer.request_id))

    def _named(self, session: Session, number: int) -> Incoming:
        transfer = self._transfers.get(number)
        if transfer is None or transfer.session is not session:
            raise MalformedMessage(f"the transfer {number} is none of this connection")
        return transfer
