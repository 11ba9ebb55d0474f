"""A body with a checksum of what passes through it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from kvgate.messages import OFF_LOOP_NBYTES, ResponseBody, consume_in_thread
from kvgate.s3.checksums import Checksum


class DigestedBody:
    """Another body, every batch of which is added to `checksum` before it is given on."""

    def __init__(self, body: ResponseBody, checksum: Checksum) -> None:
        self.nbytes = body.nbytes
        self._body = body
        self._checksum = checksum

    async def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        """See ResponseBody. A slow hash works in a thread, which has ended when this goes on, fails or is cancelled."""
        async for batch in self._body.batches():
            for view in batch:
                if self._checksum.inline or len(view) <= OFF_LOOP_NBYTES:
                    self._checksum.update(view)
                else:
                    await consume_in_thread(self._checksum.update, view)
            yield batch

    def close(self) -> None:
        """See ResponseBody."""
        self._body.close()
