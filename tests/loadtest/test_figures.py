"""Shares are of the same round, and costs of all rounds."""

from __future__ import annotations

import pytest
from figures import Sample, figure
from rows.transfer import set_goals

MB = 10**6


def sample(wall_s: float, server_cpu_s: float = 0.1, p50_us: float = 10) -> Sample:
    return Sample(
        operations=100,
        nbytes=1000 * MB,
        wall_s=wall_s,
        p50_us=p50_us,
        p99_us=2 * p50_us,
        all_operations=125,
        server_cpu_s=server_cpu_s,
        client_cpu_s=0.3,
    )


def test_the_share_of_the_limit_is_the_median_of_each_rounds_own() -> None:
    mine = [sample(2), sample(4), sample(8)]
    limit = [sample(1), sample(1), sample(4)]  # 0.5, 0.25, 0.5: the machine was slow in the last round
    made = figure("row", "kvgate", "GB/s", mine, limit, "raw", 3 << 20)
    assert made.of_limit == pytest.approx(0.5)
    assert made.value == pytest.approx(0.25)
    assert made.rss_mib == 3


def test_server_cpu_is_shared_out_over_what_warmed_up_too() -> None:
    made = figure("row", "kvgate", "GB/s", [sample(1, 0.2), sample(1, 0.3)], [], "", 0)
    assert made.server_us_per_operation == pytest.approx(0.5 / 250 * 1e6)
    assert made.server_cpu_s_per_gb == pytest.approx(0.5 / 250 * 200 / 2)
    assert made.client_us_per_operation == pytest.approx(0.6 / 200 * 1e6)
    assert made.of_limit is None


def test_latency_is_compared_as_it_is() -> None:
    made = figure("row", "kvgate", "us", [sample(1, p50_us=30)], [sample(1, p50_us=10)], "raw", 0)
    assert (made.value, made.of_limit) == (30, pytest.approx(3))


def test_goals_say_yes_no_or_that_nothing_was_there_to_compare_with() -> None:
    figures = {
        name: figure("GET 4M x8", name, "GB/s", [sample(wall_s, cpu_s)], [sample(1)], "raw", 0)
        for name, wall_s, cpu_s in (("raw", 1, 0.1), ("kvgate", 1.05, 0.4), ("redis", 2, 0.1), ("nginx", 1.02, 0.1))
    }
    set_goals("GET", 4 << 20, 8, figures)
    assert {goal.text: goal.met for goal in figures["kvgate"].goals} == {
        "of raw >= 0.9": True,
        "server CPU <= 0.22 s/GB": False,
        "ahead of redis, nginx": False,
    }
    alone = {"kvgate": figure("GET 256K x1", "kvgate", "GB/s", [sample(1)], [], "raw", 0)}
    set_goals("GET", 256 << 10, 1, alone)
    assert [goal.met for goal in alone["kvgate"].goals] == [None]
