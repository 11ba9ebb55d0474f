"""Gateways that read from each other, and that share a folder, as their clients see them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from kvgate.auth import sigv4
from kvgate.auth.tenants import tenant_salt
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.client.sync import Client
from tests.client.chunks import SPACE, chunks
from tests.gateways import ALPHA, Credential, RunningGateway, default_config

CLUSTER = {"access_key": "CLUSTERKEY000", "secret_key": "cluster-secret-0123456789abcdef"}
GAMMA = Credential("GAMMAKEY0000", "gamma-secret-0123456789abcdef")
BUCKET = "alpha-bucket"
MANIFEST = str(ManifestKey(SPACE.id))
PROMPT = chunks(tenant_salt("alpha"), 6)
HASHES = [chunk_hash for chunk_hash, _ in PROMPT]

Cluster = Callable[..., list[RunningGateway]]


def key_of(chunk_hash: bytes) -> str:
    return str(ChunkKey(SPACE.id, chunk_hash.hex()))


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Start some gateways, each with those as peers whose numbers `peers` has for it."""
    started: list[RunningGateway] = []

    def start(peers: list[list[int]], **tiers: Any) -> list[RunningGateway]:
        made = []
        for number in range(len(peers)):
            folder = tmp_path / f"gateway{number}"
            folder.mkdir()
            config = default_config(folder) | {"cluster": CLUSTER, "store": {"discovery": {"absent_ttl": "50ms"}}}
            made.append(RunningGateway(folder, config))
        for gateway, others in zip(made, peers, strict=True):
            urls = [made[other].url for other in others]
            gateway.config["tiers"] |= tiers
            if urls:
                gateway.config["tiers"]["peer"] = {"urls": urls, "ask_timeout": "5s", "lookup_timeout": "10s"} | (
                    tiers.get("peer") or {}
                )
            else:
                gateway.config["tiers"].pop("peer", None)
        for gateway in made:
            started.append(gateway)
            gateway.start()
        return made

    yield start
    for gateway in started:
        gateway.kill()


def client(gateway: RunningGateway, credential: Credential = ALPHA) -> Client:
    return Client(gateway.url, credential.access_key, credential.secret_key, deadline_s=30, local=False)


def write_prompt(gateway: RunningGateway) -> None:
    with client(gateway) as writer:
        writer.put(BUCKET, MANIFEST, SPACE.canonical_json())
        for chunk_hash, body in PROMPT:
            writer.put(BUCKET, key_of(chunk_hash), body)


def matched(gateway: RunningGateway) -> int:
    with client(gateway) as reader:
        return reader.match(BUCKET, SPACE.id, HASHES).matched


def load(gateway: RunningGateway) -> list[bytes]:
    """The leading chunks of the prompt that an engine gets."""
    buffers = [bytearray(len(body)) for _, body in PROMPT]
    with client(gateway) as reader:
        loaded = reader.load_chunks(BUCKET, SPACE.id, HASHES, [memoryview(buffer) for buffer in buffers])
    return [bytes(buffer) for buffer in buffers[: loaded.leading]]


def status_of(gateway: RunningGateway, key: str, credential: Credential = ALPHA, bucket: str = BUCKET) -> int:
    """What a GET is answered with; the bucket may be another tenant's, as `<tenant>_<bucket>`."""
    path, headers = f"/{bucket}/{key}", {"host": f"127.0.0.1:{gateway.port}"}
    signer = sigv4.Credential(credential.access_key, credential.secret_key)
    headers |= sigv4.sign(signer, "GET", path, "", headers, region="us-east-1", now=time.time())
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- peers ------------------------------------------------------------------------------------------------------------


def test_engine_that_wrote_through_one_gateway_reads_through_another(start_cluster: Cluster) -> None:
    first, second = start_cluster([[1], [0]])
    write_prompt(first)
    assert matched(second) == len(PROMPT)
    assert load(second) == [body for _, body in PROMPT]
    first.kill()
    assert load(second) == [body for _, body in PROMPT]  # they have come into its own tiers
    first.start()
    assert matched(first) == len(PROMPT)


def test_gateway_that_lost_everything_is_warmed_by_its_peers(start_cluster: Cluster, tmp_path: Path) -> None:
    first, second = start_cluster([[1], [0]])
    write_prompt(first)
    assert load(second) == [body for _, body in PROMPT]
    until(lambda: second.metrics()['kvgate_tier_objects{tier="disk"}'] >= len(PROMPT))
    first.kill()
    first.disk.rename(tmp_path / "lost")
    first.start()
    assert load(first) == [body for _, body in PROMPT]


def test_chunk_of_a_peer_can_be_deleted_here_and_stays_there(start_cluster: Cluster) -> None:
    first, second = start_cluster([[1], [0]])
    write_prompt(first)
    assert matched(second) == len(PROMPT)  # it knows of them, and has none
    with client(second) as writer:
        writer.delete(BUCKET, key_of(HASHES[0]))
    assert status_of(first, key_of(HASHES[0])) == 200


