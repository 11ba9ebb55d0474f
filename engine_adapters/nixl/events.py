"""What a worker tells its engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrived:
    """All blocks that the request wanted hold its KV, verified where that is on."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The blocks that the request wanted hold nothing of use, and nothing writes to them any more."""

    request_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The blocks offered for the request have been copied to a peer, and may be given to others."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Unsent:
    """The blocks offered for the request went nowhere. Nothing reads them any more: they may be given to others."""

    request_id: str
    reason: str


Event = Arrived | Failed | Sent | Unsent


@dataclass(slots=True)
class Stats:
    """Counters since the start, and how it is now. Written by the worker's thread; read them from any."""

    arrived: int = 0
    arrived_nbytes: int = 0
    failed: int = 0
    corrupt: int = 0
    """Transfers of which a block did not match its digest; they are counted as failed too."""
    sent: int = 0
    sent_nbytes: int = 0
    unsent: int = 0
    refused_peers: int = 0
    agents_closed: int = 0
    """Agents that had to be closed, because a peer did not confirm that it writes no more."""
    sessions: int = 0
    writes: int = 0
    """Writes to others that are under way."""
    held_transfers: int = 0
    held_blocks: int = 0
    """Blocks in quarantine."""
