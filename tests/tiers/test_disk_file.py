from __future__ import annotations

import struct
from array import array
from pathlib import Path
from typing import Any

import msgpack
import pytest
from awscrt import checksums

from kvgate.errors import CorruptCopy
from kvgate.tiers.base import Record
from kvgate.tiers.disk_file import read_footer
from kvgate.tiers.footer import MAGIC, encode_footer

RECORD = Record("tenant", "bucket", "key", 4, 7, 1_770_000_000_000, {"content-type": "text/plain"})
TAIL = struct.Struct("<IQ8s")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_footer_reads_back(tmp_path: Path) -> None:
    path = written(tmp_path / "file", b"body" + encode_footer(RECORD, array("Q", [9])))
    with path.open("rb") as file:
        assert read_footer(file.fileno()) == (RECORD, array("Q", [9]))


@pytest.mark.parametrize(
    "change",
    [
        {"nbytes": b"4"},
        {"nbytes": True},
        {"tenant": ["tenant"]},
        {"key": None},
        {"crc64nvme": -1},
        {"mtime_ms": 1.5},
        {"mtime_ms": 1 << 60},
        {"attributes": []},
        {"attributes": {"content-type": 1}},
        {"blocks": "x" * 8},
        {"blocks": b"x" * 9},
        {"block_nbytes": 0},
    ],
    ids=str,
)
def test_sound_footer_with_an_odd_field_is_a_corrupt_copy(tmp_path: Path, change: dict[str, Any]) -> None:
    """Its checksum holds, so whoever wrote it meant it; the gateway starts all the same."""
    fields = msgpack.unpackb(encode_footer(RECORD, array("Q", [9]))[: -TAIL.size])
    footer = msgpack.packb(fields | change)
    length = struct.pack("<I", len(footer))
    tail = TAIL.pack(len(footer), checksums.crc64nvme(footer + length), MAGIC)
    path = written(tmp_path / "file", b"body" + footer + tail)
    with path.open("rb") as file, pytest.raises(CorruptCopy):
        read_footer(file.fileno())
