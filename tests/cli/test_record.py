"""`record` against a real gateway, and `replay` of what it wrote."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey
from kvgate.client.sync import Client
from tests.chunks import SPACE
from tests.gateways import ALPHA, RunningGateway, free_port

if TYPE_CHECKING:
    from .conftest import Kvgate

BUCKET = "alpha-bucket"
HASHES = [bytes([number]) * 32 for number in range(1, 6)]


def prompt(client: Client, hashes: list[bytes]) -> int:
    """Ask for a chain, write what is missing, and read it all; how much was found."""
    found = client.match(BUCKET, SPACE.id, hashes, lease_s=5).matched
    for position, each in enumerate(hashes[found:], found):
        parent = hashes[position - 1] if position else b"\0" * 32
        header = ChunkHeader.encode(SPACE, each, parent, position * SPACE.chunk_tokens)
        client.put(BUCKET, str(ChunkKey(SPACE.id, each.hex())), header + bytes(SPACE.layout.nbytes))
    for each in hashes:
        client.get(BUCKET, str(ChunkKey(SPACE.id, each.hex())))
    return found


def wait_until_it_records(trace: Path) -> None:
    """The file is made once the recording has begun."""
    deadline = time.monotonic() + 60
    while not trace.exists():
        assert time.monotonic() < deadline, "no recording has begun"
        time.sleep(0.02)


def test_what_is_recorded_names_nobody_and_can_be_replayed(
    kvgate: Kvgate, start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    gateway = start_gateway()
    trace = tmp_path / "trace.jsonl.gz"
    answers: list[subprocess.CompletedProcess[str]] = []
    recording = threading.Thread(
        target=lambda: answers.append(kvgate("record", str(trace), "--for", "4s", "--admin-url", gateway.admin_url))
    )
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        client.put(BUCKET, f"kv/{SPACE.id}/manifest.json", SPACE.canonical_json())
        recording.start()
        wait_until_it_records(trace)
        assert prompt(client, HASHES[:3]) == 0
        assert prompt(client, HASHES) == 3
        client.put(BUCKET, "a-secret-name", b"opaque")
        client.get(BUCKET, "a-secret-name")
        recording.join(60)
    assert answers[0].returncode == 0, answers[0].stderr
    text = gzip.decompress(trace.read_bytes()).decode()
    for secret in ("a-secret-name", BUCKET, "alpha", SPACE.id, HASHES[0].hex(), ALPHA.access_key):
        assert secret not in text
    events: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    matches = [event for event in events if "match" in event]
    assert [(event["match"], event["found"], event["tokens"]) for event in matches] == [
        ([0, 1, 2], 0, SPACE.chunk_tokens),
        ([0, 1, 2, 3, 4], 3, SPACE.chunk_tokens),
    ]
    assert [event["put"] for event in events if "put" in event] == [0, 1, 2, 3, 4, 5]
    assert [event["get"] for event in events if "get" in event] == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert events[-1]["end"] == "time"
    replayed = kvgate("replay", str(trace), "--sizes", "100%", "--policies", "lru", "--json")
    assert replayed.returncode == 0, replayed.stderr
    figures = json.loads(replayed.stdout)
    assert figures["requests"] == 3
    assert figures["unique_blocks"] == 6
    assert figures["results"][0]["hit_share"] == 3 / 9


def test_there_is_one_recording_and_a_gateway_that_stops_ends_it_at_once(
    kvgate: Kvgate, start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    gateway = start_gateway()
    trace = tmp_path / "trace.jsonl"
    command = [sys.executable, "-m", "kvgate.cli", "record", str(trace), "--for", "1h"]
    with subprocess.Popen([*command, "--admin-url", gateway.admin_url], stdout=subprocess.PIPE) as process:
        wait_until_it_records(trace)
        second = kvgate("record", str(tmp_path / "second.jsonl"), "--admin-url", gateway.admin_url)
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert "there is a recording already" in second.stderr
        began = time.monotonic()
        gateway.stop()
        assert process.wait(60) == 0
        assert time.monotonic() - began < 55, "the recording has not held the gateway up"
    assert json.loads(trace.read_text().splitlines()[-1])["end"] == "stop"


def test_a_gateway_that_is_not_there_and_a_file_that_cannot_be_written_are_said_in_one_line(
    kvgate: Kvgate, start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    away = kvgate("record", str(tmp_path / "t.jsonl"), "--admin-url", f"http://127.0.0.1:{free_port()}")
    assert (away.returncode, away.stderr.count("\n")) == (1, 1)
    assert "no gateway answers" in away.stderr
    gateway = start_gateway()
    unwritable = kvgate("record", str(tmp_path / "no" / "t.jsonl"), "--for", "1s", "--admin-url", gateway.admin_url)
    assert unwritable.returncode == 2
    assert "cannot be written" in unwritable.stderr
