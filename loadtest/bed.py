"""What the rows are measured on: the driver, the servers that came up, and how they are measured in turn."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from driver import Driver, Exchange, Stalled
from figures import Figure, Sample, figure
from peers.base import Absent, Peer
from peers.kvgate import Kvgate
from peers.memcached import Memcached
from peers.nginx import Nginx
from peers.raw import Raw
from peers.redis import Redis
from peers.seaweedfs import SeaweedFS
from peers.valkey import Valkey
from processes import cpu_s, rss_nbytes

PEERS: Mapping[str, type[Peer]] = {
    peer.name: peer for peer in (Raw, Kvgate, Redis, Valkey, Memcached, Nginx, SeaweedFS)
}
"""By name, in the order in which they take their turns. The first is the limit, the second what this is about."""

_BEGAN_S = time.monotonic()

Contender = Callable[[], Sample]


@dataclass
class Bed:
    """One run of the suite.

    seconds, rounds: of every measurement of a server
    peers:           those that came up, `raw` and `kvgate` always among them
    skipped:         what could not be measured, and why
    failed:          whether something among that should have been
    """

    folder: Path
    driver: Driver
    seconds: float
    rounds: int
    quick: bool = False
    peers: dict[str, Peer] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: bool = False
    figures: list[Figure] = field(default_factory=list)

    @property
    def kvgate(self) -> Kvgate:
        peer = self.peers["kvgate"]
        assert isinstance(peer, Kvgate)
        return peer

    def start(self, wanted: list[str]) -> None:
        """Start the servers; one that is not here, or does not come up, is skipped, but for the two that must be."""
        for name, kind in PEERS.items():
            if name not in wanted and name not in ("raw", "kvgate"):
                continue
            peer = kind(self.folder / name)
            self.peers[name] = peer
            try:
                peer.start()
            except (Absent, RuntimeError) as error:
                if name in ("raw", "kvgate"):
                    raise SystemExit(f"{name} did not start: {error}") from error
                self.drop(name, str(error))
            else:
                say(f"started {name}")

    def stop(self) -> None:
        for peer in self.peers.values():
            peer.stop()

    def drop(self, name: str, reason: str) -> None:
        """Go on without a server."""
        self.skip(name, reason)
        self.peers.pop(name).stop()

    def fail(self, what: str, reason: str) -> None:
        """Go on without a row, and remember that the run has failed."""
        self.failed = True
        self.skip(what, reason)

    def skip(self, what: str, reason: str) -> None:
        self.skipped[what] = reason
        say(f"skipped {what}: {reason}")

    def transfer(self, name: str, exchange: Callable[[], Exchange], connections: int, threads: int = 0) -> Contender:
        """A contender: exchanges with a server for the seconds of a measurement, made anew for each.

        threads: of the client, as in `Driver.run`
        """

        def run() -> Sample:
            peer, wanted = self.peers[name], exchange()
            before = cpu_s(peer.pid)
            outcome = self.driver.run(peer.port, wanted, connections, self.seconds, threads)
            return Sample(
                operations=outcome.exchanges,
                nbytes=outcome.exchanges * wanted.nbytes,
                wall_s=outcome.wall_s,
                p50_us=outcome.p50_us,
                p99_us=outcome.p99_us,
                all_operations=outcome.exchanges + outcome.untimed,
                server_cpu_s=cpu_s(peer.pid) - before,
                client_cpu_s=outcome.cpu_s,
            )

        return run

    def measure(
        self, row: str, unit: str, contenders: Mapping[str, Contender], limit: str = "", rounds: int = 0
    ) -> dict[str, Figure]:
        """Measure the contenders in turn, in each round each; their figures, by name.

        limit: the contender that the others are compared with, round by round; none by default
        A contender that fails is left out of the row, and a server that kvgate is compared with of all rows to come.
        """
        samples: dict[str, list[Sample]] = {name: [] for name in contenders}
        for number in range(rounds or self.rounds):
            say(f"{row}: round {number + 1} of {rounds or self.rounds}", passing=True)
            for name in list(samples):
                try:
                    samples[name].append(self._sample(row, name, contenders[name]))
                except RuntimeError as error:
                    del samples[name]
                    if name in self.peers and name not in ("raw", "kvgate"):
                        self.drop(name, f"{row}: {error}")
                    else:
                        self.fail(f"{row}: {name}", str(error))
        made = {
            name: figure(
                row,
                name,
                unit,
                taken,
                samples.get(limit, []),
                limit,
                rss_nbytes(self.peers[name].pid) if name in self.peers else 0,
            )
            for name, taken in samples.items()
        }
        self.figures.extend(made.values())
        if made:
            say(f"{row}: {', '.join(f'{name} {made[name].value:.3g}' for name in list(made)[:2])} {unit}")
        return made

    def _sample(self, row: str, name: str, contender: Contender) -> Sample:
        """One run. One that stalls is repeated, once, and the report says so. Raises RuntimeError."""
        try:
            return contender()
        except Stalled as error:
            self.skip(f"{row}: one run of {name}", f"{error}; it was repeated")
            return contender()


def say(text: str, *, passing: bool = False) -> None:
    """A line of progress on standard error; a passing one is overwritten by the next, and only a terminal gets it."""
    terminal = sys.stderr.isatty()
    if passing and not terminal:
        return
    clear, end = ("\r\033[K", "" if passing else "\n") if terminal else ("", "\n")
    print(f"{clear}[{time.monotonic() - _BEGAN_S:4.0f} s] {text}", end=end, file=sys.stderr, flush=True)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for what the run needs, which goes with it."""
    return tempfile.TemporaryDirectory(prefix="kvgate-bench-", ignore_cleanup_errors=True)
