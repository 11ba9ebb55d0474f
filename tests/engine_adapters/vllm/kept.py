"""What a gateway keeps of the engines of a test."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.safetensors import decode_header
from kvgate.client.sync import Client
from kvgate.client.values import Chosen
from tests.engine_adapters.vllm.engine import Engine
from tests.gateways import ALPHA, RunningGateway

CHUNK_TOKENS = 64
PATIENT = {"chunk_tokens": CHUNK_TOKENS, "lookup_deadline": 30, "load_deadline": 30}
"""Settings of a connector that waits as long as a busy machine needs."""

BUCKET = "alpha-bucket"
WITHIN_S = 60.0


class Kept:
    """The chunks in a bucket of tenant alpha's."""

    def __init__(self, gateway: RunningGateway, bucket: str = BUCKET) -> None:
        self._client = Client(gateway.url, ALPHA.access_key, ALPHA.secret_key)
        self._bucket = bucket

    def chunks(self) -> Counter[str]:
        """How many chunks each space has."""
        return Counter(space for space, name in self._names() if name != "manifest.json")

    def wait(self, count: int) -> Counter[str]:
        """As `chunks`, once there are so many in all."""
        found = self.wait_at_least(count)
        assert found.total() == count
        return found

    def wait_at_least(self, count: int) -> Counter[str]:
        """As `wait`, where nobody knows how many chunks of output there will be."""
        deadline = time.monotonic() + WITHIN_S
        while (found := self.chunks()).total() < count:
            assert time.monotonic() < deadline, f"{found} after {WITHIN_S} s, expected {count} chunks"
            time.sleep(0.05)
        return found

    def settle(self) -> Counter[str]:
        """As `chunks`, once there come no more: what an engine has taken out of its blocks may still be on its way."""
        found, before = self.chunks(), None
        while found != before:
            time.sleep(1.0)
            before, found = found, self.chunks()
        return found

    def manifests(self) -> dict[str, dict[str, Any]]:
        """The manifest of each space, by its id."""
        spaces = {space for space, name in self._names() if name == "manifest.json"}
        return {space: json.loads(self._body(f"kv/{space}/manifest.json")) for space in spaces}

    def keys(self, space: str) -> dict[int, str]:
        """The key of each chunk of one prompt in a space, by the position of its first token."""
        keys = [f"kv/{space}/{name}" for found, name in self._names() if found == space and name != "manifest.json"]
        bodies = {key: self._body(key) for key in keys}
        headers = {key: decode_header(body, len(body)) for key, body in bodies.items()}
        return {ChunkHeader.from_metadata(header.metadata).first_token: key for key, header in headers.items()}

    def codecs(self) -> Counter[str]:
        """How many chunks are in each codec."""
        bodies = [self._body(f"kv/{space}/{name}") for space, name in self._names() if name != "manifest.json"]
        return Counter(decode_header(body, len(body)).metadata["codec"] for body in bodies)

    def change(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Have another body under a key."""
        body = change(self._body(key))
        self._client.delete(self._bucket, key)
        self._client.put(self._bucket, key, body)

    def compress(self) -> int:
        """Have the gateway make its copies on disk smaller, as an operator would; by how many bytes they are."""
        job = self._client.start_job("compress", Chosen(self._bucket, prefix="kv/"))
        deadline = time.monotonic() + WITHIN_S
        while not (job := self._client.job(job.id)).has_ended:
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        return job.saved_nbytes

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._client.delete(self._bucket, key)

    def leases(self) -> int:
        """How many leases the tenant has, once those that are being given back are."""
        deadline = time.monotonic() + WITHIN_S / 4
        while (leases := self._client.stats().leases) and time.monotonic() < deadline:
            time.sleep(0.05)
        return leases

    def _body(self, key: str) -> bytes:
        body = self._client.get(self._bucket, key).body
        assert body is not None
        return body

    def _names(self) -> list[tuple[str, str]]:
        listed = self._client.list(self._bucket, prefix="kv/")
        return [(each.key.split("/")[1], each.key.split("/")[2]) for each in listed]


def check_nothing_is_held(engine: Engine, kept: Kept) -> None:
    """Every block is free but the one that is never used, and there is no lease."""
    blocks = engine.blocks()
    assert blocks == {"total": blocks["total"], "free": blocks["total"] - 1, "requests": 0}
    assert kept.leases() == 0


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that a busy machine may need long for."""
    deadline = time.monotonic() + 2 * WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)
