"""A store in memory and on disk against a dictionary: whatever happens, a key gives its latest body or is a miss."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvgate.auth.tenants import Tenant
from kvgate.config import Size
from kvgate.errors import NoSuchKey, Overloaded, QuotaExceeded, StoreFull
from kvgate.messages import views
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.store import Store, open_store
from kvgate.tiers.disk import DiskConfig, DiskTier
from kvgate.tiers.disk_streams import footprint
from kvgate.tiers.host import HostConfig, HostTier
from tests.store.conftest import fill

KiB, MiB = 1 << 10, 1 << 20
TENANTS = [Tenant("one", buckets=("bucket",)), Tenant("two", buckets=("bucket",), quota_nbytes=3 * MiB)]
names = st.sampled_from([tenant.name for tenant in TENANTS])
keys = st.sampled_from([f"key-{number}" for number in range(12)])
sizes = st.sampled_from([0, 1, 5000, 300 * KiB, 1 * MiB + 1, 3 * MiB])


class StoreStates(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="kvgate-states-"))
        self.written: dict[tuple[str, str], bytes] = {}
        self.reads: list[Any] = []
        self.version = 0

    @initialize(ack=st.sampled_from(["memory", "disk"]))
    def begin(self, ack: str) -> None:
        self.ack = ack
        self.runner.run(self.open())

    async def open(self) -> None:
        self.memory = HostTier(HostConfig(capacity=Size(2 * MiB), segment=Size(MiB)))
        self.disk = DiskTier(DiskConfig(path=self.folder, capacity=Size(6 * MiB)))
        config = StoreConfig(ack=self.ack, window=Size(MiB))  # type: ignore[arg-type]
        # The store lives in a task of its own, as it does in a gateway: its task group belongs to that task.
        self.opened: asyncio.Future[Store] = asyncio.get_running_loop().create_future()
        self.ending = asyncio.Event()

        async def live() -> None:
            async with AsyncExitStack() as stack:
                store = await stack.enter_async_context(
                    open_store(
                        self.memory,
                        [self.disk],
                        TENANTS,
                        config=config,
                        metrics=Metrics(),
                        catalog=self.folder / "b.json",
                    )
                )
                self.opened.set_result(store)
                await self.ending.wait()

        self.life = asyncio.create_task(live())
        await asyncio.wait([self.life, self.opened], return_when=asyncio.FIRST_COMPLETED)
        if self.life.done():
            await self.life  # raises why it could not open
        self.store = await self.opened

    async def close(self) -> None:
        for read in self.reads:
            read.close()
        self.reads.clear()
        self.ending.set()
        await self.life

    @rule(name=names, key=keys, nbytes=sizes, known=st.booleans())
    def put(self, name: str, key: str, nbytes: int, known: bool) -> None:
        self.version += 1
        body = (b"%s %s %d " % (name.encode(), key.encode(), self.version) * (nbytes // 8 + 1))[:nbytes]

        async def run() -> None:
            tenant = next(tenant for tenant in TENANTS if tenant.name == name)
            async with await self.store.open_write(tenant, "bucket", key, nbytes if known else None) as write:
                await fill(write, body)
                await write.commit({"x-amz-meta-version": str(self.version)})

        try:
            self.runner.run(run())
            self.written[name, key] = body
        except (QuotaExceeded, StoreFull, Overloaded):
            pass

    @rule(name=names, key=keys, part=st.tuples(st.floats(0, 1), st.floats(0, 1)))
    def get(self, name: str, key: str, part: tuple[float, float]) -> None:
        async def run() -> None:
            with self.store.open_read(name, "bucket", key, name) as read:
                start, stop = sorted(int(share * read.record.nbytes) for share in part)
                body = await read.load(start, stop)
                try:
                    got = b"".join([bytes(view) async for view in views(body)])
                finally:
                    body.close()
            assert got == self.written[name, key][start:stop]

        try:
            self.runner.run(run())
        except (NoSuchKey, Overloaded):
            return

    @rule(name=names, key=keys)
    def hold(self, name: str, key: str) -> None:
        """Begin a read and leave it open: the object must stay until it is closed."""
        try:
            self.reads.append(self.store.open_read(name, "bucket", key))
        except NoSuchKey:
            return

    @rule()
    def let_go(self) -> None:
        if self.reads:
            self.reads.pop(0).close()

    @rule(name=names, key=keys)
    def delete(self, name: str, key: str) -> None:
        self.runner.run(self.store.delete(name, "bucket", key))
        self.written.pop((name, key), None)

    @rule()
    def flush(self) -> None:
        self.runner.run(self.store.flush())

    @rule()
    def restart(self) -> None:
        self.runner.run(self.close())
        self.runner.run(self.open())

    @invariant()
    def numbers_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        self.runner.run(self.quiesce())
        in_memory = on_disk = 0
        for tenant in TENANTS:
            records = self.store.list(tenant.name, "bucket").records
            assert {record.key for record in records} <= {key for name, key in self.written if name == tenant.name}
            assert self.store.stats(tenant).nbytes == sum(record.nbytes for record in records)
            for record in records:
                entry = self.store._index.get(tenant.name, "bucket", record.key)
                assert entry is not None
                assert entry.copies != (None, None)
                in_memory += -(-record.nbytes // 4096) * 4096 if entry.copies[0] is not None else 0
                on_disk += footprint(record.nbytes) if entry.copies[1] is not None else 0
        for read in {id(read._entry): read for read in self.reads if not read._entry.current}.values():
            entry = read._entry  # replaced or deleted, and still being read
            in_memory += -(-entry.record.nbytes // 4096) * 4096 if entry.copies[0] is not None else 0
            on_disk += footprint(entry.record.nbytes) if entry.copies[1] is not None else 0
        assert self.memory.usage().nbytes == in_memory + self.read_elsewhere_nbytes()
        assert self.disk.usage().nbytes == on_disk
        assert self.disk.usage().nbytes <= self.disk.usage().capacity_nbytes

    def read_elsewhere_nbytes(self) -> int:
        """Memory that is kept though no entry has its copy there any more."""
        return 0

    async def quiesce(self) -> None:
        await self.store.flush()
        await self.store._placement.copies.wait_for_background()

    def teardown(self) -> None:
        if hasattr(self, "life"):
            self.runner.run(self.close())
        self.runner.close()
        shutil.rmtree(self.folder)


TestStoreStates = StoreStates.TestCase
TestStoreStates.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
