"""Chains that were asked for in vain and are being written now, so that they will go tail first.

An engine asks `match` for a whole chain, and then writes what is missing, head first. A policy that goes by age would
let the head go first, and nothing behind it could be hit any more. So once the last link is there, the chain is
arranged the other way round.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from kvgate.chunk.chain import HASH_NBYTES
from kvgate.chunk.key import ChunkKey
from kvgate.errors import NoSuchBucket
from kvgate.store.index import Entry, Index

_MAX_CHAINS = 1024
_MAX_NBYTES = 16 << 20
_WRITTEN_WITHIN_S = 30.0
_SETTLES_S = 2.0
"""How long after the last link was written the lower tiers have got theirs."""

_Chain = tuple[str, str, str, bytes]
"""Tenant, bucket, space, and the hashes one after the other."""


class Chains:
    """The chains that are being written. Synchronous and pure but for the clock.

    arrange: told the links of a chain that are there, head first, and their tenant
    """

    def __init__(
        self,
        index: Index,
        arrange: Callable[[str, Sequence[Entry]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._arrange = arrange
        self._clock = clock
        self._due: OrderedDict[_Chain, float] = OrderedDict()
        self._written: OrderedDict[_Chain, float] = OrderedDict()
        self._nbytes = 0

    def __len__(self) -> int:
        """How many chains are waited for."""
        return len(self._due) + len(self._written)

    def expect(self, tenant: str, bucket: str, space: str, hashes: bytes) -> None:
        """Note that a chain was asked for of which not all is there. When there are too many, the oldest is let be."""
        chain = tenant, bucket, space, hashes
        if chain not in self._due and chain not in self._written and len(hashes) <= _MAX_NBYTES:
            self._nbytes += len(hashes)
            self._due[chain] = self._clock() + _WRITTEN_WITHIN_S
            while len(self) > _MAX_CHAINS or self._nbytes > _MAX_NBYTES:
                self._nbytes -= len((self._written or self._due).popitem(last=False)[0][3])

    def arrange_written(self) -> None:
        """Arrange what has been written, or has not been for long. To be called about once a second."""
        now = self._clock()
        for chain, due in list(self._due.items()):
            if now >= due or self._is_written(chain):
                del self._due[chain]
                self._written[chain] = now + _SETTLES_S
        while self._written and next(iter(self._written.values())) <= now:
            chain, _ = self._written.popitem(last=False)
            tenant, bucket, space, hashes = chain
            self._nbytes -= len(hashes)
            try:
                self._arrange(tenant, self._index.leading_chunks(tenant, bucket, space, hashes))
            except NoSuchBucket:
                continue

    def _is_written(self, chain: _Chain) -> bool:
        tenant, bucket, space, hashes = chain
        try:
            return self._index.get(tenant, bucket, str(ChunkKey(space, hashes[-HASH_NBYTES:].hex()))) is not None
        except NoSuchBucket:
            return False
