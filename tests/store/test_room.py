from __future__ import annotations

import os

import pytest

from tests.store.conftest import ALPHA, MiB, Opened, OpenStore, fill

MEMORY = 16 * MiB
SIZES = [MEMORY // 2, MEMORY - MiB, MEMORY - MiB + 1, MEMORY - 5, MEMORY, MEMORY + 1]


async def copy(opened: Opened, source: str, key: str) -> None:
    with opened.store.open_read("alpha", "bucket", source) as read:
        async with await opened.store.open_write(ALPHA, "bucket", key, read.record.nbytes) as write:
            await write.append(await read.load(0, read.record.nbytes))
            await write.commit({})


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("on_disk_only", [False, True])
async def test_what_nearly_fills_memory_can_be_copied(
    open_test_store: OpenStore, nbytes: int, on_disk_only: bool
) -> None:
    body = os.urandom(nbytes)
    async with open_test_store(memory_nbytes=MEMORY, window=4 * MiB) as opened:
        await opened.put("k", body)
        await opened.store.flush()
        if on_disk_only:
            await opened.put("other", bytes(MEMORY - MiB))
            await opened.store.flush()
            assert opened.places("k") == ["disk"]
        await copy(opened, "k", "copy")
        await opened.store.set_attributes(ALPHA, "bucket", "k", lambda present: {"a": "1"})
        assert await opened.get("copy") == await opened.get("k") == body


@pytest.mark.parametrize("nbytes", SIZES)
async def test_what_nearly_fills_memory_can_be_composed(open_test_store: OpenStore, nbytes: int) -> None:
    body = os.urandom(nbytes)
    async with open_test_store(memory_nbytes=MEMORY, window=4 * MiB, min_part=MiB) as opened:
        multipart = opened.store.multipart
        upload = await multipart.create(ALPHA, "bucket", "k", {})
        listed = []
        for number, at in enumerate(range(0, nbytes, 3 * MiB), 1):
            part = body[at : at + 3 * MiB]
            async with await multipart.open_part(ALPHA, upload, number, len(part)) as write:
                await fill(write, part)
                listed.append((number, (await write.commit({}, multipart.while_open(upload))).etag))
            await opened.store.flush()
        await multipart.complete(ALPHA, "bucket", "k", upload.id, listed, describe=lambda upload, parts: {})
        assert await opened.get("k") == body


async def test_what_nearly_fills_memory_lies_on_disk_only(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=MEMORY) as opened:
        for size, places in ((MEMORY - MiB, ["host", "disk"]), (MEMORY - MiB + 1, ["disk"])):
            for nbytes in (size, None):
                async with await opened.store.open_write(ALPHA, "bucket", "k", nbytes) as write:
                    await fill(write, bytes(size))
                    await write.commit({})
                await opened.store.flush()
                await opened.get("k")
                assert opened.places("k") == places


async def test_without_a_lower_tier_an_object_may_take_all_of_memory(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=MEMORY, disk_nbytes=None) as opened:
        await opened.put("k", bytes(MEMORY))
        assert opened.places("k") == ["host"]
