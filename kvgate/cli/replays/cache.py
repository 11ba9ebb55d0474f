"""A cache that is only counted: requests are played against an eviction policy of the gateway's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvgate.cli.replays.trace import Request
from kvgate.store.eviction.base import EvictionPolicy


@dataclass(slots=True)
class Counts:
    """What has come of the requests so far. A reference is one block of one request."""

    requests: int = 0
    requests_hit: int = 0
    references: int = 0
    hits: int = 0
    tokens: int = 0
    tokens_hit: int = 0
    writes: int = 0


def play(
    policy: EvictionPolicy[int], requests: Iterable[Request], capacity: int, counts: Counts, *, ask: bool = True
) -> Iterator[None]:
    """Play requests one after another, as an engine asks a gateway; `counts` is up to date at each yield.

    The leading blocks that are there are hits; all that are missing are written, if the policy admits them.

    capacity: blocks that fit
    ask:      whether the policy is asked before a write, as in a lower tier; memory takes everything
    """
    for request in requests:
        blocks = request.blocks
        found = _leading(policy, blocks)
        policy.touch_all(blocks[:found])
        for block in blocks[found:]:
            if block in policy:
                policy.touch(block)
            elif _write(policy, block, capacity, ask=ask):
                counts.writes += 1
        if found < len(blocks):
            policy.arrange(blocks)  # as the store does once the last of a chain has been written
        counts.requests += 1
        counts.requests_hit += found > 0
        counts.references += len(blocks)
        counts.hits += found
        counts.tokens += request.input_tokens
        counts.tokens_hit += request.hit_tokens(found)
        yield


def _leading(policy: EvictionPolicy[int], blocks: tuple[int, ...]) -> int:
    for found, block in enumerate(blocks):
        if block not in policy:
            return found
    return len(blocks)


def _write(policy: EvictionPolicy[int], block: int, capacity: int, *, ask: bool) -> bool:
    policy.note(block)
    full = len(policy) >= capacity
    if ask and not policy.admit(block, full=full):
        return False
    if full:
        policy.evict(next(policy.victims()))
    policy.insert(block, 1)
    return True
