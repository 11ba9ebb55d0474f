"""A board that keeps what is published on it, and serves it when a test says so."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvgate.memory.lease import Lease
from kvgate.store.store import Store
from kvgate.tiers.base import Name, Record


@dataclass(frozen=True)
class Shown:
    record: Record
    headers: Mapping[str, str]
    checksums: Mapping[str, str]
    lease: Lease
    blocks: array[int]

    @property
    def body(self) -> bytes:
        return b"".join(map(bytes, self.lease.views))


class RecordingBoard:
    """What a data plane does in threads is done here when a test says so: `begin` and `end` are one answer."""

    def __init__(self) -> None:
        self.shown: dict[int, Shown] = {}
        self.leaving: dict[int, Shown] = {}
        self.reading: Counter[int] = Counter()
        self.uses: dict[int, None] = {}
        self.done: list[int] = []
        self.bad: list[int] = []
        self.count = 0

    # what the store calls

    def publish(
        self,
        record: Record,
        headers: Mapping[str, str],
        checksums: Mapping[str, str],
        lease: Lease,
        blocks: array[int],
    ) -> int | None:
        assert self.number(record) is None, "published twice"
        assert lease.nbytes == record.nbytes
        self.count += 1
        self.shown[self.count] = Shown(record, dict(headers), dict(checksums), lease, blocks)
        return self.count

    def withdraw(self, number: int) -> bool:
        shown = self.shown.pop(number)
        if self.reading[number]:
            self.leaving[number] = shown
        return not self.reading[number]

    def readers(self, number: int) -> int:
        return self.reading[number]

    def used(self) -> list[int]:
        used, self.uses = list(self.uses), {}
        return used

    def released(self) -> list[int]:
        done, self.done = self.done, []
        return done

    def corrupt(self) -> list[int]:
        bad, self.bad = self.bad, []
        return bad

    # what a client does

    def number(self, record: Record) -> int | None:
        """The publication under the name of a record."""
        name = Name(*record[:3])
        return next((number for number, shown in self.shown.items() if Name(*shown.record[:3]) == name), None)

    def begin(self, number: int) -> Callable[[], bytes]:
        """Find a publication; what is called at the end of the answer gives the bytes that were sent."""
        shown = self.shown[number]
        self.reading[number] += 1
        self.uses.setdefault(number)

        def end() -> bytes:
            body = shown.body
            self.reading[number] -= 1
            if not self.reading[number] and self.leaving.pop(number, None) is not None:
                self.done.append(number)
            return body

        return end

    def get(self, number: int) -> bytes:
        """A whole answer."""
        return self.begin(number)()


def published_keys(board: RecordingBoard) -> list[str]:
    return [shown.record.key for shown in board.shown.values()]


def check_published(store: Store, board: RecordingBoard) -> None:
    """Whatever the board would serve is what the store would answer at this moment, to a client who asks for it."""
    assert len(store.published) == len(board.shown)
    for shown in board.shown.values():
        record = shown.record
        assert store.stat(record.tenant, record.bucket, record.key) is record
        entry = store._index.get(*record[:3])
        assert entry is not None
        copy = entry.copies[0]
        assert copy is not None
        assert copy.lease._slot is shown.lease._slot
        assert copy.blocks is shown.blocks
        assert not store.buckets.get(record.tenant, record.bucket).settings
        assert not store.watches_ends(record)
        assert not store.recorder.listening
    for shown in [*board.shown.values(), *board.leaving.values()]:
        assert not shown.lease._released
