"""Shared memory behind a descriptor, as another process sees it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest

from kvgate.memory.segment import Segment

NBYTES = 1 << 20


def test_another_process_maps_the_same_bytes() -> None:
    segment = Segment(7, NBYTES)
    segment.view[-5:] = b"there"
    script = f"import mmap; m = mmap.mmap({segment.fd}, {NBYTES}); assert m[-5:] == b'there'; m[:4] = b'back'"
    subprocess.run([sys.executable, "-c", script], pass_fds=[segment.fd], check=True)
    assert bytes(segment.view[:4]) == b"back"
    segment.close()


def test_size_cannot_be_changed_by_a_holder_of_the_descriptor() -> None:
    segment = Segment(0, NBYTES)
    for nbytes in (0, NBYTES // 2, NBYTES * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, nbytes)
    assert not os.get_inheritable(segment.fd)
    segment.close()


def test_close_is_idempotent_and_leaves_living_views_valid() -> None:
    before = len(os.listdir("/proc/self/fd"))
    segment = Segment(0, NBYTES)
    view = segment.view[4096:8192]
    segment.close()
    segment.close()
    view[:] = b"x" * 4096
    assert view == b"x" * 4096
    view.release()
    del segment
    assert len(os.listdir("/proc/self/fd")) == before


def test_discard_returns_the_memory_even_while_another_maps_it() -> None:
    segment = Segment(0, 5 * NBYTES)
    segment.view[:] = b"x" * segment.nbytes
    fd = os.dup(segment.fd)
    with mmap.mmap(fd, segment.nbytes) as other:
        segment.discard()
        assert os.fstat(fd).st_blocks == 0
        assert other[:] == bytes(5 * NBYTES)
    os.close(fd)
