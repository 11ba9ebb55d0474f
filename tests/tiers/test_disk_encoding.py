"""Encoded copies in the disk tier: whoever reads them sees no difference, and room is counted as it is taken."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.codec.base import Codec
from kvgate.codec.installed import codec_named, installed_names
from kvgate.config import Size
from kvgate.errors import CorruptCopy, NotInTier, TierError, TierFull
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES, BlockDigest
from kvgate.tiers.base import Copy, Encodes, Record
from kvgate.tiers.disk import DiskConfig, DiskTier
from kvgate.tiers.disk_file import describe_file
from kvgate.tiers.disk_index import DiskIndex
from kvgate.tiers.disk_streams import footprint
from tests.contracts.tier import content, describe, filled

ALL = [codec_named(name) for name in ("zstd", "zstd-split")]
CAPACITY = 64 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 << 20)
    yield arena
    assert arena.lease_count == 0
    arena.close()


@pytest.fixture
async def tier(tmp_path: Path) -> AsyncIterator[DiskTier]:
    tier = await started(tmp_path)
    yield tier
    await tier.close()


async def started(folder: Path, found: dict[str, tuple[Record, Copy]] | None = None, **options: Any) -> DiskTier:
    options = {"capacity": Size(CAPACITY)} | options
    tier = DiskTier(DiskConfig(path=folder / "disk", **options))
    kept = {} if found is None else found
    await tier.start(lambda batch: kept.update({record.key: (record, copy) for record, copy in batch}))
    return tier


async def put(tier: DiskTier, arena: Arena, key: str, body: bytes) -> tuple[Record, Copy]:
    record, blocks = describe(key, body)
    upload = await tier.begin(record.tenant, len(body))
    with filled(arena, body) as lease:
        await upload.write(lease, 0, len(body))
    copy = await upload.finish(record, blocks)
    await tier.publish(record, copy)
    return record, copy


async def recode(tier: DiskTier, record: Record, copy: Copy, codecs: Sequence[Codec]) -> Copy:
    """As the store does it."""
    new = await tier.recode(record, copy, codecs)
    assert new != copy
    await tier.publish(record, new)
    await tier.delete(record, copy)
    return new


async def get(
    tier: DiskTier, arena: Arena, record: Record, copy: Copy, start: int = 0, stop: int | None = None
) -> bytes:
    stop = record.nbytes if stop is None else stop
    reader = tier.open(record, copy)
    try:
        with arena.reserve(record.tenant, stop - start) as lease:
            blocks = await reader.read_into(start, lease, stop - start)
            digest = BlockDigest()
            digest.update(memoryview(content(lease)))
            assert list(blocks) == list(digest.blocks)
            return content(lease)
    finally:
        await reader.close()


def counted(tier: DiskTier) -> int:
    """The room that the files of a tier take, by what their footers say."""
    nbytes = 0
    for path in (tier.folder / "objects").glob("*/*"):
        with path.open("rb") as file:
            record, _, encoding = describe_file(file.fileno())
            assert path.stat().st_size <= footprint(record.nbytes if encoding is None else encoding.stored_nbytes)
            nbytes += footprint(record.nbytes if encoding is None else encoding.stored_nbytes)
    return nbytes


def mixed(nbytes: int, seed: int = 7) -> bytes:
    """Blocks that get smaller, and among them some that do not."""
    generator = random.Random(seed)
    body = bytearray()
    while len(body) < nbytes:
        body += generator.choice([generator.randbytes(2000), b"words and words " * 300, bytes(50_000)])
    return bytes(body[:nbytes])


def flip(path: Path, at: int, bits: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


def test_the_disk_tier_encodes(tmp_path: Path) -> None:
    assert isinstance(DiskTier(DiskConfig(path=tmp_path)), Encodes)


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
@pytest.mark.parametrize("nbytes", [5000, BLOCK_NBYTES - 1, BLOCK_NBYTES, BLOCK_NBYTES + 1, 6 * BLOCK_NBYTES + 17])
async def test_encoded_and_decoded_again_reads_the_same(
    tier: DiskTier, arena: Arena, codec: Codec, nbytes: int
) -> None:
    body = mixed(nbytes - 1) + b"!"
    record, copy = await put(tier, arena, "k", bytes(nbytes // 2) + body[nbytes // 2 :])
    body = bytes(nbytes // 2) + body[nbytes // 2 :]
    before = tier.usage().nbytes
    encoded = await recode(tier, record, copy, [codec])
    assert await get(tier, arena, record, encoded) == body
    assert list(await tier.blocks(record, encoded)) == list(describe("k", body)[1])
    assert tier.stored_nbytes(record, encoded) < nbytes
    assert counted(tier) == tier.usage().nbytes < before
    assert await tier.recode(record, encoded, [codec]) is encoded
    plain = await recode(tier, record, encoded, ())
    assert await get(tier, arena, record, plain) == body
    assert counted(tier) == tier.usage().nbytes == before
    assert tier.path(plain).read_bytes()[:nbytes] == body
    await tier.delete(record, plain)
    assert tier.usage().nbytes == 0


@given(
    pieces=st.lists(st.tuples(st.sampled_from(["noise", "zeros", "words"]), st.integers(1, 700_000)), max_size=6),
    names=st.lists(st.sampled_from(installed_names()), min_size=1, max_size=2, unique=True),
)
@settings(deadline=None, max_examples=25)
def test_any_content_comes_back(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, int]], names: list[str]
) -> None:
    generator = random.Random(len(pieces))
    make = {"noise": generator.randbytes, "zeros": bytes, "words": lambda nbytes: (b"word " * nbytes)[:nbytes]}
    body = b"".join([make[kind](nbytes) for kind, nbytes in pieces])

    async def check() -> None:
        tier, arena = await started(tmp_path_factory.mktemp("tier")), Arena(64 << 20)
        record, copy = await put(tier, arena, "k", body)
        new = await tier.recode(record, copy, [codec_named(name) for name in names])
        assert await get(tier, arena, record, new) == body
        assert tier.stored_nbytes(record, new) <= len(body)
        assert counted(tier) == tier.usage().nbytes
        await tier.close()
        arena.close()

    asyncio.run(check())


async def test_any_run_of_blocks_is_read_alone(tier: DiskTier, arena: Arena) -> None:
    body = mixed(4 * BLOCK_NBYTES + 100)
    record, copy = await put(tier, arena, "k", body)
    encoded = await recode(tier, record, copy, ALL)
    path = tier.path(encoded)
    with path.open("rb") as file:
        encoding = describe_file(file.fileno()).encoding
    assert encoding is not None
    flip(path, encoding.offsets[2] + 30)  # what is not asked for is not even looked at
    for first, last in [(0, 2), (1, 2), (3, 5), (4, 5)]:
        start, stop = first * BLOCK_NBYTES, min(last * BLOCK_NBYTES, len(body))
        assert await get(tier, arena, record, encoded, start, stop) == body[start:stop]
    with pytest.raises(CorruptCopy):
        await get(tier, arena, record, encoded, 2 * BLOCK_NBYTES, 3 * BLOCK_NBYTES)


async def test_of_several_codecs_the_better_one_is_used(tier: DiskTier, arena: Arena) -> None:
    generator = random.Random(3)
    floats = b"".join(bytes([generator.randrange(256), generator.choice([60, 61, 62, 188])]) for _ in range(100_000))
    for key, body, expected in (("floats", floats, "zstd-split"), ("words", b"words and " * 20_000, "zstd")):
        record, copy = await put(tier, arena, key, body)
        with tier.path(await recode(tier, record, copy, ALL)).open("rb") as file:
            encoding = describe_file(file.fileno()).encoding
        assert encoding is not None
        assert encoding.codec == expected


@pytest.mark.parametrize("body", [b"", b"x" * 4000, os.urandom(1 << 20)], ids=["empty", "small", "noise"])
async def test_what_would_take_hardly_less_room_stays(tier: DiskTier, arena: Arena, body: bytes) -> None:
    record, copy = await put(tier, arena, "k", body)
    used = tier.usage()
    assert await tier.recode(record, copy, ALL) is copy
    assert tier.usage() == used
    assert len(list(tier.folder.glob("objects/*/*"))) == 1
    assert list(tier.folder.glob("tmp/*")) == []


async def test_a_bit_flipped_anywhere_never_gives_a_wrong_byte(tier: DiskTier, arena: Arena) -> None:
    body = os.urandom(150) + b"words and words " * 700
    for codec in ALL:
        record, copy = await put(tier, arena, codec.name, body)
        path = tier.path(await recode(tier, record, copy, [codec]))
        whole, file, noticed = path.read_bytes(), int(path.name, 16), 0
        positions = [at for at in range(len(whole)) if at < 300 or at % 7 == 0 or at > len(whole) - 400]
        for at in positions:
            flip(path, at, 1 << at % 8)
            try:
                assert await get(tier, arena, record, file) == body
            except CorruptCopy:
                noticed += 1
            path.write_bytes(whole)
        assert noticed > len(positions) - 10  # a frame has a few bits that mean nothing
        assert await get(tier, arena, record, file) == body


async def test_a_bad_copy_is_not_made_anew(tier: DiskTier, arena: Arena) -> None:
    record, copy = await put(tier, arena, "k", bytes(3 * BLOCK_NBYTES))
    flip(tier.path(copy), 2 * BLOCK_NBYTES + 5)
    used = tier.usage()
    with pytest.raises(CorruptCopy):
        await tier.recode(record, copy, ALL)
    assert tier.usage() == used
    assert list(tier.folder.glob("tmp/*")) == []
    await tier.delete(record, copy)
    with pytest.raises(NotInTier):
        await tier.recode(record, copy, ALL)
    assert tier.usage().nbytes == 0


async def test_room_for_both_is_needed_meanwhile(tmp_path: Path, arena: Arena) -> None:
    tier = await started(tmp_path, capacity=Size(3 << 20))
    record, copy = await put(tier, arena, "k", bytes(2 << 20))
    used = tier.usage()
    with pytest.raises(TierFull):
        await tier.recode(record, copy, ALL)
    assert tier.usage() == used
    await tier.close()


@pytest.mark.parametrize("moment_s", [0, 0.0002, 0.001, 0.003, 0.01])
async def test_a_cancelled_one_leaves_nothing(tier: DiskTier, arena: Arena, moment_s: float) -> None:
    record, copy = await put(tier, arena, "k", mixed(6 * BLOCK_NBYTES))
    used = tier.usage()
    task = asyncio.create_task(tier.recode(record, copy, ALL))
    await asyncio.sleep(moment_s)
    task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    if isinstance(outcome, int):
        await tier.delete(record, outcome)
    assert tier.usage() == used
    assert [int(path.name, 16) for path in tier.folder.glob("objects/*/*")] == [copy]
    assert list(tier.folder.glob("tmp/*")) == []


async def test_a_reader_that_was_open_goes_on_in_the_old_file(tier: DiskTier, arena: Arena) -> None:
    body = mixed(4 * BLOCK_NBYTES)
    record, copy = await put(tier, arena, "k", body)
    reader = tier.open(record, copy)
    with arena.reserve("tenant", BLOCK_NBYTES) as lease:
        await reader.read_into(0, lease, BLOCK_NBYTES)
        encoded = await recode(tier, record, copy, ALL)
        await reader.read_into(3 * BLOCK_NBYTES, lease, BLOCK_NBYTES)
        assert content(lease) == body[3 * BLOCK_NBYTES :]
    await reader.close()
    assert await get(tier, arena, record, encoded) == body


@pytest.mark.parametrize("damage", ["none", "missing index", "old and new"])
async def test_a_restart_keeps_what_copies_take(tmp_path: Path, arena: Arena, damage: str) -> None:
    tier = await started(tmp_path)
    bodies = {f"k{number}": mixed(200_000 + number * 70_000, number) for number in range(8)}
    for number, (key, body) in enumerate(bodies.items()):
        record, copy = await put(tier, arena, key, body)
        if number % 2:
            await recode(tier, record, copy, ALL)
    used = tier.usage()
    if damage == "old and new":  # as a kill leaves it before the new one is named
        await tier.recode(record, await recode(tier, record, int(newest(tier).name, 16), ()), ALL)
    await tier.close()
    if damage == "missing index":
        (tier.folder / "index.sqlite3").unlink()
    found: dict[str, tuple[Record, Copy]] = {}
    again = await started(tmp_path, found)
    await again._sweep
    assert found.keys() == bodies.keys()
    for key, (record, copy) in found.items():
        assert await get(again, arena, record, copy) == bodies[key]
    assert again.usage().nbytes == counted(again)
    assert damage == "old and new" or again.usage() == used
    await again.close()


def newest(tier: DiskTier) -> Path:
    return max(tier.folder.glob("objects/*/*"), key=lambda path: int(path.name, 16))


async def test_a_bad_encoded_copy_is_set_aside_as_it_is(tier: DiskTier, arena: Arena) -> None:
    record, copy = await put(tier, arena, "k", mixed(100_000))
    encoded = await recode(tier, record, copy, ALL)
    flip(tier.path(encoded), 50)
    kept = tier.path(encoded).read_bytes()
    reader = tier.inspect(record, encoded)
    with arena.reserve("tenant", record.nbytes) as lease, pytest.raises(CorruptCopy):
        await reader.read_into(0, lease, record.nbytes)
    await reader.close()
    await tier.set_aside(record, encoded)
    assert tier.usage().nbytes == 0
    assert [path.read_bytes() for path in (tier.folder / "quarantine").iterdir()] == [kept]


async def test_a_codec_that_is_not_here_is_no_corrupt_copy(
    tier: DiskTier, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere:
        name = "elsewhere"
        encode, decode = ALL[0].encode, ALL[0].decode

    record, copy = await put(tier, arena, "k", bytes(100_000))
    encoded = await recode(tier, record, copy, [Elsewhere()])
    with pytest.raises(TierError, match="elsewhere") as caught:
        await get(tier, arena, record, encoded)
    assert not isinstance(caught.value, CorruptCopy | NotInTier)


VERSION_1 = """
create table namespaces (id integer primary key, tenant text not null, bucket text not null, unique (tenant, bucket));
create table objects (
    namespace integer not null, key text not null, file integer not null, nbytes integer not null,
    crc64nvme integer not null, mtime_ms integer not null, attributes text,
    primary key (namespace, key)
) without rowid;
pragma user_version = 1;
insert into namespaces values (1, 'tenant', 'bucket');
"""


async def test_an_index_of_version_1_is_taken_over(tmp_path: Path, arena: Arena) -> None:
    tier = await started(tmp_path)
    bodies = {f"k{number}": mixed(300_000, number) for number in range(5)}
    rows = [(*await put(tier, arena, key, body), body) for key, body in bodies.items()]
    await tier.close()
    path = tier.folder / "index.sqlite3"
    path.unlink()
    with sqlite3.connect(path) as db:
        db.executescript(VERSION_1)
        for record, file, _ in rows:
            crc = record.crc64nvme - (1 << 64) if record.crc64nvme >> 63 else record.crc64nvme
            values = (record.key, file, record.nbytes, crc, record.mtime_ms, json.dumps(dict(record.attributes)))
            db.execute("insert into objects values (1, ?, ?, ?, ?, ?, ?)", values)
    db.close()
    found: dict[str, tuple[Record, Copy]] = {}
    again = await started(tmp_path, found)
    assert found == {record.key: (record, file) for record, file, _ in rows}
    assert again.usage().nbytes == counted(again)
    await recode(again, *found["k3"], ALL)
    await again.close()
    third = await started(tmp_path, found)
    assert await get(third, arena, *found["k3"]) == bodies["k3"]
    assert third.usage().nbytes == counted(third)
    await third.close()
    assert not list(tier.folder.glob("*.unreadable"))


def test_an_index_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 3")
    db.close()
    with pytest.raises(TierError, match="version 3"):
        DiskIndex(path, durable=False).open()
