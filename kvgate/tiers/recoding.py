"""One file of a tier made anew: its body encoded, or as it was sent. Everything here blocks; in a tier's threads.

Every block of the old file is held against its digest before it is written, and the whole at the end.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Sequence

from kvgate.codec.base import Codec
from kvgate.errors import CorruptCopy, TierError
from kvgate.memory.digest import BLOCK_NBYTES, combine_blocks, crc64nvme
from kvgate.tiers.base import Record
from kvgate.tiers.disk_file import OpenFile, write_all
from kvgate.tiers.disk_streams import Place, footprint
from kvgate.tiers.encoded_body import read_block
from kvgate.tiers.footer import MAX_FOOTER_NBYTES, Encoding, encode_footer

_BLOCKS_A_STEP = 4
_MOST_LEFT = 0.95
"""An encoded file that takes more of the room of a plain one is not worth what its reads cost."""

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Recoding:
    """A few blocks are in memory at a time. After an error, or when it is not wanted any more, `discard`."""

    def __init__(
        self,
        open_file: Callable[[], OpenFile],
        place: Place,
        record: Record,
        codecs: Sequence[Codec],
        *,
        fsync: bool,
    ) -> None:
        """
        open_file: the file that holds `record`
        codecs:    of which the one is used that makes the first block shortest; none for the body as it was sent
        """
        self._open_file, self._place, self._record, self._fsync = open_file, place, record, fsync
        self._codecs = codecs
        self._source: OpenFile | None = None
        self._fd = -1
        self._offsets = array("Q", [0])
        self._number = 0
        self._discarded = False
        self._lock = threading.Lock()  # held by whichever thread works

    def step(self) -> bool:
        """Write the next few blocks; whether there are more. Raises NotInTier, CorruptCopy, TierError, OSError."""
        with self._lock:
            if self._discarded:  # the caller was cancelled before this thread came to work
                raise TierError("the work was given up")
            if self._source is None:
                self._source = self._open_file()
                os.posix_fadvise(self._source.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                self._fd = os.open(self._place.temporary, _NEW_FILE, 0o600)
            stop = min(self._number + _BLOCKS_A_STEP, len(self._source.blocks))
            while self._number < stop:
                self._write(self._encoded(self._read(self._source, self._number)))
                self._number += 1
            return self._number < len(self._source.blocks)

    def finish(self) -> Encoding | None:
        """Complete the file and bring it to its place; how its body lies.

        With codecs, None when it would take hardly less room, and then there is no file. Raises as `step`.
        """
        with self._lock:
            if self._discarded or self._source is None:
                raise TierError("the work was given up")
            record, blocks = self._record, self._source.blocks
            if combine_blocks(blocks, record.nbytes) != record.crc64nvme:
                raise CorruptCopy("the bytes do not match the digest of the whole")
            encoding = None
            if self._codecs:
                encoding = Encoding(self._codecs[0].name, self._offsets)
                if footprint(encoding.stored_nbytes) > _MOST_LEFT * footprint(record.nbytes):
                    self._discard_locked()
                    return None
            footer = encode_footer(record, blocks, encoding)
            if len(footer) > MAX_FOOTER_NBYTES:
                raise TierError("the object has too many blocks to be encoded")
            write_all(self._fd, [memoryview(footer)], self._offsets[-1])
            if self._fsync:
                os.fsync(self._fd)
            self._close_locked()
            self._place.settle(record)
            return encoding

    def discard(self) -> None:
        """Remove the new file from wherever it is. Idempotent."""
        with self._lock:
            self._discard_locked()

    def _read(self, source: OpenFile, number: int) -> bytes | bytearray:
        nbytes = min(BLOCK_NBYTES, self._record.nbytes - number * BLOCK_NBYTES)
        if source.encoding is None:
            block: bytes | bytearray = os.pread(source.fd, nbytes, number * BLOCK_NBYTES)
        else:
            block = read_block(source.fd, source.encoding, number, nbytes)
        if len(block) != nbytes or crc64nvme([memoryview(block)]) != source.blocks[number]:
            raise CorruptCopy("the bytes of the file do not match their digest")
        return block

    def _encoded(self, block: bytes | bytearray) -> bytes | bytearray:
        if not self._codecs:
            return block
        plain = bytes(block)
        each = [codec.encode(plain) for codec in self._codecs]
        encoded = min(each, key=len)
        self._codecs = [self._codecs[each.index(encoded)]]
        return encoded if 0 < len(encoded) < len(plain) else plain

    def _write(self, content: bytes | bytearray) -> None:
        write_all(self._fd, [memoryview(content)], self._offsets[-1])
        self._offsets.append(self._offsets[-1] + len(content))

    def _discard_locked(self) -> None:
        self._discarded = True
        try:
            self._close_locked()
        finally:
            self._place.discard()

    def _close_locked(self) -> None:
        fds = [self._fd, -1 if self._source is None else self._source.fd]
        self._fd, self._source = -1, None
        for fd in fds:
            if fd >= 0:
                os.close(fd)
