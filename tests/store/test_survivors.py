"""What a start makes of many objects on disk."""

from __future__ import annotations

import gc
import hashlib
import time
import tracemalloc
from pathlib import Path

from kvgate.tiers.base import Record
from kvgate.tiers.disk_index import DiskIndex
from tests.store.conftest import OpenStore

OBJECTS = 40_000


def fill(folder: Path) -> list[str]:
    """The index that so many published chunks of a few lengths leave behind; their keys."""
    space = hashlib.sha256(b"space").hexdigest()
    keys = [f"kv/{space}/{hashlib.sha256(str(number).encode()).hexdigest()}" for number in range(OBJECTS)]
    folder.mkdir(parents=True)
    index = DiskIndex(folder / "index.sqlite3", durable=False)
    index.open()
    index.put_now(
        [
            (
                Record(
                    "alpha", "bucket", key, (3 + number % 5) << 20, 2**63 + number * 977, 1_700_000_000_000 + number
                ),
                1_000_000 + number,
            )
            for number, key in enumerate(keys)
        ]
    )
    index.close()
    return keys


async def test_an_object_on_disk_takes_at_most_600_bytes_of_memory(open_test_store: OpenStore, tmp_path: Path) -> None:
    keys = fill(tmp_path / "disk")
    async with open_test_store(disk_nbytes=1 << 50):
        pass  # what a process makes once
    tracemalloc.start()
    try:
        async with open_test_store(disk_nbytes=1 << 50) as opened:
            gc.collect()
            nbytes, _ = tracemalloc.get_traced_memory()
            record = opened.store.stat("alpha", "bucket", keys[7])
            assert (record.nbytes, record.crc64nvme) == (5 << 20, 2**63 + 7 * 977)
            assert opened.places(keys[7]) == ["disk"]
    finally:
        tracemalloc.stop()
    assert nbytes / OBJECTS <= 570, "the allocator rounds up by some 5 %"


async def test_a_full_collection_passes_over_what_a_start_found(open_test_store: OpenStore, tmp_path: Path) -> None:
    fill(tmp_path / "disk")
    async with open_test_store(disk_nbytes=1 << 50):
        began = time.thread_time()
        gc.collect()
        frozen_s = time.thread_time() - began
        gc.unfreeze()
        began = time.thread_time()
        gc.collect()
        assert frozen_s < (time.thread_time() - began) / 2
