from __future__ import annotations

import os

import pytest
from awscrt.checksums import crc64nvme

from kvgate.errors import CorruptCopy, NoSuchKey
from tests.store.conftest import ALPHA, MiB, Opened, OpenStore


async def append(opened: Opened, write, key: str, crc: int) -> None:
    with opened.store.open_read("alpha", "bucket", key) as read:
        await write.append(await read.load(0, read.record.nbytes), crc)


async def test_what_is_appended_is_held_against_the_digest_of_its_source(open_test_store: OpenStore) -> None:
    one, two = os.urandom(2 * MiB + 7), os.urandom(MiB)
    async with open_test_store() as opened:
        await opened.put("one", one)
        await opened.put("two", two)
        async with await opened.store.open_write(ALPHA, "bucket", "both", len(one + two)) as write:
            await append(opened, write, "one", crc64nvme(one))
            await append(opened, write, "two", crc64nvme(two))
            await write.commit({})
        assert await opened.get("both") == one + two
        async with await opened.store.open_write(ALPHA, "bucket", "changed", len(one + two)) as write:
            await append(opened, write, "one", crc64nvme(one))
            with pytest.raises(CorruptCopy):
                await append(opened, write, "two", crc64nvme(two[:-1] + b"?"))
        with pytest.raises(NoSuchKey):
            await opened.get("changed")
