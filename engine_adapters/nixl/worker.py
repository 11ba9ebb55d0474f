"""Direct transfer of KV between engine workers: a prefill worker writes into a decode worker's blocks.

Each worker is both: others call it for what it offers, and it calls others for what it wants. One thread does all the
work; the engine's thread leaves commands and takes events, and is never kept waiting.

1. Blocks belong to the transfer from the call that names them to the event that ends it.
2. An agent is closed when a peer does not confirm that it writes no more, or is gone before it could. The next agent
   takes the new transfers meanwhile; the others of the old one may end within `drain_within`.
3. Should the thread fail, everything ends: agents are closed, then each transfer gets its event, and no other is taken.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from engine_adapters.nixl.agent import Agent
from engine_adapters.nixl.config import NixlConfig
from engine_adapters.nixl.errors import AgentFailed, MalformedMessage, PeerRefused
from engine_adapters.nixl.events import Arrived, Event, Failed, Stats, Unsent
from engine_adapters.nixl.generation import Generation
from engine_adapters.nixl.handshake import Key, Offer
from engine_adapters.nixl.incoming import Incoming, IncomingTransfers
from engine_adapters.nixl.layout import BlockRun, HostBlocks, Layout
from engine_adapters.nixl.messages import (
    MAX_REQUEST_ID,
    MAX_TRANSFER_BLOCKS,
    Cancel,
    Landed,
    Message,
    Retiring,
    Stopped,
    Want,
)
from engine_adapters.nixl.outgoing import Outgoing, OutgoingTransfers
from engine_adapters.nixl.quarantine import Quarantine
from engine_adapters.nixl.session import Session
from kvgate.config import Secret
from kvgate.errors import ConfigError, Overloaded

_log = logging.getLogger(__name__)

_TICK_S = 0.05
_WRITING_POLL_S = 0.0005
_DIGEST_NBYTES = 32 << 20
"""Bytes that are digested before connections are looked after again."""

_REDIAL_AFTER_S = 1.0
_MAX_UNPROVED = 64
_MAX_FAILED_ADDRESSES = 1024
_CLOSE_TIMEOUT_S = 30.0


class Worker:
    """Offers blocks to others and gets blocks from them. Every method may be called from any thread, and none waits.

    The memory of `layout` must be there until `close` has returned.
    Raises NixlMissing, AgentFailed, ConfigError, and OSError when nobody can be heard at the configured address.
    """

    def __init__(self, layout: Layout, access_key: str, secret_key: Secret, config: NixlConfig) -> None:
        if config.checksum and not layout.on_host:
            raise ConfigError("checksum: blocks on a GPU cannot be verified; mend: checksum: false")
        self._layout = layout
        self._config = config
        self._key = Key(access_key, secret_key)
        self.stats = Stats()
        self._lock = threading.Lock()
        self._commands: deque[Callable[[float], None]] = deque()
        self._events: deque[Event] = deque()
        self._wanted: set[str] = set()
        self._offered: set[str] = set()
        self._more_to_digest = False
        self._ended = ""  # why no transfer is taken any more
        self._closing = False

        memory = HostBlocks(layout) if config.checksum else None
        self._quarantine: Quarantine[object] = Quarantine()
        confirm_s = config.confirm_within
        self._incoming = IncomingTransfers(layout, memory, self._quarantine, self._emit, self.stats, confirm_s)
        self._outgoing = OutgoingTransfers(
            layout, memory, self._quarantine, self._emit, self.stats, confirm_s, config.max_transfers
        )
        self._sessions: set[Session] = set()
        self._called: dict[tuple[str, int], Session] = {}
        self._failed_at: dict[tuple[str, int], float] = {}

        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        port = config.port + layout.rank if config.port else 0
        self._listener = socket.create_server((config.host, port), family=family, backlog=64)
        try:
            self._listener.setblocking(False)
            self._current = Generation(Agent(layout, config))
        except BaseException:
            self._listener.close()
            raise
        self._generations = {self._current.agent.id: self._current}
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake_in, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="kvgate-nixl", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where other workers reach this one."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    def offer(self, request_id: str, blocks: Sequence[BlockRun], deadline_s: float | None = None) -> None:
        """Let whoever asks for the request have these blocks, one run for each group.

        They must not change until Sent or Unsent.
        deadline_s: how long they are held for somebody to ask; that of the configuration by default
        Raises ValueError for blocks that there are not and a request that is offered already, Overloaded when too many
        are.
        """
        runs = self._checked(request_id, blocks)
        end_s = time.monotonic() + (self._config.deadline if deadline_s is None else deadline_s)
        offer = Outgoing(request_id, runs, end_s)
        self._admit(self._offered, request_id, lambda now_s: self._outgoing.add(offer, now_s))

    def withdraw(self, request_id: str) -> None:
        """Offer the blocks no more. Sent or Unsent still follows, unless it has come already."""
        self._command(lambda now_s: self._outgoing.withdraw(request_id, now_s))

    def want(
        self, request_id: str, address: tuple[str, int], blocks: Sequence[BlockRun], deadline_s: float | None = None
    ) -> None:
        """Have the request's KV written into these blocks, one run for each group.

        Nobody else may use them until Arrived or Failed.
        address: of the prefill worker of the same rank, an IP address and a port
        Raises ValueError for blocks that there are not, an address that is none, and a request that is wanted already;
        Overloaded when too many are.
        """
        if not self._config.may_call(
            address[0]
        ):  # nor a name, which would be looked up in the thread that must not wait
            raise ValueError(f"{address[0]} is in none of the networks of peers")
        runs = self._checked(request_id, blocks)
        if not any(run.ids for run in runs):
            raise ValueError("no block is wanted")
        end_s = time.monotonic() + (self._config.deadline if deadline_s is None else deadline_s)
        transfer = Incoming(request_id, address, runs, end_s)
        self._admit(self._wanted, request_id, lambda now_s: self._start(transfer, now_s))

    def cancel(self, request_id: str) -> None:
        """Want it no more. Arrived or Failed still follows, unless it has come already."""
        self._command(lambda now_s: self._incoming.cancel(request_id, "it was cancelled", now_s))

    def poll(self) -> list[Event]:
        """The events since the last call, each once."""
        events = []
        with contextlib.suppress(IndexError):
            while True:
                events.append(self._events.popleft())
        return events

    def close(self) -> None:
        """End all transfers. On return no memory is in use any more, and `poll` has the last events.

        May be called twice. Raises AgentFailed when that takes too long: the memory must be kept then.
        """
        self._closing = True
        self._wake()
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            raise AgentFailed(f"the agent was not closed within {_CLOSE_TIMEOUT_S:g} s; its memory is still in use")

    # --- the engine's side --------------------------------------------------------------------------------------------

    def _checked(self, request_id: str, blocks: Sequence[BlockRun]) -> tuple[BlockRun, ...]:
        if not 1 <= len(request_id) <= MAX_REQUEST_ID:
            raise ValueError(f"a request id has 1 to {MAX_REQUEST_ID} characters")
        self._layout.check_blocks([run.ids for run in blocks])
        if sum(len(run.ids) for run in blocks) > MAX_TRANSFER_BLOCKS:
            raise ValueError(f"a transfer has at most {MAX_TRANSFER_BLOCKS} blocks")
        return tuple(blocks)

    def _admit(self, table: set[str], request_id: str, command: Callable[[float], None]) -> None:
        with self._lock:
            if self._ended:
                raise Overloaded(f"no transfer is taken any more: {self._ended}")
            if request_id in table:
                raise ValueError(f"the request {request_id!r} is under way already")
            if len(table) >= self._config.max_transfers:
                raise Overloaded(f"{len(table)} transfers are under way, as many as max_transfers allows")
            table.add(request_id)
            self._commands.append(command)
        self._wake()

    def _command(self, command: Callable[[float], None]) -> None:
        self._commands.append(command)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_out.send(b"\0")

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        with self._lock:
            (self._wanted if isinstance(event, Arrived | Failed) else self._offered).discard(event.request_id)
        self._events.append(event)

    def _run(self) -> None:
        reason = "the worker was closed"
        try:
            while not self._closing:
                self._step()
        except Exception as error:
            _log.exception("direct transfer has failed, and is off until the engine is started again")
            reason = f"{type(error).__name__}: {error}"
        finally:
            self._end(reason)

    def _step(self) -> None:
        for key, mask in self._selector.select(self._wait_s):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake_in:
                with contextlib.suppress(BlockingIOError):
                    self._wake_in.recv(4096)
            else:
                self._serve(key.data, mask)
        now_s = time.monotonic()
        while self._commands:
            self._commands.popleft()(now_s)
        self._more_to_digest = self._incoming.verify(_DIGEST_NBYTES) | self._outgoing.digest(_DIGEST_NBYTES)
        for session, remote, reason in self._outgoing.progress(now_s):
            for other in self._generations[session.agent].broke(remote):
                other.fail(reason)
        self._tick(time.monotonic())

    @property
    def _wait_s(self) -> float:
        if self._more_to_digest or self._commands:
            return 0
        return _WRITING_POLL_S if self._outgoing.writes else _TICK_S

    def _tick(self, now_s: float) -> None:
        self._incoming.tick(now_s)
        self._outgoing.tick(now_s)
        for session in list(self._sessions):
            session.tick(now_s)
            if session.called and session.retiring and session.ready and not self._incoming.of(session):
                session.fail("the peer's agent retires")
            if session.broken:
                self._lose(session, now_s)
            else:
                self._watch(session)
        for agent in self._quarantine.to_close(now_s):
            self._retire(self._generations[agent], now_s)
        for generation in list(self._generations.values()):
            self._forget_peers(generation)
            generation.agent.drop_notifications()
            if generation.retiring_since_s is not None and self._may_close(generation, now_s):
                self._close_generation(generation, now_s)
        self.stats.writes = self._outgoing.writes
        self.stats.sessions = sum(session.ready for session in self._sessions)
        self.stats.held_transfers, self.stats.held_blocks = self._quarantine.transfers, self._quarantine.blocks

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError:  # it is gone again, or there are no descriptors left
            return
        coming_in = [session for session in self._sessions if not session.called]
        if (
            len(coming_in) >= self._config.max_sessions
            or sum(not session.ready for session in coming_in) >= _MAX_UNPROVED
        ):
            sock.close()
            return
        self._add_session(sock, f"{address[0]}:{address[1]}", called=False)

    def _dial(self, address: tuple[str, int], now_s: float) -> Session:
        """The session to a prefill worker. Raises PeerRefused when there can be none now."""
        session = self._called.get(address)
        if session is not None:
            return session
        if now_s < self._failed_at.get(address, 0.0) + _REDIAL_AFTER_S:
            raise PeerRefused(f"{address[0]}:{address[1]} was not reached a moment ago")
        calls = [session for session in self._sessions if session.called]
        if len(calls) >= self._config.max_sessions:
            idle = next((session for session in calls if not self._incoming.of(session)), None)
            if idle is None:
                raise PeerRefused(f"{len(calls)} connections are open, as many as max_sessions allows")
            idle.fail("its place is needed")
            self._lose(idle, now_s)
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(address)
        except BlockingIOError:
            pass
        except (OSError, OverflowError, ValueError) as error:
            sock.close()
            raise PeerRefused(f"{address[0]}:{address[1]} cannot be reached: {error}") from error
        session = self._add_session(sock, f"{address[0]}:{address[1]}", called=True)
        self._called[address] = session
        return session

    def _add_session(self, sock: socket.socket, address: str, *, called: bool) -> Session:
        agent, config = self._current.agent, self._config
        offer = Offer(
            agent.id,
            agent.metadata,
            self._layout,
            config.checksum,
            round(config.heartbeat * 1e3),
            round(config.heartbeat_timeout * 1e3),
        )
        session = Session(sock, address, self._key, offer, config, time.monotonic(), called=called)
        self._sessions.add(session)
        self._selector.register(sock, selectors.EVENT_READ, session)
        self._watch(session)
        return session

    def _watch(self, session: Session) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if session.wants_to_write else 0)
        if self._selector.get_key(session.sock).events != events:
            self._selector.modify(session.sock, events, session)

    def _serve(self, session: Session, mask: int) -> None:
        if session.broken:
            return
        now_s = time.monotonic()
        if mask & selectors.EVENT_WRITE:
            session.write()
        was_ready = session.ready
        if mask & selectors.EVENT_READ:
            try:
                for message in session.read(now_s):
                    if not was_ready:
                        self._welcome(session, now_s)
                        was_ready = True
                    self._receive(session, message, now_s)
            except MalformedMessage as error:
                session.fail(str(error))
        if session.ready and not was_ready:
            self._welcome(session, now_s)

    def _welcome(self, session: Session, now_s: float) -> None:
        assert session.peer is not None
        _log.info("connected with the %s worker at %s", "prefill" if session.called else "decode", session.address)
        if session.called:
            self._incoming.ready(session, now_s)
            return
        generation = self._generations[session.agent]
        try:
            self._outgoing.admit(session, generation.admit(session))
        except (PeerRefused, AgentFailed) as error:
            session.fail(str(error))
        else:
            if generation.retiring_since_s is not None:
                session.send(Retiring(), now_s)

    def _receive(self, session: Session, message: Message, now_s: float) -> None:
        match message:
            case Want() if not session.called:
                self._outgoing.want(session, message, now_s)
            case Cancel(number) if not session.called:
                self._outgoing.cancel(session, number, now_s)
            case Landed() if session.called:
                self._incoming.landed(session, message)
            case Stopped() if session.called:
                self._incoming.stopped(session, message, now_s)
            case Retiring() if session.called:
                self._set_aside(session)
            case Want() | Cancel() | Landed() | Stopped() | Retiring():
                raise MalformedMessage("a message of the wrong side")
            case _:
                pass  # it was heard

    def _set_aside(self, session: Session) -> None:
        session.retiring = True
        for address, other in list(self._called.items()):
            if other is session:
                del self._called[address]

    def _lose(self, session: Session, now_s: float) -> None:
        reason = session.broken
        self._sessions.discard(session)
        self._selector.unregister(session.sock)
        session.sock.close()
        for address, other in self._called.items():
            if other is session and session.peer is None:
                self._note_failure(address, now_s)
        if session.peer is None:
            self.stats.refused_peers += 1
            _log.warning("no direct transfer with %s: %s", session.address, reason)
        else:
            _log.info("the connection with %s has ended: %s", session.address, reason)
        self._set_aside(session)
        self._incoming.lost(session, reason, now_s)
        self._outgoing.lost(session, reason, now_s)
        self._generations[session.agent].leave(session)

    def _note_failure(self, address: tuple[str, int], now_s: float) -> None:
        if len(self._failed_at) >= _MAX_FAILED_ADDRESSES:
            self._failed_at.clear()
        self._failed_at[address] = now_s

    # --- transfers ----------------------------------------------------------------------------------------------------

    def _start(self, transfer: Incoming, now_s: float) -> None:
        self._incoming.add(transfer)
        try:
            session = self._dial(transfer.address, now_s)
        except PeerRefused as error:
            self._incoming.fail(transfer, str(error))
        else:
            self._incoming.ask(transfer, session, now_s)

    # --- agents -------------------------------------------------------------------------------------------------------

    def _retire(self, generation: Generation, now_s: float) -> None:
        """Use an agent no more, so that it can be closed when its other transfers have ended."""
        if generation.retiring_since_s is not None:
            return
        generation.retiring_since_s = now_s
        _log.warning("a peer may still write to blocks that were given up: our agent is closed, and another takes over")
        self._current = Generation(Agent(self._layout, self._config))
        self._generations[self._current.agent.id] = self._current
        for session in [session for session in self._sessions if session.agent == generation.agent.id]:
            if session.called:
                self._set_aside(session)
                for transfer in self._incoming.queued(session):
                    self._ask_anew(transfer, now_s)
            elif session.ready:
                session.retiring = True
                session.send(Retiring(), now_s)

    def _ask_anew(self, transfer: Incoming, now_s: float) -> None:
        try:
            self._incoming.ask(transfer, self._dial(transfer.address, now_s), now_s)
        except PeerRefused as error:
            self._incoming.fail(transfer, str(error))

    def _may_close(self, generation: Generation, now_s: float) -> bool:
        assert generation.retiring_since_s is not None
        agent = generation.agent.id
        if now_s - generation.retiring_since_s > self._config.drain_within:
            return True
        return not self._incoming.waits_for(agent) and not self._outgoing.waits_for(agent)

    def _close_generation(self, generation: Generation, now_s: float) -> None:
        agent = generation.agent.id
        for session in [session for session in self._sessions if session.agent == agent]:
            session.fail("our agent is closed")
            self._lose(session, now_s)
        generation.agent.close()
        del self._generations[agent]
        self.stats.agents_closed += 1
        for transfer in self._quarantine.closed(agent):
            if isinstance(transfer, Incoming):
                self._incoming.fail(transfer, transfer.reason)
            elif isinstance(transfer, Outgoing):
                self._outgoing.closed(transfer)

    def _forget_peers(self, generation: Generation) -> None:
        for remote in generation.unused():
            if not self._outgoing.writes_to(remote):
                try:
                    generation.forget(remote)
                except AgentFailed as error:
                    _log.warning("a peer was not forgotten: %s", error)

    def _end(self, reason: str) -> None:
        with self._lock:
            self._ended = reason
        self._listener.close()
        for generation in self._generations.values():
            generation.agent.close()
        for session in self._sessions:
            session.fail(reason)
            session.sock.close()
        for request_id in list(self._wanted):
            self._emit(Failed(request_id, reason))
        for request_id in list(self._offered):
            self._emit(Unsent(request_id, reason))
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()
