"""The connector's workers on memory as vLLM lays it out on a GPU, without an engine.

vLLM's build for CPUs packs its blocks, and so cannot show what needs to know where a number lies in them. This runs in
a process that the importer has forked (see driver.py).
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec

from engine_adapters.vllm.job import Load, LoadPart, Save, SavedChunk, Work
from engine_adapters.vllm.settings import read_settings
from engine_adapters.vllm.space import Group
from engine_adapters.vllm.worker import Rank, Worker
from kvgate.chunk.chain import chain_hashes, root
from kvgate.chunk.space import Space
from kvgate.client.sync import Client

LAYERS, HEADS, HEAD_DIM = 8, 4, 64
BLOCK_TOKENS, CHUNK_TOKENS, CHUNKS, BLOCKS = 16, 64, 6, 64
WITHIN_S = 60.0

SPACE = Space(
    model="test-model",
    weights="sha256:" + "1" * 64,
    tokenizer="sha256:" + "2" * 64,
    dtype="BF16",
    layers=LAYERS,
    kv_heads=HEADS,
    head_dim=HEAD_DIM,
    attention="gqa",
    rope={"rope_theta": 10000.0, "rope_type": "default"},
    lora="none",
    multimodal="none",
    chunk_tokens=CHUNK_TOKENS,
    hash_scheme="kvgate-sha256-chain-v1",
    layout_version=1,
)
TOKENS = range(CHUNKS * CHUNK_TOKENS)
HASHES = [root(SPACE.digest, bytes(32)), *chain_hashes(root(SPACE.digest, bytes(32)), TOKENS, CHUNK_TOKENS)]
"""The root's, and then one for each chunk."""


def true_kv() -> Any:
    """(layers, 2, heads, tokens, head_dim): what a model could have computed."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(LAYERS, 2, HEADS, len(TOKENS), HEAD_DIM, generator=generator).to(torch.bfloat16)


class OneRank:
    """A worker that holds some layers and heads, and its memory."""

    def __init__(self, settings: dict[str, Any], number: int, ranks: int, layers: range, heads: range) -> None:
        self.layers, self.heads = layers, heads
        self.memory = torch.full(
            (len(layers), BLOCKS, BLOCK_TOKENS, len(heads), 2 * HEAD_DIM), 7.0, dtype=torch.bfloat16
        )
        self.names = [f"layers.{layer}" for layer in layers]
        spec = FullAttentionSpec(
            block_size=BLOCK_TOKENS, num_kv_heads=len(heads), head_size=HEAD_DIM, dtype=torch.bfloat16
        )
        group = Group(0, tuple(self.names), layers.start, BLOCK_TOKENS, None, spec, SPACE)
        read = read_settings(settings)
        found = read.find_credentials()
        is_whole = len(layers) == LAYERS and len(heads) == HEADS
        rank = Rank(heads, is_whole, True, "one start of an engine", number, ranks)
        self.client = Client(found.url, found.access_key, found.secret_key)
        self.worker = Worker(self.client, read, [group], rank, one_table=True)
        self.worker.register(
            {name: each.permute(0, 2, 1, 3) for name, each in zip(self.names, self.memory, strict=True)}
        )
        shuffled = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(number)).tolist()
        count = CHUNK_TOKENS // BLOCK_TOKENS
        self.blocks = [tuple(shuffled[chunk * count : (chunk + 1) * count]) for chunk in range(CHUNKS)]

    def places(self) -> Any:
        """Its blocks in the order of the tokens: (layers, blocks, tokens, heads, K and V), a copy."""
        return self.memory[:, [block for blocks in self.blocks for block in blocks]]

    def expected(self) -> Any:
        """What they hold when all is right."""
        kv = true_kv()[self.layers.start : self.layers.stop, :, self.heads.start : self.heads.stop]
        joined = torch.cat([kv[:, 0], kv[:, 1]], dim=-1).permute(0, 2, 1, 3)  # layers, tokens, heads, K and V
        return joined.unflatten(1, (-1, BLOCK_TOKENS))

    def store(self) -> None:
        """Begin to store all chunks."""
        self.memory[:, [block for blocks in self.blocks for block in blocks]] = self.expected()
        chunks = tuple(
            SavedChunk(0, HASHES[chunk + 1], HASHES[chunk], chunk * CHUNK_TOKENS, self.blocks[chunk])
            for chunk in range(CHUNKS)
        )
        self.worker.end_step(Work((SPACE.id,), saves=[Save(0, "none", chunks)]))

    def load(self, *, layerwise: bool) -> None:
        """Begin to load all chunks."""
        part = LoadPart(0, tuple(HASHES[1:]), tuple(self.blocks))
        self.worker.begin_loads(Work((SPACE.id,), loads=[Load("one", "none", (part,), WITHIN_S, layerwise)]))

    def wait(self, done: Callable[[Any], bool]) -> None:
        """Wait for a report of which this is true; several are added up."""
        told, deadline = self.worker.report(), time.monotonic() + WITHIN_S
        while told is None or not done(told):
            assert time.monotonic() < deadline, told
            time.sleep(0.002)
            more = self.worker.report()
            told = more if told is None else told if more is None else told.aggregate(more)

    def right_chunks(self) -> list[bool]:
        """Of each chunk, whether all of its bits are in the blocks; those of the others must have been reported."""
        count = CHUNK_TOKENS // BLOCK_TOKENS
        same = (self.places().view(torch.int16) == self.expected().view(torch.int16)).flatten(2).all(2).all(0)
        right = same.view(CHUNKS, count).all(1).tolist()
        invalid = self.worker.invalid_blocks()
        wrong = {block for blocks, fine in zip(self.blocks, right, strict=True) if not fine for block in blocks}
        assert wrong <= invalid, "blocks that are not right were not reported"
        return right


def answer(verb: str, settings: dict[str, Any], ranks: list[tuple[list[int], list[int]]]) -> list[dict[str, Any]]:
    """What the workers did, one for each rank.

    verb:  `store` or `load`
    ranks: first and last layer, first and last head of each
    """
    workers = [
        OneRank(settings, number, len(ranks), range(layers[0], layers[1] + 1), range(heads[0], heads[1] + 1))
        for number, (layers, heads) in enumerate(ranks)
    ]
    layerwise = settings.get("load") == "layerwise"
    tracemalloc.start()
    for each in workers:
        if verb == "store":
            each.store()
        else:
            each.load(layerwise=layerwise)
    told = []
    for each in workers:
        if layerwise and verb == "load":
            for name in each.names:
                each.worker.wait_for_layer(name)
        each.wait(lambda report: report.loaded["one"] if verb == "load" else report.stored.total() == CHUNKS)
        right = each.right_chunks() if verb == "load" else []
        shm = each.client.traffic()["shm"].transfers
        told.append({"right": right, "counts": each.worker.tally.take(), "shm": shm})
    for each in told:
        each["peak_nbytes"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for worker in workers:
        worker.worker.close()
    return told
