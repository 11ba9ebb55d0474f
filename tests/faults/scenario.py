"""One fault of a remote tier, as the clients of a gateway live through it.

The gateway has memory, a disk, and the remote tier behind the proxy; another gateway, with no fault between it and the
remote tier, has put chunks there and reads what the first one has written back.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.chunks import SPACE as SMALL_SPACE
from tests.faults.proxy import NONE
from tests.faults.remotes import Remote
from tests.gateways import ALPHA, RunningGateway, default_config
from tests.wire import send

BUCKET = "alpha-bucket"
SPACE = replace(SMALL_SPACE, layers=16, kv_heads=4, head_dim=128)
"""Chunks of half a MiB."""

RULES: dict[str, Any] = {
    "timeout": "600ms",
    "lookup_timeout": "300ms",
    "retry_after": "200ms",
    "hedge_after": "100ms",
}
"""Short, so that the tests are; the order between them is that of the defaults."""

TIMEOUT_S, LOOKUP_S = 0.6, 0.3
REMOTE_CHUNKS = 16
PATIENCE_S = 30.0
WRITE_BACK_S = 10.0
PAUSE_S = 0.05


def chunk_of(seed: str) -> tuple[str, bytes, bytes]:
    """The key, the body and the hash of a chunk that follows from the seed."""
    name = hashlib.sha256(seed.encode()).digest()
    body = ChunkHeader.encode(SPACE, name, bytes(32), 0) + random.Random(seed).randbytes(SPACE.layout.nbytes)
    return str(ChunkKey(SPACE.id, name.hex())), body, name


@dataclass
class Seen:
    """How the requests of one kind ended, and how long the longest took. Threads add to it one at a time."""

    results: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0

    def add(self, result: str, seconds: float) -> None:
        self.results[result] += 1
        self.longest_s = max(self.longest_s, seconds)

    def __str__(self) -> str:
        return ", ".join(f"{result} ({count})" for result, count in self.results.most_common()) or "nothing"


@dataclass
class Outcome:
    """What clients saw while the fault lasted, and how long everything took to be as before.

    local:         GET of chunks that are in memory
    remote:        GET of chunks that only the remote tier has, each for the first time
    puts:          PUT of new chunks
    matches:       match of chunks that only the remote tier has
    away:          whether /readyz called the tier away at any time
    ready:         whether /readyz answered 200 all the time
    recovery_s:    from the end of the fault until a chunk that only the remote tier has was read
    written_s:     from the end of the fault until what was PUT meanwhile was in the remote tier
    not_written:   how many of those were not in the end
    wrong:         keys whose bytes were not what was written
    """

    local: Seen = field(default_factory=Seen)
    remote: Seen = field(default_factory=Seen)
    puts: Seen = field(default_factory=Seen)
    matches: Seen = field(default_factory=Seen)
    away: bool = False
    ready: bool = True
    recovery_s: float = 0.0
    written_s: float = 0.0
    not_written: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Pair:
    """The gateway behind the fault, and the one that is not."""

    remote: Remote
    suffering: RunningGateway
    sound: RunningGateway
    runs: int = 0

    def live_through(self, name: str, seconds: float) -> Outcome:
        """What a fault of so many seconds did."""
        self.runs += 1
        seed = f"{self.remote.kind} {name} {self.runs} {time.time_ns()}"
        outcome, done = Outcome(), threading.Event()
        local = [chunk_of(f"{seed} local {number}") for number in range(3)]
        remote = [chunk_of(f"{seed} remote {number}") for number in range(REMOTE_CHUNKS)]
        matched = [chunk_of(f"{seed} matched {number}") for number in range(4)]
        for key, body, _ in [*remote, *matched]:
            self._put(self.sound, key, body)
        for key, body, _ in local:
            self._put(self.suffering, key, body)
        self._until_used()
        written: list[tuple[str, bytes]] = []

        def read_local() -> None:
            key, body, _ = local[outcome.local.results.total() % len(local)]
            _read(self.suffering, key, body, outcome.local, outcome)

        def read_remote() -> None:
            at = outcome.remote.results.total()
            if at < len(remote):
                key, body, _ = remote[at]
                _read(self.suffering, key, body, outcome.remote, outcome)

        def write() -> None:
            key, body, _ = chunk_of(f"{seed} new {outcome.puts.results.total()}")
            result, seconds, _ = _ask(self.suffering, "PUT", key, body)
            outcome.puts.add(result, seconds)
            if result == "200":
                written.append((key, body))

        def match() -> None:
            began = time.monotonic()
            with Client(self.suffering.url, ALPHA.access_key, ALPHA.secret_key) as client:
                try:
                    found = client.match(BUCKET, SPACE.id, [name for _, _, name in matched], deadline_s=PATIENCE_S)
                except GatewayError as error:
                    outcome.matches.add(error.code or "cut", time.monotonic() - began)
                    return
                outcome.matches.add("hit" if found.ranks else "miss", time.monotonic() - began)
                if found.lease:
                    client.release(found.lease)

        def look() -> None:
            status, document = readyz(self.suffering)
            outcome.ready &= status == 200
            outcome.away |= document["tiers"][self.remote.kind]["state"] == "away"

        self.remote.proxy.fault = self.remote.fault(name)
        try:
            _all_the_time([read_local, read_remote, write, match, look], seconds, done)
        finally:
            self.remote.proxy.fault = NONE
        healed = time.monotonic()
        for number in itertools.count():  # each time another one, which nobody has asked for
            key, body, _ = chunk_of(f"{seed} later {number}")
            self._put(self.sound, key, body)
            seen = Seen()
            _read(self.suffering, key, body, seen, outcome)
            if "200" in seen.results:
                break
            assert time.monotonic() - healed < PATIENCE_S, f"{name}: no recovery\n{self.suffering.log[-3000:]}"
            time.sleep(PAUSE_S)
        outcome.recovery_s = time.monotonic() - healed
        while written and time.monotonic() - healed < WRITE_BACK_S:
            written = [item for item in written if not self._is_in_remote(*item, outcome)]
            outcome.written_s = time.monotonic() - healed
            time.sleep(PAUSE_S)
        outcome.not_written = len(written)
        return outcome

    def _until_used(self) -> None:
        """Wait until the suffering gateway finds what the sound one has written: both are well."""
        began = time.monotonic()
        while readyz(self.suffering)[1]["tiers"][self.remote.kind]["state"] != "ready":
            assert time.monotonic() - began < PATIENCE_S
            time.sleep(PAUSE_S)

    def _put(self, gateway: RunningGateway, key: str, body: bytes) -> None:
        result, _, answer = _ask(gateway, "PUT", key, body)
        assert result == "200", (result, answer[:300])

    def _is_in_remote(self, key: str, body: bytes, outcome: Outcome) -> bool:
        result, _, answer = _ask(self.sound, "GET", key)
        if result == "200" and answer != body:
            outcome.wrong.append(key)
        return result == "200"


def readyz(gateway: RunningGateway) -> tuple[int, dict[str, Any]]:
    """Status and document."""
    try:
        with urllib.request.urlopen(f"{gateway.admin_url}/readyz", timeout=PATIENCE_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def _ask(gateway: RunningGateway, method: str, key: str, body: bytes = b"") -> tuple[str, float, bytes]:
    """How one request ended: its status, or `cut`; how long it took, and what came."""
    began = time.monotonic()
    try:
        headers = {"content-length": str(len(body))} if method == "PUT" else {}
        status, _, answer = send(gateway, method, f"/{BUCKET}/{key}", headers, body)
    except (OSError, http.client.HTTPException):
        return "cut", time.monotonic() - began, b""
    return str(status), time.monotonic() - began, answer


def _read(gateway: RunningGateway, key: str, body: bytes, seen: Seen, outcome: Outcome) -> None:
    result, seconds, answer = _ask(gateway, "GET", key)
    seen.add(result, seconds)
    if result == "200" and answer != body:
        outcome.wrong.append(key)


def _all_the_time(works: list[Callable[[], None]], seconds: float, done: threading.Event) -> None:
    """Do each of `works` in a thread of its own, again and again. Raises the first error of any."""
    errors: list[BaseException] = []

    def go_on(work: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                work()
                done.wait(PAUSE_S)
        except BaseException as error:
            errors.append(error)
            done.set()

    threads = [threading.Thread(target=go_on, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    done.wait(seconds)
    done.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def gateway_pair(remote: Remote, folder: Path) -> Iterator[Pair]:
    """Both gateways, running, with the space's manifest."""
    with ExitStack() as stack:

        def gateway(name: str, port: int, rules: dict[str, Any]) -> RunningGateway:
            (folder / name).mkdir()
            config = default_config(folder / name)
            config["tiers"]["host"]["capacity"] = "128MiB"
            config["tiers"][remote.kind] = remote.options(port) | rules
            config["store"] = {"discovery": {"absent_ttl": "100ms"}}
            running = RunningGateway(folder / name, config)
            stack.callback(running.kill)
            return running.start()

        pair = Pair(
            remote,
            gateway("suffering", remote.proxy.port, RULES),
            gateway("sound", remote.port, {"write": "through", "lookup_timeout": "5s"}),
        )
        for each in (pair.suffering, pair.sound):
            pair._put(each, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        yield pair
