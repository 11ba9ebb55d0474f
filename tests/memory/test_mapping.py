from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvgate.memory.mapping import Mapping, address_of, move
from kvgate.memory.segment import Segment

NBYTES = 1 << 20


def is_mapped(inode: int) -> bool:
    return any(int(line.split()[4]) == inode for line in Path("/proc/self/maps").read_text().splitlines())


def test_what_one_side_writes_the_other_reads() -> None:
    segment = Segment(7, NBYTES)
    mapping = Mapping(segment.fd, NBYTES, write=False)
    segment.view[5:9] = b"body"
    assert mapping.view[5:9] == b"body"
    assert mapping.view.readonly
    writable = Mapping(segment.fd, NBYTES, write=True)
    writable.view[100:104] = b"more"
    assert segment.view[100:104] == b"more"
    buffer = memoryview(bytearray(8))
    move(address_of(buffer), mapping.address + 100, 4)
    assert buffer[:4] == b"more"
    segment.close()


def test_descriptor_for_reading_gives_no_writable_mapping() -> None:
    segment = Segment(7, NBYTES)
    fd = segment.reader_fd()
    with pytest.raises(PermissionError):
        Mapping(fd, NBYTES, write=True)
    Mapping(fd, NBYTES, write=False)
    os.close(fd)
    segment.close()


def test_mapping_lasts_as_long_as_a_view_of_it() -> None:
    segment = Segment(7, NBYTES)
    segment.view[:4] = b"body"
    inode = os.fstat(segment.fd).st_ino
    mapping = Mapping(segment.fd, NBYTES, write=False)
    segment.close()
    view = mapping.view[:4]
    del mapping
    assert view == b"body"
    assert is_mapped(inode)
    del view
    assert not is_mapped(inode)
