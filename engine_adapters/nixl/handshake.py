"""How a decode and a prefill worker prove to each other that they serve the same tenant, and compare their memory.

The decode worker calls. Four frames, each a msgpack list:

    1 decode → prefill   name, version, access key, nonce
    2 prefill → decode   name, version, nonce, proof
    3 decode → prefill   offer, proof
    4 prefill → decode   true, offer, proof    or    false, reason

1. A proof is an HMAC over both nonces, the access key and all offers so far, the one it comes with included; its
   label says who made it at which step. So it fits one step of one connection.
2. Its key comes from the tenant's secret access key, which itself is never sent.
3. Nobody tells a peer that has not proved itself where memory lies: the prefill worker proves itself in frame 2.
4. What is sealed afterwards has a key for each direction that depends on all that.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Any

from engine_adapters.nixl import layout, wire
from engine_adapters.nixl.errors import MalformedMessage, PeerRefused
from engine_adapters.nixl.layout import Layout
from kvgate.config import Secret

NAME, VERSION = "kvgate-nixl", 1
MAX_HELLO_NBYTES, MAX_OFFER_NBYTES = 4096, 1 << 20
"""The limits of the first frame from a peer, and of what follows until it has proved itself."""

_NONCE_NBYTES = 32
_MAX_METADATA_NBYTES = 1 << 20
_MAX_AGENT = 128
_MAX_ACCESS_KEY = 128
_MAX_REASON = 512


@dataclass(frozen=True, slots=True)
class Offer:
    """What a worker tells a peer of itself.

    agent:    its NIXL agent's id, another one after each start
    metadata: what NIXL needs to reach that agent
    checksum: whether digests come with the blocks; both must want the same
    """

    agent: str
    metadata: bytes
    layout: Layout
    checksum: bool
    heartbeat_ms: int
    heartbeat_timeout_ms: int


class Key:
    """What proofs are made with: a key of its own for this purpose, from the tenant's key pair."""

    def __init__(self, access_key: str, secret_key: Secret) -> None:
        if not 1 <= len(access_key) <= _MAX_ACCESS_KEY:
            raise ValueError(f"an access key has 1 to {_MAX_ACCESS_KEY} characters")
        self.access_key = access_key
        self._key = hmac.digest(secret_key.encode(), f"{NAME} {VERSION} {access_key}".encode(), "sha256")

    def prove(self, label: str, transcript: bytes) -> bytes:
        return hmac.digest(self._key, label.encode() + b"\0" + transcript, "sha256")

    def holds(self, label: str, transcript: bytes, proof: object) -> bool:
        return isinstance(proof, bytes) and hmac.compare_digest(proof, self.prove(label, transcript))


class _Side:
    """What both sides have in common: the transcript, and what it gives."""

    def __init__(self, key: Key, ours: Offer) -> None:
        self._key = key
        self._ours = ours
        self._transcript = hashlib.sha256()
        self._step = 0
        self.theirs: Offer | None = None
        """The peer's offer, once it has proved itself and fits."""

    def _note(self, *parts: bytes) -> bytes:
        for part in parts:
            self._transcript.update(len(part).to_bytes(4, "big") + part)
        return self._transcript.digest()

    def _accept(self, packed: bytes) -> Offer:
        theirs = _offer_from_wire(packed)
        _require_fit(self._ours, theirs)
        return theirs

    def _seals(self, ours: str, theirs: str) -> tuple[wire.Sealer, wire.Opener]:
        assert self.theirs is not None
        end = self._transcript.digest()
        return wire.Sealer(self._key.prove(ours, end)), wire.Opener(self._key.prove(theirs, end))


