"""One control connection: the handshake, then sealed messages and heartbeats. The worker's loop drives it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from engine_adapters.nixl import handshake, messages, wire
from engine_adapters.nixl.config import NixlConfig
from engine_adapters.nixl.errors import MalformedMessage, PeerRefused
from engine_adapters.nixl.handshake import DecodeSide, Key, Offer, PrefillSide
from engine_adapters.nixl.messages import Message, Ping

_READ_NBYTES = 256 << 10
_MAX_UNSENT_NBYTES = 16 << 20


class Session:
    """For the worker's thread. Nothing here raises: what goes wrong is told by `broken`, and then it is to be closed.

    agent:  id of our agent that its transfers go through
    called: whether we called, so that the other side is a prefill worker
    """

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        key: Key,
        offer: Offer,
        config: NixlConfig,
        now_s: float,
        *,
        called: bool,
    ) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.address = address
        self.agent = offer.agent
        self.called = called
        self.retiring = False
        """Whether new transfers must go by another connection."""
        self.broken = ""
        """Why the connection is of no use any more; empty while it is."""
        self._config = config
        self._began_s = self._heard_s = self._spoke_s = now_s
        self._inbox = wire.Inbox(handshake.MAX_HELLO_NBYTES)
        self._unsent = bytearray()
        self._side: DecodeSide | PrefillSide = (DecodeSide if called else PrefillSide)(key, offer)
        self._seals: tuple[wire.Sealer, wire.Opener] | None = None
        if isinstance(self._side, DecodeSide):
            self._unsent += wire.frame(self._side.hello())

    @property
    def peer(self) -> Offer | None:
        """What the peer is, once it has proved it."""
        return self._side.theirs

    @property
    def ready(self) -> bool:
        """Whether messages can be exchanged."""
        return self._seals is not None and not self.broken

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def read(self, now_s: float) -> Iterator[Message]:
        """The messages that have come, as far as the socket has them. Also carries the handshake on."""
        try:
            data = self.sock.recv(_READ_NBYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(f"the connection broke: {error.strerror}")
            return
        if not data:
            self.fail("the peer closed the connection")
            return
        self._heard_s = now_s
        try:
            for body in self._inbox.feed(data):
                if self._seals is not None:
                    yield messages.decode(self._seals[1].open(body))
                else:
                    self._shake(body)
                if self.broken:
                    return
        except MalformedMessage as error:
            self.fail(str(error))

    def _shake(self, body: bytes) -> None:
        try:
            answer = self._side.receive(body)
        except (PeerRefused, MalformedMessage) as error:
            if not self.called:
                self._unsent += wire.frame(handshake.refusal(error))
                self.write()
            self.fail(str(error))
            return
        self._inbox.limit_nbytes = handshake.MAX_OFFER_NBYTES
        if self._side.theirs is not None:
            self._inbox.limit_nbytes = wire.MAX_FRAME_NBYTES
            self._seals = self._side.seals()
        if answer is not None:
            self._unsent += wire.frame(answer)
            self.write()

    def send(self, message: Message, now_s: float) -> None:
        """Send a message, or keep it until the socket takes it."""
        assert self._seals is not None
        self._unsent += wire.frame(self._seals[0].seal(messages.encode(message)))
        self._spoke_s = now_s
        self.write()
        if len(self._unsent) > _MAX_UNSENT_NBYTES:
            self.fail("the peer does not read what it is sent")

    def write(self) -> None:
        """Send what is left, as far as the socket takes it."""
        try:
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(f"the connection broke: {error.strerror}")

    def tick(self, now_s: float) -> None:
        """Say that we are here, and see whether the peer is."""
        if not self.ready and now_s - self._began_s > self._config.heartbeat_timeout:
            self.fail(f"no handshake within {self._config.heartbeat_timeout:g} s")
        elif now_s - self._heard_s > self._config.heartbeat_timeout:
            self.fail(f"the peer was silent for {self._config.heartbeat_timeout:g} s")
        elif self.ready and now_s - self._spoke_s >= self._config.heartbeat:
            self.send(Ping(), now_s)

    def fail(self, reason: str) -> None:
        """Of no use any more, for this reason unless it has failed already."""
        self.broken = self.broken or reason
