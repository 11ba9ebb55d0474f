from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest

from kvgate.config import Seconds, Size
from kvgate.errors import CorruptCopy, NotAdmitted, NotInTier, TierError, TierFull
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.tiers.base import HERE, Name, Record, SharedTier
from kvgate.tiers.fs import FsConfig, FsTier
from tests.contracts.shared_tier import SharedTierContract, name_of
from tests.contracts.tier import describe, filled


def config(folder: Path, **options: object) -> FsConfig:
    return FsConfig(path=folder / "shared", **({"keep_free": Size(0)} | options))  # type: ignore[arg-type]


async def started(configuration: FsConfig) -> FsTier:
    tier = FsTier(configuration)
    await tier.start(lambda _: None)
    return tier


class TestFsTier(SharedTierContract):
    capacity_nbytes = None
    options: ClassVar[dict[str, object]] = {}

    @pytest.fixture
    async def tier(self, tmp_path: Path) -> AsyncIterator[FsTier]:
        tier = await started(config(tmp_path, **self.options))
        yield tier
        await tier.close()

    @pytest.fixture
    async def other(self, tier: FsTier, tmp_path: Path) -> AsyncIterator[FsTier]:
        other = await started(config(tmp_path, **self.options))
        yield other
        await other.close()

    # --- what is under a name that is no object ---------------------------------------------------------------------

    @pytest.mark.parametrize("damage", ["cut", "flipped footer", "other object", "garbage", "claimed by the dead"])
    async def test_what_is_no_object_is_a_miss_and_makes_way_for_the_next_writer(
        self, tier: FsTier, other: FsTier, arena: Arena, tmp_path: Path, damage: str
    ) -> None:
        body = os.urandom(BLOCK_NBYTES + 5)
        record, _ = await self.put(tier, arena, "k", body)
        path = tier.path(name_of(record))
        if damage == "cut":
            os.truncate(path, path.stat().st_size - 1)
        elif damage == "flipped footer":
            content = bytearray(path.read_bytes())
            content[len(body) + 20] ^= 1
            path.write_bytes(content)
        elif damage == "other object":
            stranger, _ = await self.put(tier, arena, "stranger", b"stranger")
            path.write_bytes(tier.path(name_of(stranger)).read_bytes())
        else:
            path.write_bytes(b"garbage" if damage == "garbage" else b"")
        assert await other.lookup([name_of(record)]) == [None]
        with pytest.raises((CorruptCopy, NotInTier)):
            await self.get(other, arena, record, HERE)
        again, _ = await self.put(other, arena, "k", body)
        assert await tier.lookup([name_of(record)]) == [again]
        assert await self.get(tier, arena, record, HERE) == body
        assert left_over(tmp_path) == []

    async def test_flipped_bit_in_a_body_is_noticed_and_the_copy_can_be_deleted(
        self, tier: FsTier, other: FsTier, arena: Arena
    ) -> None:
        body = os.urandom(2 * BLOCK_NBYTES)
        record, _ = await self.put(tier, arena, "k", body)
        path = tier.path(name_of(record))
        with path.open("r+b") as file:
            file.seek(BLOCK_NBYTES + 3)
            flipped = bytes([body[BLOCK_NBYTES + 3] ^ 4])
            file.write(flipped)
        assert await self.get(other, arena, record, HERE, 0, BLOCK_NBYTES) == body[:BLOCK_NBYTES]
        with pytest.raises(CorruptCopy):
            await self.get(other, arena, record, HERE)
        await other.delete(record, HERE)
        assert await tier.lookup([name_of(record)]) == [None]

    async def test_damaged_footer_can_be_deleted(self, tier: FsTier, arena: Arena) -> None:
        record, _ = await self.put(tier, arena, "k", b"body")
        path = tier.path(name_of(record))
        os.truncate(path, 10)
        await tier.delete(record, HERE)
        assert not path.exists()

    async def test_the_same_body_with_other_attributes_keeps_those_of_the_first(
        self, tier: FsTier, other: FsTier, arena: Arena
    ) -> None:
        first, _ = await self.put(tier, arena, "k", b"body")
        record, blocks = describe("k", b"body")
        record = record._replace(mtime_ms=record.mtime_ms + 5, attributes={"content-type": "text/other"})
        upload = await other.begin(record.tenant, 4)
        with filled(arena, b"body") as lease:
            await upload.write(lease, 0, 4)
        await upload.finish(record, blocks)
        assert await other.lookup([name_of(record)]) == [first]
        assert await self.get(other, arena, record, HERE) == b"body"

    # --- folders and files that come and go --------------------------------------------------------------------------

    async def test_folders_may_be_removed_at_any_time(self, tier: FsTier, arena: Arena, tmp_path: Path) -> None:
        record, _ = await self.put(tier, arena, "a/b/c", b"body")
        path = tier.path(name_of(record))
        path.unlink()
        os.removedirs(path.parent)
        assert await tier.lookup([name_of(record)]) == [None]
        await tier.delete(record, HERE)
        await self.put(tier, arena, "a/b/c", b"again")

    async def test_key_and_keys_below_it_lie_side_by_side(self, tier: FsTier, arena: Arena) -> None:
        keys = ["a", "a/b", "a/b/c", "a//b", "/a", "a/", "x" * 1024, "é" * 512, "/" * 1024, "a/" * 512]
        written = [(await self.put(tier, arena, key, key.encode()))[0] for key in keys]
        assert await tier.lookup([name_of(record) for record in written]) == written

    async def test_old_left_overs_are_removed_and_new_ones_are_not(self, tier: FsTier, tmp_path: Path) -> None:
        left = tmp_path / "shared" / "tmp"
        (left / "old").write_bytes(b"x" * 100)
        (left / "new").write_bytes(b"x" * 100)
        os.utime(left / "old", (time.time() - 3700, time.time() - 3700))
        again = await started(config(tmp_path))
        async with asyncio.timeout(30):
            while (left / "old").exists():
                await asyncio.sleep(0.01)
        assert left_over(tmp_path) == ["new"]
        await again.close()

    async def test_left_overs_are_looked_for_again_and_again(self, tmp_path: Path) -> None:
        tier = await started(config(tmp_path, temporary_age=Seconds(1.0)))
        (tmp_path / "shared" / "tmp" / "dead").write_bytes(b"x")
        async with asyncio.timeout(30):
            while left_over(tmp_path):
                await asyncio.sleep(0.05)
        await tier.close()

    async def test_upload_whose_file_was_removed_fails(self, tier: FsTier, arena: Arena, tmp_path: Path) -> None:
        record, blocks = describe("k", b"body")
        upload = await tier.begin(record.tenant, 4)
        with filled(arena, b"body") as lease:
            await upload.write(lease, 0, 4)
        for name in left_over(tmp_path):
            (tmp_path / "shared" / "tmp" / name).unlink()
        with pytest.raises(TierError):
            await upload.finish(record, blocks)
        await upload.abort()
        assert await tier.lookup([name_of(record)]) == [None]
        assert tier.usage().nbytes == 0

    async def test_file_handle_that_went_stale_is_a_miss(
        self, tier: FsTier, arena: Arena, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As NFS answers when another machine has removed an open file."""
        record, _ = await self.put(tier, arena, "k", bytes(2 * BLOCK_NBYTES))
        reader = tier.open(record, HERE)
        with arena.reserve(record.tenant, BLOCK_NBYTES) as lease:
            await reader.read_into(0, lease, BLOCK_NBYTES)
            with monkeypatch.context() as patch:
                patch.setattr(os, "preadv", stale)
                with pytest.raises(NotInTier):
                    await reader.read_into(BLOCK_NBYTES, lease, BLOCK_NBYTES)
        await reader.close()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", stale)
            assert await tier.lookup([name_of(record)]) == [None]
        assert await tier.lookup([name_of(record)]) == [record]

    async def test_folder_that_answers_with_errors_is_no_miss(
        self, tier: FsTier, arena: Arena, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record, _ = await self.put(tier, arena, "k", b"body")

        def broken(*_: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", broken)
            with pytest.raises(TierError) as raised:
                await tier.lookup([name_of(record)])
        assert raised.value.transient

    # --- room --------------------------------------------------------------------------------------------------------

    async def test_what_is_to_be_left_free_is_left_free(self, tmp_path: Path, arena: Arena) -> None:
        tier = await started(config(tmp_path, keep_free=Size(1 << 60)))
        assert tier.room("tenant") == 0
        for nbytes in (1, None):
            with pytest.raises(TierFull):
                await tier.begin("tenant", nbytes)
        await tier.close()

    async def test_adopted_copy_does_not_count_twice(self, tier: FsTier, other: FsTier, arena: Arena) -> None:
        record, _ = await self.put(tier, arena, "k", b"body")
        used = tier.usage().nbytes
        await self.put(tier, arena, "k", b"body")
        await self.put(other, arena, "k", b"body")
        assert (tier.usage().nbytes, other.usage().nbytes) == (used, 0)
        await other.delete(record, HERE)
        assert other.usage().nbytes == 0


class TestFsTierWithFsync(TestFsTier):
    options: ClassVar[dict[str, object]] = {"fsync": True}


class TestFsTierWithoutHardLinks(TestFsTier):
    @pytest.fixture(autouse=True)
    def no_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, "link", refuse)


async def test_answer_that_was_lost_is_no_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where a link that was made is asked for again, and then the name is taken: by ourselves."""
    tier, arena = await started(config(tmp_path)), Arena(8 << 20)
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    record, blocks = describe("k", b"body")
    upload = await tier.begin("tenant", 4)
    with filled(arena, b"body") as lease:
        await upload.write(lease, 0, 4)
    assert await upload.finish(record, blocks) is HERE
    assert await tier.lookup([name_of(record)]) == [record]
    assert tier.usage().nbytes == 8192
    assert left_over(tmp_path) == []
    await tier.close()
    arena.close()


async def test_another_version_that_came_in_between_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a file and its removal, another gateway has deleted it and written a new one."""
    tier, arena = await started(config(tmp_path)), Arena(8 << 20)
    old, _ = await put(tier, arena, "k", b"old")
    path, rename = tier.path(name_of(old)), os.rename

    def replaced_first(source: Path, target: Path) -> None:
        monkeypatch.undo()
        kept = path.read_bytes()
        path.unlink()
        path.write_bytes(kept[:-1] + b"?")
        rename(source, target)

    monkeypatch.setattr(os, "rename", replaced_first)
    await tier.delete(old, HERE)
    assert path.read_bytes().endswith(b"?")
    assert left_over(tmp_path) == []
    await tier.close()
    arena.close()


async def test_processes_on_one_folder_never_read_a_wrong_byte(tmp_path: Path) -> None:
    """Several gateways write, read and delete the same keys at random: each read is right, or a miss."""
    tier = await started(config(tmp_path))
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, str(tmp_path), str(seed)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for seed in range(3)
    ]
    ended = await asyncio.gather(*[child.communicate() for child in children])
    assert [child.returncode for child in children] == [0, 0, 0], [error.decode() for _, error in ended]
    counts = [dict(pair.split("=") for pair in out.decode().split()) for out, _ in ended]
    for event in ("written", "adopted_or_refused", "read", "missed", "deleted"):
        assert sum(int(count[event]) for count in counts) > 20, counts
    assert left_over(tmp_path) == []
    await tier.close()


async def put(tier: SharedTier, arena: Arena, key: str, body: bytes) -> tuple[Record, object]:
    record, blocks = describe(key, body)
    upload = await tier.begin(record.tenant, len(body))
    with filled(arena, body) as lease:
        await upload.write(lease, 0, len(body))
    try:
        return record, await upload.finish(record, blocks)
    except BaseException:
        await upload.abort()
        raise


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "shared" / "tmp").iterdir())


def stale(*_: object) -> int:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


# --- one gateway of several; a process of its own -------------------------------------------------------------------


async def torture(folder: Path, seed: int, rounds: int = 400) -> dict[str, int]:
    """At random: write one of the bodies that a key may have, read what is there, delete what is there."""
    import random

    chance = random.Random(seed)
    tier, arena = await started(config(folder)), Arena(16 << 20)
    bodies = [random.Random(number).randbytes(BLOCK_NBYTES // 2 * number + 7) for number in range(4)]
    count = dict.fromkeys(("written", "adopted_or_refused", "read", "missed", "deleted"), 0)
    for _ in range(rounds):
        key = f"kv/{chance.randrange(4)}"
        (found,) = await tier.lookup([Name("tenant", "bucket", key)])
        match chance.randrange(3):
            case 0:
                before = tier.usage().nbytes
                try:
                    await put(tier, arena, key, chance.choice(bodies))
                except NotAdmitted:
                    count["adopted_or_refused"] += 1
                else:
                    count["written" if tier.usage().nbytes > before else "adopted_or_refused"] += 1
            case 1 if found is not None:
                reader = tier.open(found, HERE)
                with arena.reserve("tenant", found.nbytes) as lease:
                    try:
                        await reader.read_into(0, lease, found.nbytes)
                        assert b"".join(lease.views) in bodies
                        count["read"] += 1
                    except NotInTier:
                        count["missed"] += 1
                await reader.close()
            case 2 if found is not None:
                await tier.delete(found, HERE)
                count["deleted"] += 1
            case _:
                count["missed"] += 1
    await tier.close()
    arena.close()
    return count


if __name__ == "__main__":
    print(*[f"{name}={value}" for name, value in asyncio.run(torture(Path(sys.argv[1]), int(sys.argv[2]))).items()])
