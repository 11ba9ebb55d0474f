"""What was measured: samples of one run each, and the figure that a row has for each contender."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """One run of one contender.

    operations, nbytes: timed, in `wall_s`
    all_operations:     those, and the ones that warmed up, over which `server_cpu_s` was taken
    """

    operations: float
    nbytes: int
    wall_s: float
    p50_us: float = 0.0
    p99_us: float = 0.0
    all_operations: float = 0.0
    server_cpu_s: float = 0.0
    client_cpu_s: float = 0.0

    def rate(self, unit: str) -> float:
        """Of the unit, a second; or the median in microseconds, where less is more."""
        if unit == "GB/s":
            return self.nbytes / 1e9 / self.wall_s
        return self.p50_us if unit == "us" else self.operations / self.wall_s


@dataclass(frozen=True)
class Goal:
    """What a row should reach, in words, and whether it did; None where what it is compared with was absent."""

    text: str
    met: bool | None


@dataclass
class Figure:
    """What one contender reached in one row: medians over the rounds, and CPU over all of them.

    of_limit: median over the rounds of this contender's share of the limit in the same round; for microseconds, the
              multiple of it. None for a row without a limit
    """

    row: str
    contender: str
    unit: str
    value: float
    of_limit: float | None
    limit: str
    p50_us: float
    p99_us: float
    server_cpu_s_per_gb: float | None
    server_us_per_operation: float | None
    client_cpu_s_per_gb: float | None
    client_us_per_operation: float | None
    rss_mib: float | None
    rounds: list[float]
    goals: list[Goal] = field(default_factory=list)

    @property
    def is_limit(self) -> bool:
        return self.contender == self.limit

    def want(self, text: str, met: bool | None) -> None:
        """Add a goal."""
        self.goals.append(Goal(text, met))

    def want_of_limit(self, share: float) -> None:
        """Add a goal: this share of the limit."""
        self.want(f"of {self.limit} >= {share:g}", None if self.of_limit is None else self.of_limit >= share)

    def want_cpu(self, s_per_gb: float) -> None:
        """Add a goal: at most these CPU seconds a GB, of the server."""
        cost = self.server_cpu_s_per_gb
        self.want(f"server CPU <= {s_per_gb:.2f} s/GB", None if cost is None else cost <= s_per_gb)


def figure(
    row: str, contender: str, unit: str, samples: Sequence[Sample], limits: Sequence[Sample], limit: str, rss: int
) -> Figure:
    """Of one contender's samples, and the limit's in the same rounds, which may be none."""
    rates = [sample.rate(unit) for sample in samples]
    shares = [rate / other.rate(unit) for rate, other in zip(rates, limits, strict=True)] if limits else []
    operations = sum(sample.operations for sample in samples)
    gigabytes = sum(sample.nbytes for sample in samples) / 1e9
    server_cpu_s = sum(sample.server_cpu_s for sample in samples)
    # the server's CPU was taken with the warming up, the client's without
    share_timed = operations / max(1, sum(sample.all_operations for sample in samples))
    server_s, client_s = server_cpu_s * share_timed, sum(sample.client_cpu_s for sample in samples)
    return Figure(
        row=row,
        contender=contender,
        unit=unit,
        value=statistics.median(rates),
        of_limit=statistics.median(shares) if shares else None,
        limit=limit,
        p50_us=statistics.median(sample.p50_us for sample in samples),
        p99_us=statistics.median(sample.p99_us for sample in samples),
        server_cpu_s_per_gb=server_s / gigabytes if gigabytes and server_s else None,
        server_us_per_operation=server_s / operations * 1e6 if server_s else None,
        client_cpu_s_per_gb=client_s / gigabytes if gigabytes and client_s else None,
        client_us_per_operation=client_s / operations * 1e6 if client_s else None,
        rss_mib=rss / 2**20 if rss else None,
        rounds=rates,
    )
