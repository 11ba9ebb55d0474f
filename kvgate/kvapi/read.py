"""POST /_kv/v1/read: many chunks in one answer, in the order asked for, each with its own verdict."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from kvgate.chunk.frame import Frame
from kvgate.chunk.space import Space
from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.fields import Fields
from kvgate.messages import Response
from kvgate.store.slice_body import ChunkSlice

if TYPE_CHECKING:
    from kvgate.store.batch_read import BatchRead

FRAMES = "application/vnd.kvgate.frames"
"""The media type of a stream of frames, see kvgate.chunk.frame."""


class FramesBody:
    """See ResponseBody: a frame for each chunk of a batch."""

    nbytes = None

    def __init__(self, batch: BatchRead) -> None:
        self._batch = batch

    async def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        """See ResponseBody. Raises CorruptCopy when a copy goes bad while it is being sent."""
        index = 0
        async for chunk in self._batch.chunks():
            nbytes = 0 if chunk.body is None else chunk.body.nbytes
            assert nbytes is not None
            first = [memoryview(Frame(index, chunk.status, nbytes, chunk.crc64nvme).encode())]
            if chunk.body is None:
                yield first
            else:
                async for batch in chunk.body.batches():
                    yield [*first, *batch]
                    first = []
            index += 1

    def close(self) -> None:
        """See ResponseBody."""
        self._batch.close()


async def _read(context: Context, fields: Fields) -> Response:
    """{bucket, space, hashes, layers?, heads?, deadline_ms?} → frames: whole objects, or with layers or heads slices.

    A bucket or space that there is not is answered like chunks that there are not.
    """
    bucket = fields.text("bucket")
    space = fields.hex_digest("space")
    hashes = fields.hashes("hashes", context.config.max_read)
    deadline_s = fields.optional_ms("deadline_ms")
    sliced = fields.optional_text("layers") or fields.optional_text("heads")

    def select(space: Space) -> ChunkSlice:
        layers, heads = space.layout.layers, space.layout.kv_heads
        return ChunkSlice.of(space, fields.indices("layers", layers), fields.indices("heads", heads))

    batch = await context.store.read_chunks(
        context.tenant.name, bucket, space, hashes, select if sliced else None, deadline_s
    )
    return Response(200, {"Content-Type": FRAMES}, FramesBody(batch))


call = Call("Read", ("bucket", "space", "hashes", "layers", "heads", "deadline_ms"), _read)
