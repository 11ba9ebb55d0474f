"""Blocks of transfers that are over for us, while a write to or from them may still be under way.

1. Blocks come out when the peer has confirmed that nothing is under way, or when the agent that the bytes go through
   is closed. Time alone never frees a block: it only says when to stop waiting for the peer and close the agent.
2. Each held transfer belongs to one agent, and comes out exactly once.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Held:
    agent: str
    close_at_s: float
    blocks: int


class Quarantine(Generic[T]):
    """Which transfers are held, and because of which agent. Pure; `now_s` is any monotonic clock."""

    def __init__(self) -> None:
        self._held: dict[T, _Held] = {}

    @property
    def transfers(self) -> int:
        return len(self._held)

    @property
    def blocks(self) -> int:
        """Blocks that cannot be used for now."""
        return sum(held.blocks for held in self._held.values())

    def __contains__(self, transfer: T) -> bool:
        return transfer in self._held

    def hold(self, transfer: T, agent: str, blocks: int, close_at_s: float) -> None:
        """Keep the blocks of a transfer. When held already, its agent is closed at the earlier of the two times."""
        before = self._held.get(transfer)
        if before is not None:
            agent, blocks, close_at_s = before.agent, before.blocks, min(before.close_at_s, close_at_s)
        self._held[transfer] = _Held(agent, close_at_s, blocks)

    def confirmed(self, transfer: T) -> bool:
        """The peer says that nothing of it is under way. Whether it was held; it is free now."""
        return self._held.pop(transfer, None) is not None

    def to_close(self, now_s: float) -> set[str]:
        """The agents that have to be closed, because a peer has not confirmed in time or never will."""
        return {held.agent for held in self._held.values() if held.close_at_s <= now_s}

    def closed(self, agent: str) -> list[T]:
        """An agent is closed. The transfers that are free now, oldest first."""
        free = [transfer for transfer, held in self._held.items() if held.agent == agent]
        for transfer in free:
            del self._held[transfer]
        return free
