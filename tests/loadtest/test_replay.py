"""A replay's hit rates are those that the trace allows, and a small memory's are less."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gateways import ALPHA, RunningGateway
from tests.loadtest.conftest import EXCERPT, Run

LIMIT = 60


def replay(run: Run, tmp_path: Path, *arguments: object, **environment: str) -> dict[str, object]:
    results = tmp_path / "replay.json"
    done = run("replay.py", EXCERPT, "--limit", LIMIT, "--json", results, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert f"{LIMIT} of {LIMIT} requests" in done.stderr
    figures = json.loads(results.read_text())
    assert isinstance(figures, dict)
    assert figures["requests"] == LIMIT
    return figures


def test_with_room_for_all_one_request_at_a_time_hits_all_that_can_be_hit(run: Run, tmp_path: Path) -> None:
    figures = replay(run, tmp_path, "--at-a-time", 1, "--memory", "256MiB", "--layers", 1)
    assert figures["errors"] == "none"
    assert figures["tokens hit"] == figures["tokens hit, nothing forgotten"] > 0
    assert figures["requests with a hit"] == figures["requests, nothing forgotten"]
    assert figures["read GB"] > 0


def test_a_memory_that_is_too_small_hits_less(run: Run, tmp_path: Path) -> None:
    figures = replay(run, tmp_path, "--at-a-time", 1, "--memory", "1MiB", "--layers", 1)
    assert figures["tokens hit"] < figures["tokens hit, nothing forgotten"]


def test_a_gateway_that_runs_already_keeps_the_blocks_for_the_next_replay(
    run: Run, tmp_path: Path, start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    keys = {"AWS_ACCESS_KEY_ID": ALPHA.access_key, "AWS_SECRET_ACCESS_KEY": ALPHA.secret_key}
    arguments = ("--url", gateway.url, "--bucket", "alpha-bucket", "--layers", 1)
    first = replay(run, tmp_path, *arguments, **keys)
    again = replay(run, tmp_path, *arguments, **keys)
    assert first["tokens hit"] < 1
    assert again["tokens hit"] == again["requests wholly hit"] == 1
    assert again["blocks written"] == 0


def test_at_the_traces_pace_times_a_factor_it_takes_that_long(run: Run, tmp_path: Path) -> None:
    requests = [json.loads(line) for line in EXCERPT.read_text().splitlines()[:LIMIT]]
    span_s = requests[-1]["timestamp"] / 1e3
    figures = replay(run, tmp_path, "--speed", span_s / 3, "--layers", 1)
    assert 3 <= float(str(figures["took s"])) < 30


def test_a_gateway_that_is_not_there_ends_it_with_one_line(run: Run) -> None:
    done = run(
        "replay.py", EXCERPT, "--url", "http://127.0.0.1:9", AWS_ACCESS_KEY_ID="AKEY", AWS_SECRET_ACCESS_KEY="s" * 16
    )
    assert done.returncode == 1
    assert done.stderr.startswith("replay.py: http://127.0.0.1:9: no connection")


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_missing_key_pair_is_named(run: Run, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(missing, raising=False)
    other = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} - {missing}
    done = run("replay.py", EXCERPT, "--url", "http://127.0.0.1:9", **dict.fromkeys(other, "x" * 16))
    assert done.returncode == 1
    assert missing in done.stderr
