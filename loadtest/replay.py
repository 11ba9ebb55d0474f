"""Replay a trace of LLM requests against a gateway, as engines would: match, load what is there, write what is not.

Each request asks `match` for the blocks of its prompt, loads the leading ones that are there, writes the others, and
releases its lease. A block is a chunk with the right name and no KV worth having; --layers says how large it is. The
hit rates are those of the gateway's answers, and beside them stand those of a cache that forgets nothing.

  python loadtest/replay.py loadtest/traces/mooncake-conversation-head.jsonl
  python loadtest/replay.py trace.jsonl.gz --memory 1GiB --layers 32 --speed 10 --json run.json
  AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... python loadtest/replay.py trace.jsonl --url http://kv:9000 --bucket kv

A trace has the JSON lines of Mooncake's, gzipped or not: timestamp in ms, input_length, output_length, and hash_ids of
blocks of 512 tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chunks
from gateway import ACCESS_KEY, BUCKET, SECRET_KEY, Gateway

from kvgate.cli.replays.trace import BLOCK_TOKENS, BadTrace, Request, prefix_hits, read_trace
from kvgate.client.sync import Client
from kvgate.config import parse_size
from kvgate.errors import GatewayError, GatewayUnavailable

LEASE_S = 60.0
PROGRESS_S = 0.2


@dataclass
class Tally:
    """What has come of the requests so far. Only `Player` writes it, under its lock."""

    requests: int = 0
    requests_hit: int = 0
    requests_whole: int = 0
    input_tokens: int = 0
    hit_tokens: int = 0
    blocks: int = 0
    hit_blocks: int = 0
    written_blocks: int = 0
    read_nbytes: int = 0
    written_nbytes: int = 0
    late_s: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    match_ms: list[float] = field(default_factory=list)
    request_ms: list[float] = field(default_factory=list)

    @property
    def token_rate(self) -> float:
        return self.hit_tokens / max(1, self.input_tokens)


class Player:
    """Plays requests in their order, several at a time."""

    def __init__(
        self, client: Client, bucket: str, space: chunks.Space, requests: Sequence[Request], speed: float
    ) -> None:
        """speed: times as fast as the trace's own clock; 0 waits for nothing."""
        self.tally = Tally()
        self.failure: BaseException | None = None
        self._client, self._bucket, self._space, self._speed = client, bucket, space, speed
        self._body = bytes(space.layout.nbytes)
        self._chunk_nbytes = len(chunks.header(space, 0)) + len(self._body)
        self._pending = iter(requests)
        self._lock = threading.Lock()
        self._began = 0.0

    def play(self, at_a_time: int) -> Iterator[None]:
        """Play all, yielding every now and then for a look at `tally`. Raises what ended it early."""
        self._began = time.monotonic()
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(at_a_time)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(PROGRESS_S)
                yield
        if self.failure is not None:
            raise self.failure

    def _work(self) -> None:
        room = bytearray()
        try:
            while (request := self._next()) is not None:
                if len(room) < (wanted := len(request.blocks) * self._chunk_nbytes):
                    room = bytearray(wanted)
                self._perform(request, memoryview(room))
        except BaseException as error:  # the other threads stop too, and `play` raises it
            self.failure = error

    def _next(self) -> Request | None:
        with self._lock:
            return None if self.failure is not None else next(self._pending, None)

    def _perform(self, request: Request, room: memoryview) -> None:
        due = self._began + request.timestamp_ms / 1e3 / self._speed if self._speed else 0.0
        if (wait_s := due - time.monotonic()) > 0:
            time.sleep(wait_s)
        late_s = max(0.0, time.monotonic() - due) if self._speed else 0.0
        names = [chunks.chunk_hash(block) for block in request.blocks]
        errors: Counter[str] = Counter()
        began = time.perf_counter()
        found, lease = self._match(names, errors)
        matched = time.perf_counter()
        loaded = 0
        if found:
            size = self._chunk_nbytes
            views = [room[at * size : (at + 1) * size] for at in range(found)]
            loaded = self._client.load_chunks(self._bucket, self._space.id, names[:found], views).leading
            if loaded < found:
                errors["not loaded"] += found - loaded
            with counted(errors):
                self._client.release(lease)
        written = sum(self._write(request.blocks[at], names[at], errors) for at in range(found, len(names)))
        done = time.perf_counter()
        with self._lock:
            tally = self.tally
            tally.requests += 1
            tally.requests_hit += found > 0
            tally.requests_whole += found == len(names)
            tally.input_tokens += request.input_tokens
            tally.hit_tokens += request.hit_tokens(found)
            tally.blocks += len(names)
            tally.hit_blocks += found
            tally.written_blocks += written
            tally.read_nbytes += loaded * self._chunk_nbytes
            tally.written_nbytes += written * self._chunk_nbytes
            tally.late_s = max(tally.late_s, late_s)
            tally.errors.update(errors)
            tally.match_ms.append((matched - began) * 1e3)
            tally.request_ms.append((done - began) * 1e3)

    def _match(self, names: list[bytes], errors: Counter[str]) -> tuple[int, str]:
        """How many leading chunks are there, and the lease that keeps them."""
        with counted(errors):
            match = self._client.match(self._bucket, self._space.id, names, lease_s=LEASE_S)
            return match.matched, match.lease
        return 0, ""

    def _write(self, block: int, name: bytes, errors: Counter[str]) -> bool:
        with counted(errors):
            views = [chunks.header(self._space, block), self._body]
            self._client.put(self._bucket, f"kv/{self._space.id}/{name.hex()}", views)
            return True
        return False


