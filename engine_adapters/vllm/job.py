"""What the scheduler's half of the connector tells the workers, and what they tell it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclass(frozen=True, slots=True)
class LoadPart:
    """Chunks of one group of layers that follow one another.

    group:  index into the engine's groups
    hashes: of each chunk, 32 bytes
    blocks: for each chunk its blocks, in order; SKIP for one that is not to be touched
    """

    group: int
    hashes: tuple[bytes, ...]
    blocks: tuple[tuple[int, ...], ...]

    def chunks(self, start: int, stop: int) -> LoadPart:
        """Some of them."""
        return LoadPart(self.group, self.hashes[start:stop], self.blocks[start:stop])


@dataclass(frozen=True, slots=True)
class Load:
    """KV to bring into a request's blocks.

    lora:       digest of the request's adapter, or `none`
    deadline_s: how long it may take
    layerwise:  whether the step that comes with it waits for it, layer by layer
    """

    request_id: str
    lora: str
    parts: tuple[LoadPart, ...]
    deadline_s: float
    layerwise: bool


@dataclass(frozen=True, slots=True)
class SavedChunk:
    """One chunk of one group, and the blocks that hold it. parent: the hash before it; first_token: its position."""

    group: int
    hash: bytes
    parent: bytes
    first_token: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Save:
    """KV to take out of blocks, which the scheduler holds until every worker has."""

    job: int
    lora: str
    chunks: tuple[SavedChunk, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """A prompt's KV that a decode instance may fetch. The scheduler holds its blocks until every worker has reported.

    id:   by which it is asked for
    runs: for each group the request's first block in it, and the ids of the blocks from that one on
    """

    job: int
    id: str
    runs: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """A prompt's KV to be had from a prefill instance. at: where its workers are, by rank; id, runs: as of an Offer."""

    request_id: str
    id: str
    at: tuple[tuple[str, int], ...]
    runs: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass
class Work(KVConnectorMetadata):  # type: ignore[misc]
    """For one step.

    spaces:   the id of each group's space without LoRA, which a worker's own must equal
    given_up: requests whose fetch nobody waits for any more
    """

    spaces: tuple[str, ...]
    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    fetches: list[Fetch] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)


@dataclass
class Report(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """From the workers, since the last step.

    taken:   of each save, how many workers have taken the KV out of its blocks
    loaded:  of each request, how many workers have ended its load, however it went
    stored:  of each chunk, how many workers have stored their part
    lost:    chunks that a worker could not store, or not load
    offered: of each offer, how many workers have ended it
    """

    taken: Counter[int] = field(default_factory=Counter)
    loaded: Counter[str] = field(default_factory=Counter)
    stored: Counter[bytes] = field(default_factory=Counter)
    lost: set[bytes] = field(default_factory=set)
    offered: Counter[int] = field(default_factory=Counter)

    def aggregate(self, other: Report) -> Report:
        """Both together."""
        return Report(
            self.taken + other.taken,
            self.loaded + other.loaded,
            self.stored + other.stored,
            self.lost | other.lost,
            self.offered + other.offered,
        )

    def __bool__(self) -> bool:
        return bool(self.taken or self.loaded or self.stored or self.lost or self.offered)
