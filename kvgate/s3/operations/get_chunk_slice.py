"""GET of some layers and heads of a chunk, `?layers=0-15&heads=4-7`: an extension of GetObject."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from kvgate.chunk.key import ChunkKey, parse_key
from kvgate.chunk.layout import parse_range
from kvgate.chunk.space import Space
from kvgate.errors import InvalidArgument, InvalidRequest, LayoutError
from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.checksums import encode_crc64nvme
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.reading import ReadInput
from kvgate.s3.representation import DEFAULT_CONTENT_TYPE
from kvgate.s3.versions import PARAMETER as VERSION
from kvgate.store.slice_body import ChunkSlice, load_slice


@dataclass(frozen=True, slots=True)
class SliceInput:
    """A GET of a part of one chunk; a text that is empty is all layers, or all heads."""

    read: ReadInput
    chunk: ChunkKey
    layers: str
    heads: str

    @classmethod
    def parse(cls, call: Call) -> SliceInput:
        """Raises InvalidRequest."""
        chunk = parse_key(call.key)
        if not isinstance(chunk, ChunkKey):
            raise InvalidRequest("layers and heads are of chunks, kv/<space>/<hash>; this object is none")
        if "range" in call.headers:
            raise InvalidRequest("Range cannot go together with layers and heads")
        return cls(ReadInput.parse(call), chunk, call.query.get("layers", ""), call.query.get("heads", ""))

    def part(self, space: Space) -> ChunkSlice:
        """The bytes that are meant. Raises InvalidArgument."""
        layout = space.layout
        try:
            layers = parse_range(self.layers, layout.layers) if self.layers else None
            heads = parse_range(self.heads, layout.kv_heads) if self.heads else None
        except LayoutError as error:
            raise InvalidArgument(f"layers and heads: {error}") from None
        return ChunkSlice.of(space, layers, heads)


async def get_chunk_slice(context: Context, input: SliceInput) -> Response:
    """The bytes of `kv[layers, :, heads]` in C order, or those of every tensor that a lossy codec has, in their order.

    The ETag is the whole chunk's; the checksum is the slice's. Raises NoSlices.
    """
    store, tenant, bucket = context.store, context.tenant.name, input.read.bucket
    with contextlib.ExitStack() as stack:
        read = store.open_read(tenant, bucket, input.read.key, context.caller)
        stack.callback(read.close)
        selection = input.read.select(read.record)
        if selection.status == 304:
            return Response(304, selection.headers)
        part = input.part(await store.space(tenant, bucket, input.chunk.space))
        part.check(read)  # before anything is paid
        store.rates.read.take(context.payer, part.nbytes)
        body = await load_slice(read, part)
        stack.callback(body.close)
        headers = {name: selection.headers[name] for name in ("ETag", "Last-Modified")}
        headers["Content-Type"] = DEFAULT_CONTENT_TYPE
        if input.read.with_checksums:
            headers["x-amz-checksum-crc64nvme"] = encode_crc64nvme(await body.digest())
        stack.pop_all()
    return Response(200, headers, body)


_PARAMETERS = frozenset({"layers", "heads", VERSION})

of_layers = Operation("GetChunkLayers", SliceInput.parse, get_chunk_slice, _PARAMETERS, action="GetObject")
of_heads = Operation("GetChunkHeads", SliceInput.parse, get_chunk_slice, _PARAMETERS, action="GetObject")
"""The same, where the query begins with heads."""
