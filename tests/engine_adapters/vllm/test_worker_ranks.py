"""The connector's workers, rank by rank, on memory that is laid out as on a GPU."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvgate.chunk.layout import DATA_START
from tests.engine_adapters.tcp_proxy import Proxy, flip_late
from tests.engine_adapters.vllm.engine import Forked, connector
from tests.engine_adapters.vllm.kept import BUCKET, Kept
from tests.gateways import RunningGateway

pytestmark = pytest.mark.engine

LAYERS, CHUNKS, CHUNK_TOKENS = 8, 6, 64
CHUNK_NBYTES = LAYERS * 2 * 4 * CHUNK_TOKENS * 64 * 2
ONE = [((0, 7), (0, 3))]
OF_HEADS = [((0, 7), (0, 1)), ((0, 7), (2, 3))]
OF_LAYERS = [((0, 3), (0, 3)), ((4, 7), (0, 3))]


@pytest.fixture
def on_shm(start_gateway: Callable[..., RunningGateway]) -> Iterator[RunningGateway]:
    """A gateway that hands its memory out."""
    short = Path(tempfile.mkdtemp(prefix="kvgate-"))
    yield start_gateway(listen={"shm_socket": str(short / "shm")})
    shutil.rmtree(short)


def settings(gateway: RunningGateway, **more: Any) -> dict[str, Any]:
    """The connector's settings; a load has room for one chunk at a time."""
    said: dict[str, Any] = connector(gateway, chunk_tokens=CHUNK_TOKENS)["kv_connector_extra_config"]
    return said | {"staging": 2 * 3 * (CHUNK_NBYTES + DATA_START), "layers_at_once": 3} | more


def only_space(kept: Kept) -> str:
    (space,) = kept.chunks()
    return space


@pytest.mark.parametrize("codec", ["zstd-split", "lz4-split", "none"])
def test_every_rank_loads_its_part_of_a_chunk_whatever_lossless_codec_it_is_in(
    forked: Forked, start_gateway: Callable[..., RunningGateway], codec: str
) -> None:
    gateway = start_gateway()
    (stored,) = forked.ask("ranks", verb="store", settings=settings(gateway, lossless=codec), ranks=ONE)
    assert stored["counts"]["stored_chunks"] == CHUNKS
    assert (stored["counts"]["stored_bytes"] < CHUNKS * CHUNK_NBYTES) == (codec != "none")
    assert Kept(gateway).codecs() == {"raw" if codec == "none" else codec: CHUNKS}
    for ranks in (ONE, OF_HEADS, OF_LAYERS):
        for load in ("async", "layerwise"):
            told = forked.ask("ranks", verb="load", settings=settings(gateway, load=load), ranks=ranks)
            assert [each["right"] for each in told] == [[True] * CHUNKS] * len(ranks), (ranks, load)
            assert [each["counts"]["reasons"] for each in told] == [{}] * len(ranks)
            assert all(each["counts"]["loaded_chunks"] == CHUNKS for each in told)
            # Of all chunks together never more than one of each rank, and a few layers, beside the rows.
            assert told[-1]["peak_nbytes"] < 2 * len(ranks) * CHUNK_NBYTES


def test_a_chunk_in_a_lossless_codec_comes_by_shared_memory_too(forked: Forked, on_shm: RunningGateway) -> None:
    forked.ask("ranks", verb="store", settings=settings(on_shm, lossless="zstd-split"), ranks=ONE)
    for ranks in (ONE, OF_HEADS):
        told = forked.ask("ranks", verb="load", settings=settings(on_shm), ranks=ranks)
        assert [each["right"] for each in told] == [[True] * CHUNKS] * len(ranks)
        assert [each["shm"] for each in told] == [CHUNKS] * len(ranks)


@pytest.mark.parametrize("ranks", [ONE, OF_HEADS], ids=["whole", "heads"])
def test_a_broken_block_ends_the_load_at_its_chunk_and_its_blocks_are_reported(
    forked: Forked, start_gateway: Callable[..., RunningGateway], ranks: Any
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway, BUCKET)
    forked.ask("ranks", verb="store", settings=settings(gateway, lossless="zstd-split"), ranks=ONE)
    key = kept.keys(only_space(kept))[3 * CHUNK_TOKENS]
    first_block = DATA_START + 8 * LAYERS
    kept.change(key, lambda body: body[:first_block] + bytes(100) + body[first_block + 100 :])
    for load in ("async", "layerwise"):
        told = forked.ask("ranks", verb="load", settings=settings(gateway, load=load), ranks=ranks)
        assert [each["right"] for each in told] == [[True] * 3 + [False] * 3] * len(ranks)
        assert [each["counts"]["reasons"] for each in told] == [{"load: did not arrive": 1}] * len(ranks)


@pytest.mark.parametrize("ranks", [ONE, OF_HEADS], ids=["whole", "heads"])
def test_a_bit_that_changed_on_the_way_is_never_decoded(
    forked: Forked, start_gateway: Callable[..., RunningGateway], ranks: Any
) -> None:
    gateway = start_gateway()
    forked.ask("ranks", verb="store", settings=settings(gateway, lossless="zstd-split"), ranks=ONE)
    with Proxy(gateway.port) as proxy:
        proxy.answer = flip_late
        told = forked.ask("ranks", verb="load", settings=settings(gateway, url=proxy.url), ranks=ranks)
    assert [each["right"] for each in told] == [[False] * CHUNKS] * len(ranks)


@pytest.mark.parametrize("ranks", [ONE, OF_HEADS], ids=["whole", "heads"])
def test_chunks_with_slices_and_without_may_follow_each_other(
    forked: Forked, start_gateway: Callable[..., RunningGateway], ranks: Any
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway, BUCKET)
    forked.ask("ranks", verb="store", settings=settings(gateway), ranks=ONE)
    keys = kept.keys(only_space(kept))
    kept.delete(*(keys[chunk * CHUNK_TOKENS] for chunk in (2, 3)))
    forked.ask("ranks", verb="store", settings=settings(gateway, lossless="zstd-split"), ranks=ONE)
    assert kept.codecs() == {"raw": CHUNKS - 2, "zstd-split": 2}
    for load in ("async", "layerwise"):
        told = forked.ask("ranks", verb="load", settings=settings(gateway, load=load), ranks=ranks)
        assert [each["right"] for each in told] == [[True] * CHUNKS] * len(ranks)
