"""What a kind of job is: how it works on one object, and what should hold of the object afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from kvgate.errors import InvalidArgument, KVGateError
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.index import Entry
from kvgate.store.keeper import Keeper
from kvgate.store.recoder import Recoder
from kvgate.store.retention import Retention
from kvgate.store.values import Selection


class Skipped(KVGateError):
    """An object that a job leaves as it is; the message says why, in words that fit many objects."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a job works with.

    bring:        gives an entry a copy in the tier of a rank. Raises TierError
    note_saved:   told of bytes of room that are free now, or with a negative number taken
    delete:       deletes a tenant's object. Raises TierError
    memory_nbytes: how much of memory this job may fill
    """

    tenant: str
    selection: Selection
    options: Mapping[str, Any]
    started_ms: int
    copies: Copies
    keeper: Keeper
    retention: Retention
    bring: Callable[[Entry, int], Awaitable[None]]
    recoder: Recoder
    note_saved: Callable[[int], None]
    delete: Callable[[str, str, str], Awaitable[bool]]
    memory_nbytes: int

    def rank(self, option: str) -> int:
        """The rank of the tier that an option names. Raises InvalidArgument."""
        names = [tier.name for tier in self.copies.tiers]
        name = self.options[option]
        if name not in names:
            raise InvalidArgument(f"{option}: there is no tier {name!r}; there are {', '.join(names)}")
        return names.index(name)

    def writable_rank(self, option: str) -> int:
        """As `rank`, of a tier that can be written to. Raises InvalidArgument."""
        rank = self.rank(option)
        if self.copies.tiers[rank].read_only:
            raise InvalidArgument(f"{option}: the {self.options[option]} tier is only read from")
        return rank


class Kind(Protocol):
    """One job's work. Made for each job, with what that was begun with; raises InvalidArgument for what cannot be.

    options: which the kind takes, and whether each is needed
    moves:   whether the work on an object moves its bytes, and counts against `store.jobs.in_flight`
    home:    the rank of the tier that should have every object at the end; where it is shared, the check asks it
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, bool]]
    moves: ClassVar[bool]

    @property
    def home(self) -> int | None: ...

    def __init__(self, work: Work) -> None: ...

    async def begin(self) -> None:
        """What comes before the first object."""

    async def do(self, entry: Entry) -> None:
        """Work on one object. It may be done already. Raises Skipped, or another KVGateError, which fails it alone."""

    def why_not(self, key: str, entry: Entry | None) -> str:
        """Why what should hold of a key does not; empty when it does. `entry` is None where there is no object."""


class Brings:
    """What kinds have in common that give objects a copy in a tier."""

    def __init__(self, work: Work, rank: int) -> None:
        self._work = work
        self._rank = rank
        self._brought_nbytes = 0

    async def begin(self) -> None:
        """See Kind."""

    async def bring(self, entry: Entry) -> None:
        """Give an entry a copy in the tier, within what the job may fill of memory."""
        if entry.has_copy(self._rank):
            return
        copies, record = self._work.copies, entry.record
        if self._rank in copies.shared_ranks and not copies.keys.is_shared(record.bucket, record.key):
            raise Skipped("shared tiers hold only what is named after its content: chunks and manifests")
        if self._rank == MEMORY:
            if self._brought_nbytes + entry.record.nbytes > self._work.memory_nbytes:
                raise Skipped("the part of memory that a job may fill is full (store.jobs.memory_share)")
            self._brought_nbytes += entry.record.nbytes
        await self._work.bring(entry, self._rank)

    def why_not(self, key: str, entry: Entry | None) -> str:
        """See Kind."""
        if entry is None:
            return "there is no such object"
        if not entry.has_copy(self._rank):
            return f"it has no copy in the {self._work.copies.tiers[self._rank].name} tier"
        return ""

    @property
    def home(self) -> int | None:
        """See Kind."""
        return self._rank
