"""The transfers that this worker, as a prefill worker, owes others.

1. An offer ends with one event, and only when nothing reads its blocks any more.
2. A write that has started is waited for: NIXL cannot stop one. So a cancelled transfer ends when its write does, and
   the peer is told then.
3. Offers and wants of a request may come in either order. The first want takes the offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine_adapters.nixl.agent import Remote, Write
from engine_adapters.nixl.digest import BlockDigests
from engine_adapters.nixl.errors import AgentFailed, MalformedMessage
from engine_adapters.nixl.events import Event, Sent, Stats, Unsent
from engine_adapters.nixl.layout import BlockRun, HostBlocks, Layout
from engine_adapters.nixl.messages import Landed, Message, Stopped, Want
from engine_adapters.nixl.quarantine import Quarantine
from engine_adapters.nixl.session import Session


@dataclass(eq=False, slots=True)
class Outgoing:
    """Blocks offered for a request, and from `taken` on the write that they are the source of."""

    request_id: str
    blocks: tuple[BlockRun, ...]
    end_s: float
    taken: _Taken | None = None


@dataclass(eq=False, slots=True)
class _Taken:
    number: int
    session: Session
    remote: Remote
    end_s: float
    source: list[tuple[int, ...]]
    write: Write | None  # None when it has ended
    digests: BlockDigests | None  # None when all are taken, or none
    result: tuple[int, ...] = ()
    reason: str = ""  # why it will not count, whatever becomes of the write
    unsure: bool = False  # whether it may have begun though there is no write; only the end of our agent helps


@dataclass(frozen=True, slots=True)
class _Pending:
    session: Session
    want: Want
    end_s: float


class OutgoingTransfers:
    """For the worker's thread."""

    def __init__(
        self,
        layout: Layout,
        memory: HostBlocks | None,
        quarantine: Quarantine[object],
        emit: Callable[[Event], None],
        stats: Stats,
        confirm_within_s: float,
        max_pending: int,
    ) -> None:
        """memory: where digests are taken, None when they are not"""
        self._layout = layout
        self._memory = memory
        self._quarantine = quarantine
        self._emit = emit
        self._stats = stats
        self._confirm_within_s = confirm_within_s
        self._max_pending = max_pending
        self._offers: dict[str, Outgoing] = {}
        self._pending: dict[str, _Pending] = {}
        self._remotes: dict[Session, Remote] = {}

    def admit(self, session: Session, remote: Remote) -> None:
        """Wants of this session are for the memory of `remote`."""
        self._remotes[session] = remote

    def add(self, offer: Outgoing, now_s: float) -> None:
        """Blocks that are ready to be copied."""
        self._offers[offer.request_id] = offer
        pending = self._pending.pop(offer.request_id, None)
        if pending is not None:
            self._start(offer, pending.session, pending.want, pending.end_s, now_s)

    def want(self, session: Session, want: Want, now_s: float) -> None:
        """Raises MalformedMessage for blocks that the peer does not have."""
        assert session.peer is not None
        try:
            session.peer.layout.check_blocks([run.ids for run in want.blocks])
        except ValueError as error:
            raise MalformedMessage(f"a Want that cannot be: {error}") from None
        end_s = now_s + want.deadline_ms / 1e3
        offer = self._offers.get(want.request_id)
        if offer is not None and offer.taken is None:
            self._start(offer, session, want, end_s, now_s)
        elif offer is not None or want.request_id in self._pending:
            self._refuse(session, want.number, "the request is taken by another transfer", now_s)
        elif len(self._pending) >= self._max_pending:
            self._refuse(session, want.number, "too many transfers wait here for their prefill", now_s)
        else:
            self._pending[want.request_id] = _Pending(session, want, end_s)

    def cancel(self, session: Session, number: int, now_s: float) -> None:
        """The peer wants a transfer no more. Nothing happens when it has ended already: that message is on its way."""
        for pending in list(self._pending.values()):
            if pending.session is session and pending.want.number == number:
                del self._pending[pending.want.request_id]
                self._refuse(session, number, "cancelled", now_s)
        for offer in self._taken():
            if offer.taken is not None and offer.taken.session is session and offer.taken.number == number:
                self._give_up(offer, "the decode worker cancelled", now_s)

    def withdraw(self, request_id: str, now_s: float) -> None:
        """Offer the blocks of a request no more, and tell whoever waits for it."""
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            self._refuse(pending.session, pending.want.number, "the request was withdrawn", now_s)
        offer = self._offers.get(request_id)
        if offer is not None:
            self._give_up(offer, "it was withdrawn", now_s)

    def tick(self, now_s: float) -> None:
        """Give up what is past its deadline."""
        for request_id, pending in list(self._pending.items()):
            if now_s >= pending.end_s:
                del self._pending[request_id]
                self._refuse(pending.session, pending.want.number, "the prefill was not ready in time", now_s)
        for offer in list(self._offers.values()):
            if now_s >= (offer.taken.end_s if offer.taken else offer.end_s):
                self._give_up(offer, "it was not copied by its deadline", now_s)

    def progress(self, now_s: float) -> Iterator[tuple[Session, Remote, str]]:
        """Look after the writes. Yields the session and the remote of each that has failed."""
        for offer in self._taken():
            taken = offer.taken
            assert taken is not None
            if taken.unsure:
                continue
            if taken.write is not None:
                try:
                    if not taken.write.poll():
                        continue
                except AgentFailed as error:
                    self._send(taken.session, Stopped(taken.number, str(error), clean=False), now_s)
                    self._end(offer, Unsent(offer.request_id, str(error)))
                    yield taken.session, taken.remote, str(error)
                    continue
                taken.write = None
                self._quarantine.confirmed(offer)
            if taken.reason:
                self._send(taken.session, Stopped(taken.number, taken.reason, clean=True), now_s)
                self._end(offer, Unsent(offer.request_id, taken.reason))
            elif taken.digests is None:
                self._send(taken.session, Landed(taken.number, taken.result), now_s)
                self._stats.sent_nbytes += self._layout.nbytes(taken.source)
                self._end(offer, Sent(offer.request_id))

    def digest(self, nbytes: int) -> bool:
        """Take digests of about `nbytes` more; whether there are more to take."""
        for offer in self._taken():
            taken = offer.taken
            if taken is not None and taken.digests is not None:
                if not taken.digests.step(nbytes):
                    return True
                taken.result, taken.digests = taken.digests.digests, None
        return False

    @property
    def writes(self) -> int:
        """Writes that are under way."""
        return sum(offer.taken.write is not None for offer in self._taken() if offer.taken)

    def writes_to(self, remote: Remote) -> bool:
        """Whether a write to this peer is under way."""
        return any(o.taken.remote is remote and o.taken.write is not None for o in self._taken() if o.taken)

    def waits_for(self, agent: str) -> bool:
        """Whether a write through an agent of ours may still be of use."""
        return any(o.taken.session.agent == agent and not o.taken.reason for o in self._taken() if o.taken)

    def lost(self, session: Session, reason: str, now_s: float) -> None:
        """A session is no more. Offers that its peer waited for stay, for another one."""
        for request_id, pending in list(self._pending.items()):
            if pending.session is session:
                del self._pending[request_id]
        for offer in self._taken():
            if offer.taken is not None and offer.taken.session is session:
                self._give_up(offer, reason, now_s)
        self._remotes.pop(session, None)

    def closed(self, offer: Outgoing) -> None:
        """The agent that a held transfer went through is closed, so that nobody reads its blocks."""
        assert offer.taken is not None
        self._end(offer, Unsent(offer.request_id, offer.taken.reason))

    def _taken(self) -> list[Outgoing]:
        return [offer for offer in self._offers.values() if offer.taken is not None]

    def _start(self, offer: Outgoing, session: Session, want: Want, end_s: float, now_s: float) -> None:
        remote = self._remotes.get(session)
        source = [run.part(other.first, len(other.ids)) for run, other in zip(offer.blocks, want.blocks, strict=True)]
        whole = [ids for ids in source if ids is not None]
        if remote is None or len(whole) < len(source):
            missing = ", ".join(str(group) for group, ids in enumerate(source) if ids is None)
            reason = f"blocks wanted in the groups {missing} are not here" if remote else "the connection is gone"
            self._refuse(session, want.number, reason, now_s)
            return
        digests = None if self._memory is None else BlockDigests(self._memory, whole)
        taken = _Taken(want.number, session, remote, end_s, whole, None, digests)
        offer.taken = taken
        try:
            taken.write = remote.write(whole, [run.ids for run in want.blocks])
        except AgentFailed as error:
            taken.reason, taken.unsure = str(error), True
            self._send(taken.session, Stopped(taken.number, str(error), clean=False), now_s)
            self._quarantine.hold(offer, session.agent, sum(map(len, whole)), now_s)

    def _give_up(self, offer: Outgoing, reason: str, now_s: float) -> None:
        taken = offer.taken
        if taken is None:
            self._end(offer, Unsent(offer.request_id, reason))
        elif not taken.reason:
            taken.reason = reason
            if taken.write is not None:
                blocks = sum(map(len, taken.source))
                self._quarantine.hold(offer, taken.session.agent, blocks, now_s + self._confirm_within_s)

    def _refuse(self, session: Session, number: int, reason: str, now_s: float) -> None:
        self._send(session, Stopped(number, reason, clean=True), now_s)

    def _send(self, session: Session, message: Message, now_s: float) -> None:
        if session.ready:
            session.send(message, now_s)

    def _end(self, offer: Outgoing, event: Sent | Unsent) -> None:
        if self._offers.pop(offer.request_id, None) is None:
            return
        self._quarantine.confirmed(offer)
        if isinstance(event, Sent):
            self._stats.sent += 1
        else:
            self._stats.unsent += 1
        self._emit(event)
