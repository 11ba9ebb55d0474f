from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvgate.config import Size
from kvgate.errors import CorruptCopy, TierError, TierFull
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.tiers.base import Tier
from kvgate.tiers.disk import DiskConfig, DiskTier
from tests.contracts.tier import TierContract, describe, filled


class TestDiskTier(TierContract):
    survives = True
    capacity_nbytes = 64 << 20

    @pytest.fixture
    async def tier(self, tmp_path: Path) -> AsyncIterator[Tier]:
        tier = DiskTier(self.config(tmp_path))
        await tier.start(lambda _: None)
        yield tier
        await tier.close()

    def config(self, folder: Path, *, fsync: bool = False) -> DiskConfig:
        return DiskConfig(path=folder / "disk", capacity=Size(self.capacity_nbytes), fsync=fsync)

    def reopen(self, tier: DiskTier) -> DiskTier:
        os.close(tier._lock_fd)  # as the death of the process would
        tier._lock_fd = -1
        return DiskTier(tier._config)

    async def test_files_of_unfinished_writes_are_removed(self, tier: DiskTier, arena: Arena) -> None:
        kept = await self.put(tier, arena, "kept", b"kept")
        _, orphan = await self.put(tier, arena, "orphan", b"orphan", publish=False)
        started = await tier.begin("tenant", 100)
        with filled(arena, bytes(100)) as lease:
            await started.write(lease, 0, 100)
        again = self.reopen(tier)
        found = await self.found(again)
        await again._sweep
        assert found.keys() == {"kept"}
        assert not again.path(orphan).exists()
        assert list((again.folder / "tmp").iterdir()) == []
        assert again.usage().nbytes == 8192
        assert await self.get(again, arena, *kept) == b"kept"
        await again.close()

    async def test_new_files_never_take_the_number_of_an_orphan(self, tier: DiskTier, arena: Arena) -> None:
        await self.put(tier, arena, "orphan", b"orphan", publish=False)
        again = self.reopen(tier)
        await self.found(again)
        new = await self.put(again, arena, "new", b"new")
        await again._sweep
        assert await self.get(again, arena, *new) == b"new"
        await again.close()

    @pytest.mark.parametrize("where", ["body", "last block", "footer", "trailer"])
    async def test_flipped_bit_in_a_file_is_noticed(self, tier: DiskTier, arena: Arena, where: str) -> None:
        body = os.urandom(2 * BLOCK_NBYTES + 1000)
        record, copy = await self.put(tier, arena, "k", body)
        size = tier.path(copy).stat().st_size
        offset = {"body": 12345, "last block": len(body) - 1, "footer": len(body) + 40, "trailer": size - 9}[where]
        flip(tier.path(copy), offset)
        with pytest.raises(CorruptCopy):
            await self.get(tier, arena, record, copy)

    async def test_flipped_bit_leaves_other_blocks_readable(self, tier: DiskTier, arena: Arena) -> None:
        body = os.urandom(2 * BLOCK_NBYTES)
        record, copy = await self.put(tier, arena, "k", body)
        flip(tier.path(copy), BLOCK_NBYTES + 1)
        assert await self.get(tier, arena, record, copy, 0, BLOCK_NBYTES) == body[:BLOCK_NBYTES]

    async def test_truncated_and_swapped_files_are_noticed(self, tier: DiskTier, arena: Arena) -> None:
        one = await self.put(tier, arena, "one", bytes(5000))
        two = await self.put(tier, arena, "two", bytes(5000))
        os.replace(tier.path(one[1]), tier.path(two[1]))
        with pytest.raises(CorruptCopy, match="another object"):
            await self.get(tier, arena, *two)
        os.truncate(tier.path(two[1]), 4000)
        with pytest.raises(CorruptCopy):
            await self.get(tier, arena, *two)

    @pytest.mark.parametrize("damage", ["missing", "garbage", "truncated"])
    async def test_unusable_index_is_rebuilt_from_the_files(
        self, tier: DiskTier, arena: Arena, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        bodies = {f"k{number}": os.urandom(number * 700) for number in range(200)}
        for key, body in bodies.items():
            await self.put(tier, arena, key, b"older")
            await self.put(tier, arena, key, body)
        await tier.close()
        index = tier.folder / "index.sqlite3"
        if damage == "missing":
            index.unlink()
        elif damage == "garbage":
            index.write_bytes(os.urandom(20_000))
        else:
            os.truncate(index, index.stat().st_size // 2)
        again = DiskTier(tier._config)
        found = await self.found(again)
        assert found.keys() == bodies.keys()
        for key, (record, copy) in found.items():
            assert await self.get(again, arena, record, copy) == bodies[key]
        await again.close()

    async def test_flipped_bits_in_the_index_never_give_wrong_bytes(self, tier: DiskTier, arena: Arena) -> None:
        bodies = {f"key-{number:04}": os.urandom(500) for number in range(100)}
        for key, body in bodies.items():
            await self.put(tier, arena, key, body)
        await tier.close()
        index = tier.folder / "index.sqlite3"
        intact, choose = index.read_bytes(), random.Random(7)
        for _ in range(40):
            index.write_bytes(intact)
            for _ in range(8):
                flip(index, choose.randrange(len(intact)))
            again = DiskTier(tier._config)
            for key, (record, copy) in (await self.found(again)).items():
                try:
                    assert await self.get(again, arena, record, copy) == bodies[key]
                except TierError:
                    continue
            await again.close()

    async def test_cancelled_finish_leaves_no_file(self, tier: DiskTier, arena: Arena) -> None:
        """Whatever the thread has reached when its caller is cancelled: not begun, or the file already in its place."""
        used, (record, blocks) = tier.usage(), describe("k", bytes(3000))
        for moment_s in [0, 0, 0, 0.0001, 0.0003, 0.001, 0.003] * 8:
            upload = await tier.begin("tenant", record.nbytes)
            with filled(arena, bytes(3000)) as lease:
                await upload.write(lease, 0, record.nbytes)
            finish = asyncio.create_task(upload.finish(record, blocks))
            await asyncio.sleep(moment_s)
            if finish.done():
                await tier.delete(record, finish.result())
                continue
            finish.cancel()
            await asyncio.gather(finish, return_exceptions=True)
            await upload.abort()
        assert tier.usage() == used
        assert not [path for path in tier.folder.rglob("*") if path.is_file() and path.parent.name not in ("disk",)]

    async def test_work_after_an_abort_or_a_close_opens_nothing(self, tier: DiskTier, arena: Arena) -> None:
        """A thread that came too late for its cancelled caller."""
        record, copy = await self.put(tier, arena, "k", b"body")
        upload, reader = await tier.begin("tenant", 4), tier.open(record, copy)
        await upload.abort()
        await reader.close()
        with filled(arena, b"body") as lease:
            with pytest.raises(TierError, match="aborted"):
                await upload.write(lease, 0, 4)
            with pytest.raises(TierError, match="closed"):
                await reader.read_into(0, lease, 4)
        assert not list((tier.folder / "tmp").iterdir())

    async def test_one_gateway_at_a_time_uses_a_folder(self, tier: DiskTier) -> None:
        second = DiskTier(tier._config)
        with pytest.raises(TierError, match="in use by another gateway"):
            await second.start(lambda _: None)
        await second.close()

    async def test_fsync_tier_keeps_the_contract(self, tmp_path: Path, arena: Arena) -> None:
        tier = DiskTier(self.config(tmp_path / "durable", fsync=True))
        await tier.start(lambda _: None)
        item = await self.put(tier, arena, "k", b"body")
        assert await self.get(tier, arena, *item) == b"body"
        await tier.close()

    async def test_full_disk_leaves_nothing_behind(self, tmp_path: Path, arena: Arena) -> None:
        """A real full disk: writes to a file system of 2 MiB, smaller than the tier believes it to be."""
        mount = tmp_path / "small"
        mount.mkdir()
        if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=2m none {mount} 2>/dev/null") != 0:
            pytest.skip("needs the right to mount a small file system")
        try:
            tier = DiskTier(self.config(mount))
            await tier.start(lambda _: None)
            used = tier.usage()
            record, _ = describe("k", bytes(8 << 20))
            upload = await tier.begin("tenant", record.nbytes)
            with filled(arena, bytes(record.nbytes)) as lease, pytest.raises(TierFull) as raised:
                await upload.write(lease, 0, record.nbytes)
            await upload.abort()
            assert isinstance(raised.value.__cause__, OSError)
            assert raised.value.__cause__.errno == errno.ENOSPC
            assert tier.usage() == used
            assert list((tier.folder / "tmp").iterdir()) == []
            small = await self.put(tier, arena, "small", b"fits")
            assert await self.get(tier, arena, *small) == b"fits"
            await tier.close()
        finally:
            os.system(f"umount {mount}")


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << offset % 8)]))
