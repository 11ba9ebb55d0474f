from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kvgate.errors import NoSuchBucket, NoSuchKey, ObjectChanged
from kvgate.store.retention import Pin, RetentionConfig
from tests.store.conftest import ALPHA, BETA, MiB, OpenStore


def other(present: Mapping[str, str]) -> Mapping[str, str]:
    return {**present, "x": "2"}


@pytest.mark.parametrize("nbytes", [0, 5, 3 * MiB + 1, 30 * MiB, 80 * MiB])
@pytest.mark.parametrize("ack", ["memory", "disk"])
async def test_only_the_attributes_change(open_test_store: OpenStore, tmp_path: Path, nbytes: int, ack: str) -> None:
    body = os.urandom(nbytes)
    everything = RetentionConfig(pinned_share=1)
    async with open_test_store(ack=ack, retention=everything) as opened:
        await opened.put("k", body, a="1")
        before = opened.store.stat("alpha", "bucket", "k")
        assert await opened.keep("k", pin=Pin.HARD) == ["done"]
        record = await opened.store.set_attributes(ALPHA, "bucket", "k", other)
        assert record == before._replace(attributes={"a": "1", "x": "2"})
        assert opened.store.stat("alpha", "bucket", "k") is record
        assert opened.store._index.get("alpha", "bucket", "k").pinned
        assert opened.store.stats(ALPHA).nbytes == nbytes
        assert await opened.get("k") == body
        await opened.store.flush()
        await opened.store._placement.copies.wait_for_background()
        assert opened.memory.arena.used_nbytes <= nbytes + 4096
    async with open_test_store() as opened:
        assert opened.places("k") == ["disk"]
        await opened.store.set_attributes(ALPHA, "bucket", "k", lambda present: {})
        assert await opened.get("k") == body
        assert opened.store.stat("alpha", "bucket", "k") == before._replace(attributes={})
    assert sum(1 for path in (tmp_path / "disk" / "objects").rglob("*") if path.is_file()) == 1


async def test_the_quota_is_not_asked_for_two(open_test_store: OpenStore) -> None:
    tight = replace(ALPHA, quota_nbytes=2 * MiB)
    async with open_test_store(tenants=(tight,)) as opened:
        await opened.put("k", bytes(2 * MiB), tight)
        await opened.store.set_attributes(tight, "bucket", "k", other)
        assert opened.store.stats(tight).nbytes == 2 * MiB


async def test_what_is_replaced_or_deleted_meanwhile_does_not_come_back(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        for change in ("replace", "delete"):
            await opened.put("k", os.urandom(8 * MiB), a="1")
            task = asyncio.create_task(opened.store.set_attributes(ALPHA, "bucket", "k", other))
            await asyncio.sleep(0)
            if change == "replace":
                await opened.put("k", b"new", b="2")
            else:
                await opened.store.delete("alpha", "bucket", "k")
            with pytest.raises(ObjectChanged):
                await task
            if change == "replace":
                assert await opened.get("k") == b"new"
                assert opened.store.stat("alpha", "bucket", "k").attributes == {"b": "2"}
            else:
                assert opened.keys() == []
        await opened.store.flush()
        await opened.store._placement.copies.wait_for_background()
        assert (opened.store.stats(ALPHA).nbytes, opened.memory.arena.used_nbytes) == (0, 0)


async def test_there_must_be_an_object(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"body")
        with pytest.raises(NoSuchKey):
            await opened.store.set_attributes(ALPHA, "bucket", "other", other)
        with pytest.raises(NoSuchKey):
            await opened.store.set_attributes(BETA, "bucket", "k", other)
        with pytest.raises(NoSuchBucket):
            await opened.store.set_attributes(ALPHA, "never", "k", other)
