"""The recorder: what clients ask for, as a trace that `kvgate replay` plays; kvgate/cli/replays/trace.py has its form.

A recording holds no key, hash, token or tenant name: objects and tenants are numbered in the order in which they are
first named, anew for each recording. It costs nothing while there is none.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable

from kvgate.chunk.chain import HASH_NBYTES
from kvgate.chunk.key import ChunkKey, parse_key
from kvgate.errors import InvalidKey

_MAX_WAITING_NBYTES = 32 << 20
_MAX_NUMBERS = 2_000_000
_MAX_CHAIN = 100_000
_HAND_ON_EVERY_S = 0.1
_QUIET_S = 1.0


class Recorder:
    """Notes what is asked for while `listening`. All methods run on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers: dict[Hashable, int] = {}
        self._tenants: dict[str, int] = {}
        self._lines: deque[str] = deque()
        self._waiting_nbytes = 0
        self._began = 0.0
        self._ended = ""
        self.listening = False
        """Whether a recording goes on, so that something is to be noted."""
        self.begins: Callable[[], None] = lambda: None
        """Called when a recording begins, for those who answer what is not noted otherwise."""

    def note_match(self, tenant: str, bucket: str, space: str, hashes: bytes, found: int, tokens: int) -> None:
        """Note that a prompt was asked for.

        hashes: 32 bytes each; tokens: of one chunk, 0 where that is not known
        """
        end = min(len(hashes), _MAX_CHAIN * HASH_NBYTES)
        numbers = [
            self._number((tenant, bucket, space, hashes[start : start + HASH_NBYTES]))
            for start in range(0, end, HASH_NBYTES)
        ]
        self._add(tenant, {"match": numbers, "found": min(found, len(numbers)), "tokens": tokens})

    def note_get(self, tenant: str, bucket: str, key: str) -> None:
        """Note that an object is read that is there."""
        self._add(tenant, {"get": self._number(_identity(tenant, bucket, key))})

    def note_put(self, tenant: str, bucket: str, key: str, nbytes: int) -> None:
        """Note that an object was written."""
        self._add(tenant, {"put": self._number(_identity(tenant, bucket, key)), "nbytes": nbytes})

    def begin(self) -> bool:
        """Listen from now on; False when there is a recording already."""
        if self.listening:
            return False
        self._lines = deque([json.dumps({"kvgate": 1})])
        self._waiting_nbytes = 0
        self._began = self._clock()
        self._ended = ""
        self.listening = True
        self.begins()
        return True

    async def lines(self, seconds: float) -> AsyncIterator[bytes]:
        """The lines of the recording as it goes on, several at a time; an empty one after a second without any.

        The last line says why it ended: the `time` is over, there were too many objects or lines (`limit`), or the
        gateway stops (`stop`).
        """
        handed_on_s = self._began
        while not self._ended:
            left_s = self._began + seconds - self._clock()
            if left_s <= 0:
                self._ended = "time"
                break
            await asyncio.sleep(min(_HAND_ON_EVERY_S, left_s))
            if self._lines or self._clock() > handed_on_s + _QUIET_S:
                handed_on_s = self._clock()
                yield self._take() or b"\n"
        self._lines.append(json.dumps({"ms": self._ms(), "end": self._ended}))
        yield self._take()

    def end(self) -> None:
        """Listen no more, and forget what was noted."""
        self.listening = False
        self._lines.clear()
        self._numbers, self._tenants = {}, {}

    def stop(self) -> None:
        """Let the recording end by itself now, because the gateway stops."""
        self._ended = self._ended or "stop"

    def _take(self) -> bytes:
        taken = "".join(f"{line}\n" for line in self._lines)
        self._lines.clear()
        self._waiting_nbytes = 0
        return taken.encode()

    def _add(self, tenant: str, event: dict[str, object]) -> None:
        if self._ended:
            return
        number = self._tenants.setdefault(tenant, len(self._tenants))
        line = json.dumps({"ms": self._ms(), "tenant": number, **event}, separators=(",", ":"))
        self._lines.append(line)
        self._waiting_nbytes += len(line)
        if self._waiting_nbytes > _MAX_WAITING_NBYTES or len(self._numbers) > _MAX_NUMBERS:
            self._ended = "limit"

    def _ms(self) -> int:
        return int((self._clock() - self._began) * 1000)

    def _number(self, identity: Hashable) -> int:
        return self._numbers.setdefault(hash(identity), len(self._numbers))


def _identity(tenant: str, bucket: str, key: str) -> Hashable:
    """The same for the key of a chunk as a match gives it."""
    try:
        kind = parse_key(key)
    except InvalidKey:
        kind = None
    if isinstance(kind, ChunkKey):
        return tenant, bucket, kind.space, bytes.fromhex(kind.hash)
    return tenant, bucket, key
