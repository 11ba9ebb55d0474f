"""What is known of chunks that requests have asked for. Synchronous and pure; the scheduler's thread only.

Invariants
1. A chunk is asked for once for all requests that wait for it. Whoever asks gets RETRY until the answer, at most
   `deadline_s`, and MISS from then on.
2. HIT is said only while the chunk's lease holds it. The lease is given back when all of its chunks were loaded, have
   failed, or are of no request any more, whichever comes first; an answer that nobody waits for gives it back at once.
3. A chunk that could not be loaded is a MISS for the requests that know it: vLLM would ask for it again for ever.
4. A request that is new is not told of a MISS that is older than `stale_s`: another engine may have stored the chunk.
5. At most `max_keys` chunks are known. What is beyond is a MISS, and not remembered.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


class Verdict(enum.Enum):
    """What is said of a chunk."""

    RETRY = "retry"
    HIT = "hit"
    MISS = "miss"


@dataclass(eq=False, slots=True)
class Lease:
    """A lease of the gateway's, and those of its chunks that still need it."""

    name: str
    expires_at: float
    keys: set[bytes]


@dataclass(frozen=True, slots=True)
class Question:
    """Chunks of one group of layers, in the order in which a request asked for them."""

    group: int
    keys: tuple[bytes, ...]


@dataclass(eq=False, slots=True)
class _Known:
    verdict: Verdict
    asked_at: float
    requests: set[str] = field(default_factory=set)
    lease: Lease | None = None


class Lookups:
    """See above. keys: vLLM's OffloadKeys, of which the last four bytes are the group."""

    def __init__(self, *, deadline_s: float, stale_s: float, max_keys: int, clock: Callable[[], float]) -> None:
        self._deadline_s = deadline_s
        self._stale_s = stale_s
        self._max_keys = max_keys
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        self._of_request: dict[str, set[bytes]] = {}
        self._new: dict[tuple[str, int], list[bytes]] = {}
        self._over: list[str] = []

    def __len__(self) -> int:
        return len(self._known)

    def look_up(self, key: bytes, request: str, *, may_ask: bool) -> Verdict:
        """What is known of a chunk; it will be asked for when nothing is.

        may_ask: whether the gateway is there to be asked
        """
        now = self._clock()
        known = self._known.get(key)
        is_new = known is None or request not in known.requests
        if known is not None and is_new and known.verdict is Verdict.MISS and now - known.asked_at > self._stale_s:
            known = self._known[key] = _Known(Verdict.MISS, now, known.requests)
            self._ask(known, key, request, may_ask=may_ask)
        if known is None:
            if len(self._known) >= self._max_keys:
                return Verdict.MISS
            known = self._known[key] = _Known(Verdict.MISS, now)
            self._ask(known, key, request, may_ask=may_ask)
        if is_new:
            known.requests.add(request)
            self._of_request.setdefault(request, set()).add(key)
        if known.verdict is Verdict.RETRY and now - known.asked_at > self._deadline_s:
            known.verdict = Verdict.MISS
        elif known.verdict is Verdict.HIT and (known.lease is None or known.lease.expires_at <= now):
            self._let_go(key, known)
            known.verdict = Verdict.MISS
        return known.verdict

    def questions(self) -> list[Question]:
        """What has been asked for since the last call."""
        asked = [Question(group, tuple(keys)) for (_, group), keys in self._new.items()]
        self._new.clear()
        return asked

    def answer(self, question: Question, present: Iterable[bytes], leases: Sequence[Lease]) -> None:
        """Take the gateway's answer. leases: of all chunks in `present`, each in one of them."""
        lease_of = {key: lease for lease in leases for key in lease.keys}
        there = set(present)
        for key in question.keys:
            known = self._known.get(key)
            if known is None or known.verdict is not Verdict.RETRY:
                continue
            known.verdict = Verdict.MISS
            if key in there:
                known.verdict, known.lease = Verdict.HIT, lease_of.pop(key)
        for key, lease in lease_of.items():
            self._drop(key, lease)

    def loaded(self, keys: Iterable[bytes]) -> None:
        """Forget chunks that have been loaded: whoever asks again finds them in vLLM's own tier, or asks anew."""
        for key in keys:
            known = self._known.pop(key, None)
            if known is not None:
                self._let_go(key, known)
                for request in known.requests:
                    self._of_request[request].discard(key)

    def failed(self, keys: Iterable[bytes]) -> None:
        """Chunks could not be loaded."""
        for key in keys:
            known = self._known.get(key)
            if known is not None:
                self._let_go(key, known)
                known.verdict = Verdict.MISS

    def finished(self, request: str) -> None:
        """A request will not ask any more."""
        for key in self._of_request.pop(request, ()):
            known = self._known[key]
            known.requests.discard(request)
            if not known.requests:
                self._let_go(key, known)
                del self._known[key]

    def leases_over(self) -> list[str]:
        """The leases that can be given back since the last call."""
        over, self._over = self._over, []
        return over

    def _ask(self, known: _Known, key: bytes, request: str, *, may_ask: bool) -> None:
        if may_ask:
            known.verdict = Verdict.RETRY
            self._new.setdefault((request, int.from_bytes(key[-4:], "big")), []).append(key)

    def _let_go(self, key: bytes, known: _Known) -> None:
        lease, known.lease = known.lease, None
        if lease is not None:
            self._drop(key, lease)

    def _drop(self, key: bytes, lease: Lease) -> None:
        lease.keys.discard(key)
        if not lease.keys and lease.name:
            self._over.append(lease.name)
            lease.name = ""
