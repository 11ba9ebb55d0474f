from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from kvgate.config import Size
from kvgate.tiers.base import SharedTier
from kvgate.tiers.s3 import S3Tier
from tests.contracts.shared_tier import SharedTierContract
from tests.gateways import ALPHA, RunningGateway
from tests.stores import Seaweed, Store


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    server = Seaweed(tmp_path_factory.mktemp("seaweedfs"))
    server.start()
    yield server
    server.kill()


class S3Contract(SharedTierContract):
    capacity_nbytes: int | None = None

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    @pytest.fixture
    def prefix(self) -> str:
        return f"shared/{uuid.uuid4().hex}"

    def make(self, store: Store, prefix: str) -> S3Tier:
        capacity = None if self.capacity_nbytes is None else Size(self.capacity_nbytes)
        return S3Tier(store.config(prefix=prefix, capacity=capacity, part=Size(5 << 20)))

    @pytest.fixture
    async def tier(self, store: Store, prefix: str) -> AsyncIterator[SharedTier]:
        tier = self.make(store, prefix)
        await tier.start(lambda _: None)
        yield tier
        await tier.close()

    @pytest.fixture
    async def other(self, tier: SharedTier, store: Store, prefix: str) -> AsyncIterator[SharedTier]:
        other = self.make(store, prefix)
        await other.start(lambda _: None)
        yield other
        await other.close()


class TestSeaweedFS(S3Contract):
    @pytest.fixture
    def store(self, seaweed: Seaweed) -> Store:
        return seaweed.store


class TestSeaweedFSWithCapacity(S3Contract):
    capacity_nbytes = 64 << 20

    @pytest.fixture
    def store(self, seaweed: Seaweed) -> Store:
        return seaweed.store


class TestAnotherGateway(S3Contract):
    @pytest.fixture
    def store(self, gateway: RunningGateway) -> Store:
        return Store(gateway.url, "alpha-bucket", ALPHA.access_key, ALPHA.secret_key)
