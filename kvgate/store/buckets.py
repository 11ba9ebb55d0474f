"""The buckets of every tenant, and the documents that their owners set for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace

from kvgate.auth.tenants import Tenant
from kvgate.chunk.key import check_bucket
from kvgate.errors import BucketNotEmpty, TooManyBuckets
from kvgate.memory.threads import started_threads
from kvgate.store.catalog import Catalog
from kvgate.store.index import Bucket, Index
from kvgate.store.keeper import Keeper
from kvgate.store.multipart import Multipart


class Buckets:
    """What is said of buckets lies in the index and, to survive a restart, in the catalog."""

    def __init__(self, index: Index, catalog: Catalog, multipart: Multipart, keeper: Keeper) -> None:
        self._index = index
        self._keeper = keeper
        self._catalog = catalog
        self._multipart = multipart
        self._thread = started_threads(1, "kvgate-catalog")  # one, so in order

    def list(self, tenant: str) -> list[Bucket]:
        """The tenant's buckets by name."""
        return self._index.buckets(tenant)

    def get(self, tenant: str, bucket: str) -> Bucket:
        """One of the tenant's buckets. Raises NoSuchBucket."""
        return self._index.bucket(tenant, bucket)

    async def create(self, tenant: Tenant, bucket: str) -> bool:
        """Make a bucket, which survives a restart; False when the tenant has it.

        Raises InvalidBucketName, TooManyBuckets.
        """
        check_bucket(bucket)
        present = self.list(tenant.name)
        if any(known.name == bucket for known in present):
            return False
        if len(present) >= tenant.max_buckets:
            raise TooManyBuckets(f"this tenant may have {tenant.max_buckets} buckets (max_buckets)")
        self._index.add_bucket(tenant.name, Bucket(bucket, _now_ms()))
        await self._save()
        return True

    async def delete(self, tenant: str, bucket: str) -> None:
        """Delete an empty bucket, and the multipart uploads into it. Raises NoSuchBucket, BucketNotEmpty."""
        await self._keeper.remove_ended(tenant, bucket)
        if self._index.objects(tenant, bucket):
            raise BucketNotEmpty(f"bucket {bucket!r} still holds objects; delete them first")
        uploads = self._multipart.uploads(tenant, bucket)
        self._index.remove_bucket(tenant, bucket)
        await self._save()
        await self._keeper.forget_bucket(tenant, bucket)
        for upload in uploads:
            await self._multipart.abort(upload)

    async def set(self, tenant: str, bucket: str, name: str, document: str | None) -> None:
        """Set one of a bucket's documents, or remove it, so that this survives a restart. Raises NoSuchBucket.

        What a document says is for those who read it.
        """
        before = self._index.bucket(tenant, bucket)
        settings = {**before.settings, name: document}
        after = replace(before, settings={name: text for name, text in settings.items() if text is not None})
        self._index.replace_bucket(tenant, after)
        try:
            await self._save()
        except OSError:
            if self._index.all_buckets().get((tenant, bucket)) is after:
                self._index.replace_bucket(tenant, before)
            raise

    def load(self, tenants: Iterable[Tenant]) -> None:
        """Take over what survived, and make the buckets of the configuration."""
        for (owner, _), bucket in self._catalog.load().items():
            self._index.add_bucket(owner, bucket)
        for tenant in tenants:
            for name in tenant.buckets:
                self._index.add_bucket(tenant.name, Bucket(name, _now_ms()))

    def close(self) -> None:
        """Wait for what is being saved."""
        self._thread.shutdown()

    async def _save(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._catalog.save, self._index.all_buckets())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
