"""vLLM's KV events for what is stored in the gateway."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_events import BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
from vllm.v1.kv_cache_interface import get_kv_cache_spec_kind

from engine_adapters.vllm.job import SavedChunk
from engine_adapters.vllm.space import Group

MEDIUM = "STORAGE"
OWNER = "kvgate"


@dataclass(slots=True)
class _Described:
    """parent: the hash of the chunk before it; waiting: chunks after it that are stored, and told of once it is."""

    event: BlockStored
    parent: bytes
    waiting: list[bytes] = field(default_factory=list)


class StoredEvents:
    """Tells whoever listens to vLLM's KV events which of its blocks the gateway has. Only from one thread.

    A chunk is described while its request is there, and told of once it is stored and the one before it is told of:
    chunks are stored in any order, and nobody finds one before those that it follows.
    """

    def __init__(self, kv_cache_config: Any, limit: int) -> None:
        """limit: how many chunks may be described and not stored yet"""
        self._config = kv_cache_config
        self._limit = limit
        self._described: OrderedDict[bytes, _Described] = OrderedDict()
        self._ready: list[BlockStored] = []

    def describe(self, part: SavedChunk, request: Any, group: Group, chunk_tokens: int) -> None:
        """Remember what to tell of a chunk."""
        per_hash = self._config.hash_block_size or group.block_tokens
        first, count = part.first_token // per_hash, chunk_tokens // per_hash
        hashes = request.block_hashes[first : first + count]
        if len(hashes) < count:  # vLLM has not named them yet
            return
        lora = request.lora_request
        parent = maybe_convert_block_hash(request.block_hashes[first - 1]) if first else None
        event = BlockStored(
            block_hashes=[maybe_convert_block_hash(block_hash) for block_hash in hashes],
            parent_block_hash=parent,
            token_ids=list(request.all_token_ids[part.first_token : part.first_token + chunk_tokens]),
            block_size=per_hash,
            lora_id=lora.lora_int_id if lora else None,
            medium=MEDIUM,
            lora_name=lora.lora_name if lora else None,
            group_idx=group.index,
            kv_cache_spec_kind=get_kv_cache_spec_kind(self._config.kv_cache_groups[group.index].kv_cache_spec),
            kv_cache_spec_sliding_window=group.window,
            locality="REMOTE",
            ownership=OWNER,
        )
        waiting = self._described[part.hash].waiting if part.hash in self._described else []
        self._described[part.hash] = _Described(event, part.parent, waiting)
        while len(self._described) > self._limit:
            self._described.popitem(last=False)

    def stored(self, chunk_hash: bytes) -> None:
        """Note that a chunk is stored."""
        described = self._described.get(chunk_hash)
        if described is None:
            return
        if described.parent in self._described:
            self._described[described.parent].waiting.append(chunk_hash)
            return
        tellable = [chunk_hash]
        while tellable:
            told = self._described.pop(tellable.pop(), None)
            if told is not None:
                self._ready.append(told.event)
                tellable += told.waiting

    def take(self) -> list[BlockStored]:
        """What has been stored since the last call."""
        ready, self._ready = self._ready, []
        return ready
