"""A stream of frames on its way in: where the next bytes go, and what each chunk turned out to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvgate.chunk.frame import FRAME_NBYTES, Frame, Status, decode_frame
from kvgate.client.answer import malformed
from kvgate.client.download import PIECE_NBYTES
from kvgate.client.values import ChunkRead
from kvgate.errors import GatewayError, GatewayUnavailable, InvalidFrame
from kvgate.memory.digest import extend_crc64nvme

FRAMES = "application/vnd.kvgate.frames"


class FrameReader:
    """Takes a stream piece by piece: fill `room()`, report `received(n)`, until the room is empty; then `finish()`.

    A chunk whose bytes do not have the digest of its frame is corrupt, whatever the frame says.
    """

    def __init__(
        self,
        count: int,
        into: Sequence[memoryview] | None,
        note: Callable[[int, ChunkRead], object] = lambda *_: None,
        *,
        exact: bool = True,
    ) -> None:
        """
        count: of the chunks that were asked for
        into:  a buffer a chunk, of exactly its size; None makes memory as bytes really arrive
        exact: False takes chunks that are shorter than their buffers, too
        note:  called with each chunk that has arrived, in order, and what it is
        """
        self.chunks: list[ChunkRead] = []
        """Those that have arrived."""
        self._count = count
        self._into = into
        self._note = note
        self._exact = exact
        self._header = memoryview(bytearray(FRAME_NBYTES))
        self._header_done = 0
        self._frame: Frame | None = None  # whose payload is being received
        self._done = 0
        self._pieces: list[bytearray] = []
        self._piece_done = 0
        self._crc = 0

    def room(self) -> memoryview:
        """Where the next bytes go, at most PIECE_NBYTES; empty when every chunk has arrived."""
        if self._frame is None:
            return self._header[self._header_done :] if len(self.chunks) < self._count else memoryview(b"")
        wanted = min(self._frame.nbytes - self._done, PIECE_NBYTES)
        if self._into is not None:
            return self._into[self._frame.index][self._done : self._done + wanted]
        if not self._pieces or self._piece_done == len(self._pieces[-1]):
            self._pieces.append(bytearray(wanted))
            self._piece_done = 0
        return memoryview(self._pieces[-1])[self._piece_done :]

    def received(self, nbytes: int) -> None:
        """The first `nbytes` bytes of the last room have been filled. Raises GatewayError for another stream."""
        if self._frame is None:
            self._header_done += nbytes
            if self._header_done == FRAME_NBYTES:
                self._begin()
            return
        self._crc = extend_crc64nvme(self.room()[:nbytes], self._crc)
        self._done += nbytes
        self._piece_done += nbytes
        if self._done == self._frame.nbytes:
            self._end(self._frame)

    def feed(self, arrived: bytes) -> None:
        """Take bytes that came by another way than the room, at the price of one copy."""
        rest = memoryview(arrived)
        while rest:
            room = self.room()
            if not room:
                malformed(200, "bytes follow the last frame")
            taken = min(len(room), len(rest))
            room[:taken] = rest[:taken]
            self.received(taken)
            rest = rest[taken:]

    def finish(self) -> list[ChunkRead]:
        """Every chunk, in order. Raises GatewayUnavailable when some have not arrived."""
        if len(self.chunks) != self._count:
            raise GatewayUnavailable(f"the connection broke after {len(self.chunks)} of {self._count} chunks")
        return self.chunks

    def _begin(self) -> None:
        self._header_done = 0
        try:
            frame = decode_frame(self._header)
        except InvalidFrame as error:
            malformed(200, str(error))
        if frame.index != len(self.chunks):
            malformed(200, f"the frame of chunk {frame.index} came for chunk {len(self.chunks)}")
        if frame.status == Status.PRESENT and self._into is not None:
            room_nbytes = len(self._into[frame.index])
            if frame.nbytes > room_nbytes or (self._exact and frame.nbytes < room_nbytes):
                raise GatewayError(
                    f"chunk {frame.index} has {frame.nbytes} bytes, and its buffer {room_nbytes}",
                    status=200,
                    code="BufferSizeMismatch",
                )
        self._done, self._crc, self._pieces, self._piece_done = 0, 0, [], 0
        if frame.nbytes:
            self._frame = frame
        else:
            self._end(frame)

    def _end(self, frame: Frame) -> None:
        self._frame = None
        status = Status.CORRUPT if self._crc != frame.crc64nvme else frame.status
        body = b"".join(self._pieces) if self._into is None and status == Status.PRESENT else None
        chunk = ChunkRead(status, frame.nbytes if status == Status.PRESENT else 0, body)
        self._pieces = []
        self.chunks.append(chunk)
        self._note(frame.index, chunk)