@contextlib.contextmanager
def counted(errors: Counter[str]) -> Iterator[None]:
    """Count what the gateway refuses, as an engine would go on without its cache; one that is gone ends the replay."""
    try:
        yield
    except GatewayUnavailable:
        raise
    except GatewayError as error:
        errors[error.code] += 1


def options() -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="replay.py", description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, metavar="TRACE")
    parser.add_argument("--url", help="of a gateway that runs; by default one is started for the replay")
    parser.add_argument("--bucket", default=BUCKET, help="of the gateway of --url (default: %(default)s)")
    parser.add_argument(
        "--memory", type=parse_size, default="1GiB", help="of the gateway that is started (default: 1GiB)"
    )
    parser.add_argument("--disk", type=parse_size, help="of the gateway that is started (default: no disk tier)")
    parser.add_argument(
        "--layers", type=int, default=2, help="of the model: each makes a block 16 KiB larger (default: %(default)s)"
    )
    parser.add_argument(
        "--speed", type=float, default=0.0, help="times the trace's own pace; 0, the default, is as fast as it goes"
    )
    parser.add_argument("--at-a-time", type=int, default=4, help="requests at the same time (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="play the first LIMIT requests only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    chosen = parser.parse_args()
    for name in ("layers", "at_a_time", "limit"):
        if getattr(chosen, name) is not None and getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if chosen.speed < 0:
        parser.error("--speed must not be negative")
    return chosen


def main() -> None:
    chosen = options()
    try:
        requests = read_trace(chosen.trace, chosen.limit)
    except (BadTrace, OSError) as error:
        raise SystemExit(f"replay.py: {error}") from error
    space = chunks.space(BLOCK_TOKENS, chosen.layers)
    with gateway(chosen) as (url, access_key, secret_key):
        # each request in flight loads with as many connections as there are, so twice its number do not wait long
        connections = max(8, 2 * chosen.at_a_time)
        with Client(url, access_key, secret_key, deadline_s=30, max_connections=connections) as client:
            try:
                client.put(chosen.bucket, f"kv/{space.id}/manifest.json", space.canonical_json())
                player = Player(client, chosen.bucket, space, requests, chosen.speed)
                began = time.monotonic()
                bar = Bar(len(requests), began)
                for _ in player.play(chosen.at_a_time):
                    bar.show(player.tally)
                took_s = time.monotonic() - began
                bar.end(player.tally)
            except GatewayError as error:
                raise SystemExit(f"replay.py: {url}: {error}") from error
    figures = summary(requests, player.tally, took_s)
    for name, value in figures.items():
        print(f"{name:<34}{value}")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")


@contextlib.contextmanager
def gateway(chosen: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """URL and key pair of the gateway to use, which is ended afterwards if it was started here."""
    if chosen.url:
        try:
            yield chosen.url, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        except KeyError as error:
            raise SystemExit(f"replay.py: --url needs the key pair in the environment: {error} is not set") from error
        return
    with tempfile.TemporaryDirectory(prefix="kvgate-replay-") as name:
        tiers: dict[str, Any] = {"host": {"capacity": chosen.memory}}
        if chosen.disk:
            tiers["disk"] = {"path": f"{name}/disk", "capacity": chosen.disk}
        started = Gateway(Path(name), tiers)
        try:
            started.start()
            yield started.url, ACCESS_KEY, SECRET_KEY
        except RuntimeError as error:
            raise SystemExit(f"replay.py: the gateway did not start: {error}") from error
        finally:
            started.stop()


class Bar:
    """Progress on standard error: redrawn in a terminal, a line every tenth elsewhere."""

    WIDTH = 30

    def __init__(self, total: int, began: float) -> None:
        self._total, self._began, self._tenth = total, began, 0
        self._terminal = sys.stderr.isatty()

    def show(self, tally: Tally) -> None:
        share = tally.requests / self._total
        if not self._terminal and int(share * 10) <= self._tenth:
            return
        self._tenth = int(share * 10)
        filled = "#" * int(share * self.WIDTH)
        line = (
            f"[{filled:.<{self.WIDTH}}] {tally.requests:,} of {self._total:,} requests, "
            f"{tally.token_rate:.1%} of tokens hit, {time.monotonic() - self._began:.0f} s"
        )
        print(f"\r{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def end(self, tally: Tally) -> None:
        self.show(tally)
        if self._terminal:
            print(file=sys.stderr)


def summary(requests: Sequence[Request], tally: Tally, took_s: float) -> dict[str, Any]:
    """The figures of a replay, in the order in which they are printed."""
    best = list(prefix_hits(requests))
    tokens = max(1, sum(request.input_tokens for request in requests))
    best_tokens = sum(request.hit_tokens(found) for request, found in zip(requests, best, strict=True))
    span_s = (max(request.timestamp_ms for request in requests) - requests[0].timestamp_ms) / 1e3
    return {
        "requests": tally.requests,
        "took s": round(took_s, 3),
        "times the trace's pace": round(span_s / took_s, 2),
        "tokens hit": round(tally.token_rate, 4),
        "tokens hit, nothing forgotten": round(best_tokens / tokens, 4),
        "blocks hit": round(tally.hit_blocks / max(1, tally.blocks), 4),
        "requests with a hit": round(tally.requests_hit / tally.requests, 4),
        "requests, nothing forgotten": round(sum(found > 0 for found in best) / len(best), 4),
        "requests wholly hit": round(tally.requests_whole / tally.requests, 4),
        "blocks written": tally.written_blocks,
        "read GB": round(tally.read_nbytes / 1e9, 3),
        "written GB": round(tally.written_nbytes / 1e9, 3),
        "match p50 ms": round(statistics.median(tally.match_ms), 3),
        "match p99 ms": round(quantile(tally.match_ms, 0.99), 3),
        "request p50 ms": round(statistics.median(tally.request_ms), 3),
        "request p99 ms": round(quantile(tally.request_ms, 0.99), 3),
        "latest start s": round(tally.late_s, 3),
        "errors": dict(tally.errors) or "none",
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
