"""Ranks of one engine, each a process, that write chunks together and know nothing of each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START
from kvgate.client.sync import Client
from tests.gateways import ALPHA, RunningGateway
from tests.server.rank import BUCKET, SPACE, hashes_of, kv_of
from tests.server.test_batch import until

RANKS, CHUNKS = 4, 12
PATIENCE_S = 120


def start(gateway: RunningGateway, rank: int, writer: str = "engine 1", lease_s: float = 60) -> subprocess.Popen[str]:
    arguments = [gateway.url, writer, str(rank), str(RANKS), str(CHUNKS), str(lease_s)]
    return subprocess.Popen([sys.executable, "-m", "tests.server.rank", *arguments], stdout=subprocess.PIPE, text=True)


def states(process: subprocess.Popen[str]) -> list[str]:
    """What became of each chunk, as a rank said it."""
    lines, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    return [line.split()[1] for line in lines.splitlines()]


@contextmanager
def client_of(gateway: RunningGateway) -> Iterator[tuple[Client, list[bytes]]]:
    """A client of a bucket that knows the space, and the hashes of the prompt."""
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        yield client, hashes_of(client.tenant().salt, CHUNKS)[1:]


def check_all(client: Client, hashes: list[bytes]) -> None:
    for index, chunk_hash in enumerate(hashes):
        body = client.get(BUCKET, str(ChunkKey(SPACE.id, chunk_hash.hex()))).body
        assert body is not None
        assert body[DATA_START:] == kv_of(index)


def test_ranks_write_chunks_together_without_a_word_to_each_other(start_gateway) -> None:
    gateway = start_gateway()
    with client_of(gateway) as (client, hashes):
        ranks = [start(gateway, rank) for rank in range(RANKS)]
        written = [states(each) for each in ranks]
        for of_chunk in zip(*written, strict=True):
            assert sorted(of_chunk) == ["committed", "open", "open", "open"]
        check_all(client, hashes)
        assert states(start(gateway, 0)) == ["present"] * CHUNKS, "a rank that comes afterwards is told so"
        assert gateway.metrics()["kvgate_reserved_bytes"] == 0


def test_rank_that_was_killed_comes_back_and_ends_what_it_had_begun(start_gateway) -> None:
    gateway = start_gateway()
    with client_of(gateway) as (client, hashes):
        assert [states(start(gateway, rank)) for rank in range(RANKS - 1)] == [["open"] * CHUNKS] * (RANKS - 1)
        last = start(gateway, RANKS - 1)
        assert last.stdout is not None
        last.stdout.readline()
        last.kill()
        last.communicate()
        assert states(start(gateway, 1)).count("open") < CHUNKS, "what it had sent is compared, or there"
        again = states(start(gateway, RANKS - 1))
        assert set(again) <= {"present", "committed"}
        check_all(client, hashes)
        assert gateway.metrics()["kvgate_reserved_bytes"] == 0


def test_chunks_of_a_rank_that_never_came_back_leave_nothing_behind(start_gateway) -> None:
    gateway = start_gateway()
    with client_of(gateway) as (client, hashes):
        assert states(start(gateway, 0, lease_s=4)) == ["open"] * CHUNKS
        until(lambda: gateway.metrics()["kvgate_reserved_bytes"] == 0)
        assert client.match(BUCKET, SPACE.id, hashes).nbytes == ()
        for rank in range(1, RANKS):
            assert set(states(start(gateway, rank))) == {"open"}, "it was too late, and is told nothing else"
        assert set(states(start(gateway, 0))) == {"committed"}
        check_all(client, hashes)


def test_engines_that_name_themselves_differently_do_not_meet(start_gateway) -> None:
    gateway = start_gateway()
    with client_of(gateway) as (client, hashes):
        engines = ["engine 1", "engine 2"]
        ranks = [start(gateway, rank, writer) for rank in range(RANKS) for writer in engines]
        written = [states(each) for each in ranks]
        ends = [state for of_rank in written for state in of_rank if state != "open"]
        assert ends.count("committed") == CHUNKS, "each chunk became visible once"
        assert set(ends) <= {"committed", "present", "NoSuchReservation"}
        check_all(client, hashes)
