from __future__ import annotations

import os
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import CorruptCopy
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.tiers.base import Name
from kvgate.tiers.peer_records import pack_record, packed_nbytes, unpack_record
from tests.contracts.tier import describe

RECORD, BLOCKS = describe("a/é", os.urandom(2 * BLOCK_NBYTES + 5))
NAME = Name("tenant", "bucket", "a/é")


def told(**changes: Any) -> dict[str, object]:
    members: dict[str, object] = msgpack.unpackb(msgpack.packb(pack_record(RECORD, BLOCKS))) | changes
    return {name: value for name, value in members.items() if value is not ...}


def test_what_is_told_is_what_is_understood() -> None:
    assert unpack_record(told(), NAME) == (RECORD, BLOCKS)
    assert len(msgpack.packb(told())) <= packed_nbytes(RECORD, BLOCKS)


@pytest.mark.parametrize("nbytes", [0, 1, BLOCK_NBYTES])
def test_any_length(nbytes: int) -> None:
    record, blocks = describe("k", bytes(nbytes))
    assert unpack_record(pack_record(record, blocks), Name(*record[:3])) == (record, blocks)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "another"},
        {"key": ...},
        {"nbytes": RECORD.nbytes - 1},
        {"nbytes": RECORD.nbytes + BLOCK_NBYTES},
        {"nbytes": -1},
        {"nbytes": True},
        {"nbytes": "5"},
        {"nbytes": 2.0},
        {"mtime_ms": -1},
        {"mtime_ms": 1 << 60},
        {"crc64nvme": bytes(8)},
        {"crc64nvme": b"short"},
        {"crc64nvme": 5},
        {"blocks": b""},
        {"blocks": bytes(24)},
        {"blocks": ...},
        {"attributes": None},
        {"attributes": {"content-type": "text/plaij", "x-amz-meta-a": "é"}},
        {"mtime_ms": RECORD.mtime_ms + 1},
        {"check": bytes(8)},
        {"check": ...},
        {"attributes": {"a": 1}},
        {"attributes": {"content-type": "a/b\r\nset-cookie: c"}},
        {"attributes": {"a\n": "b"}},
        {"attributes": {"a": "\ud800"}},
        {"attributes": [["a", "b"]]},
    ],
)
def test_what_does_not_agree_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptCopy):
        unpack_record(told(**changes), NAME)


@given(
    st.recursive(st.none() | st.integers() | st.binary() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_anything_else_is_refused(members: object) -> None:
    with pytest.raises(CorruptCopy):
        unpack_record(members, NAME)