class DecodeSide(_Side):
    """The side that calls. Send `hello()`, then what `receive` returns for each frame, until `theirs` is set."""

    def hello(self) -> bytes:
        body = wire.pack([NAME, VERSION, self._key.access_key, os.urandom(_NONCE_NBYTES)])
        self._note(body)
        return body

    def receive(self, body: bytes) -> bytes | None:
        """What to answer, if anything. Raises PeerRefused and MalformedMessage; the connection is then of no use."""
        self._step += 1
        value = wire.unpack(body)
        if self._step == 1:
            return self._answer(value)
        match value:
            case [False, str(reason)]:
                raise PeerRefused(f"the prefill worker refused: {reason[:_MAX_REASON]}")
            case [True, bytes(packed), proof]:
                if not self._key.holds("prefill offer", self._note(packed), proof):
                    raise PeerRefused("the prefill worker's offer is not proved by the tenant's key")
                self.theirs = self._accept(packed)
                return None
            case _:
                raise MalformedMessage("not the last frame of a handshake")

    def _answer(self, value: Any) -> bytes:
        match value:
            case [name, version, bytes(nonce), proof] if name == NAME and len(nonce) == _NONCE_NBYTES:
                if version != VERSION:
                    raise PeerRefused(f"the version differs: {VERSION} here, {str(version)[:16]} there")
                if not self._key.holds("prefill hello", self._note(nonce), proof):
                    raise PeerRefused("the prefill worker does not have the tenant's key")
            case [False, str(reason)]:
                raise PeerRefused(f"the prefill worker refused: {reason[:_MAX_REASON]}")
            case _:
                raise MalformedMessage("not a prefill worker")
        packed = _offer_as_wire(self._ours)
        return wire.pack([packed, self._key.prove("decode offer", self._note(packed))])

    def seals(self) -> tuple[wire.Sealer, wire.Opener]:
        """For what is sent and what is received from now on."""
        return self._seals("from decode", "from prefill")


class PrefillSide(_Side):
    """The side that is called. Send what `receive` returns for each frame, until `theirs` is set."""

    def receive(self, body: bytes) -> bytes:
        """What to answer. Raises PeerRefused and MalformedMessage; send `refusal(error)`, and close."""
        self._step += 1
        value = wire.unpack(body)
        if self._step == 1:
            return self._greet(body, value)
        match value:
            case [bytes(packed), proof]:
                if not self._key.holds("decode offer", self._note(packed), proof):
                    raise PeerRefused("the decode worker does not have the tenant's key")
            case _:
                raise MalformedMessage("not the offer of a decode worker")
        self.theirs = self._accept(packed)
        ours = _offer_as_wire(self._ours)
        return wire.pack([True, ours, self._key.prove("prefill offer", self._note(ours))])

    def _greet(self, body: bytes, value: Any) -> bytes:
        match value:
            case [name, version, str(access_key), bytes(nonce)] if name == NAME and len(nonce) == _NONCE_NBYTES:
                if version != VERSION:
                    raise PeerRefused(f"the version differs: {VERSION} here, {str(version)[:16]} there")
                if access_key != self._key.access_key:
                    raise PeerRefused("the access keys differ")
            case _:
                raise MalformedMessage("not a decode worker")
        nonce = os.urandom(_NONCE_NBYTES)
        transcript = self._note(body, nonce)
        return wire.pack([NAME, VERSION, nonce, self._key.prove("prefill hello", transcript)])

    def seals(self) -> tuple[wire.Sealer, wire.Opener]:
        """For what is sent and what is received from now on."""
        return self._seals("from prefill", "from decode")


def refusal(error: Exception) -> bytes:
    """What the prefill side sends instead of an answer."""
    return wire.pack([False, str(error)[:_MAX_REASON]])


def _require_fit(ours: Offer, theirs: Offer) -> None:
    if ours.agent == theirs.agent:
        raise PeerRefused("the peer has our own agent's id")
    layout.require_fit(ours.layout, theirs.layout)
    if ours.checksum != theirs.checksum:
        raise PeerRefused(f"checksum differs: {ours.checksum} here, {theirs.checksum} there")
    for waits, beats, where in ((ours, theirs, "here"), (theirs, ours, "there")):
        if waits.heartbeat_timeout_ms < 2 * beats.heartbeat_ms:
            raise PeerRefused(
                f"heartbeat_timeout is {waits.heartbeat_timeout_ms} ms {where}, less than twice the other's heartbeat "
                f"of {beats.heartbeat_ms} ms"
            )


def _offer_as_wire(offer: Offer) -> bytes:
    beats = [offer.heartbeat_ms, offer.heartbeat_timeout_ms]
    return wire.pack([offer.agent, offer.metadata, offer.layout.as_wire(), offer.checksum, *beats])


def _offer_from_wire(packed: bytes) -> Offer:
    match wire.unpack(packed):
        case [str(agent), bytes(metadata), memory, bool(checksum), int(heartbeat_ms), int(timeout_ms)]:
            if not 1 <= len(agent) <= _MAX_AGENT or len(metadata) > _MAX_METADATA_NBYTES:
                raise MalformedMessage("an offer outside its bounds")
            return Offer(agent, metadata, layout.from_wire(memory), checksum, heartbeat_ms, timeout_ms)
        case _:
            raise MalformedMessage("an offer that is none")