def test_peer_that_is_gone_costs_a_miss_and_no_more(start_cluster: Cluster) -> None:
    first, second = start_cluster([[], [0]])
    write_prompt(first)
    with client(second) as reader:
        reader.put(BUCKET, MANIFEST, SPACE.canonical_json())
    first.kill()
    for _ in range(5):
        assert matched(second) == 0
        assert status_of(second, key_of(HASHES[0])) == 404


@pytest.mark.parametrize("promote", ["always", "never"])
def test_in_a_ring_of_gateways_each_asks_its_neighbour_and_no_further(start_cluster: Cluster, promote: str) -> None:
    ring = start_cluster([[1], [2], [0]], peer={"promote": promote})
    first, second, third = ring
    write_prompt(third)
    assert status_of(first, key_of(HASHES[0])) == 404
    assert matched(first) == 0
    assert second.answered("PeerRecords") > 0
    assert third.answered("PeerRecords") == first.answered("PeerRecords") == 0
    assert load(second) == [body for _, body in PROMPT]  # its own neighbour has them
    asked, read = third.answered("PeerRecords"), third.answered("PeerObject")
    assert asked > 0
    time.sleep(0.1)  # longer than what was absent is remembered
    if promote == "never":  # the second one knows of them now, and has none of them itself
        assert matched(first) == 0
        assert status_of(first, key_of(HASHES[0])) == 404
    else:
        assert load(first) == [body for _, body in PROMPT]
    assert (third.answered("PeerRecords"), third.answered("PeerObject")) == (asked, read)


def test_tenant_of_one_gateway_alone_is_nobody_at_the_other(start_cluster: Cluster) -> None:
    first, second = start_cluster([[1], [0]])
    first.kill()
    gamma = {"access_keys": [GAMMA.as_config()], "buckets": ["gamma-bucket"]}
    first.config["tenants"]["gamma"] = gamma
    first.start()
    with client(first, GAMMA) as writer:
        writer.put("gamma-bucket", MANIFEST, SPACE.canonical_json())
    before = first.answered("PeerRecords")
    assert status_of(second, MANIFEST, GAMMA, "gamma-bucket") == 403
    assert status_of(second, MANIFEST, ALPHA, "gamma_gamma-bucket") == 403
    assert status_of(second, MANIFEST, ALPHA, "gamma-bucket") == 404
    assert first.answered("PeerRecords") == before
    # and the reverse: what is left of a tenant that this gateway does not know any more is nobody's
    del first.config["tenants"]["gamma"]
    first.restart()
    second.config["tenants"]["gamma"] = gamma
    second.restart()
    assert status_of(second, MANIFEST, GAMMA, "gamma-bucket") == 404


def test_tenants_of_one_name_are_kept_apart_from_others(start_cluster: Cluster) -> None:
    first, second = start_cluster([[1], [0]])
    write_prompt(first)
    beta = Credential(**first.config["tenants"]["beta"]["access_keys"][0])
    with client(first) as writer:
        writer.put("shared-name", MANIFEST, SPACE.canonical_json())
    assert status_of(second, MANIFEST, ALPHA, "shared-name") == 200
    assert status_of(second, MANIFEST, beta, "shared-name") == 404
    assert status_of(second, MANIFEST, beta, f"alpha_{BUCKET}") == 403


def test_without_the_same_cluster_nothing_is_read(start_cluster: Cluster) -> None:
    first, second = start_cluster([[1], [0]])
    write_prompt(first)
    second.config["cluster"] = CLUSTER | {"secret_key": "another-secret-0123456789"}
    second.restart()
    assert matched(second) == 0
    assert status_of(second, MANIFEST) == 404
    assert "another-secret" not in second.log
    assert CLUSTER["secret_key"] not in first.log


# --- a shared folder --------------------------------------------------------------------------------------------------


def test_gateways_share_a_folder(start_cluster: Cluster, tmp_path: Path) -> None:
    first, second = start_cluster([[], []], fs={"path": str(tmp_path / "shared"), "keep_free": 0})
    write_prompt(first)
    shared = tmp_path / "shared" / "objects" / "alpha" / BUCKET / "kv" / SPACE.id
    until(lambda: len([path for path in shared.rglob("*") if path.is_file()]) == len(PROMPT) + 1)
    first.kill()
    assert matched(second) == len(PROMPT)
    assert load(second) == [body for _, body in PROMPT]
    with client(second) as owner:
        owner.delete(BUCKET, key_of(HASHES[-1]))
    until(lambda: len([path for path in shared.rglob("*") if path.is_file()]) == len(PROMPT))
    assert [path.read_bytes()[: len(body)] for _, body in PROMPT[:1] for path in shared.rglob(HASHES[0].hex())] == [
        PROMPT[0][1]
    ]
