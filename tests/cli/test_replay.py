"""`replay` counts what the gateway's own policies would hit and write."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvgate import plugins
from tests.loadtest.conftest import EXCERPT, ROOT

if TYPE_CHECKING:
    from .conftest import Kvgate

TRACES = ROOT / "loadtest" / "traces"


def replay(kvgate: Kvgate, *arguments: object) -> dict[str, Any]:
    answer = kvgate("replay", *map(str, arguments), "--json")
    assert answer.returncode == 0, answer.stderr
    figures: dict[str, Any] = json.loads(answer.stdout)
    return figures


def test_a_cache_of_all_blocks_hits_what_can_be_hit_whatever_the_policy(kvgate: Kvgate) -> None:
    figures = replay(kvgate, EXCERPT, "--policies", "all", "--sizes", "100%")
    assert [result["policy"] for result in figures["results"]] == plugins.names("kvgate.eviction")
    for result in figures["results"]:
        for share, best in figures["nothing_forgotten"].items():
            assert result[share] == pytest.approx(best)
        assert result["capacity_blocks"] == figures["unique_blocks"]


def test_the_published_figures_come_from_the_whole_traces(kvgate: Kvgate) -> None:
    """Those of LRU, which are quick to have; docs/eviction.md has the others."""
    figures = replay(kvgate, TRACES / "mooncake-conversation.jsonl.gz", "--policies", "lru", "--sizes", "1%,2.5%,10%")
    found = [(f"{r['hit_share']:.1%}", f"{r['writes_per_reference']:.2f}") for r in figures["results"]]
    assert found == [("5.2%", "0.95"), ("9.9%", "0.90"), ("27.9%", "0.72")]


def test_the_second_touch_writes_a_fraction_and_the_duel_follows_the_better(kvgate: Kvgate) -> None:
    figures = replay(
        kvgate, TRACES / "mooncake-synthetic.jsonl.gz", "--policies", "lru,second-touch,duel", "--sizes", "10%"
    )
    lru, second, duel = figures["results"]
    assert lru["hit_share"] == pytest.approx(0.262, abs=0.001)
    assert second["hit_share"] > 0.279
    assert second["writes_per_reference"] < 0.36
    assert duel["hit_share"] > 0.279


def test_memory_takes_everything(kvgate: Kvgate) -> None:
    figures = replay(kvgate, EXCERPT, "--policies", "lru,second-touch", "--sizes", "5%", "--memory")
    lru, second = figures["results"]
    assert {**second, "policy": "lru"} == lru


def test_sizes_in_bytes_need_the_size_of_a_block(kvgate: Kvgate) -> None:
    figures = replay(kvgate, EXCERPT, "--policies", "lru", "--sizes", "1GiB", "--block-size", "8MiB", "--limit", 100)
    [result] = figures["results"]
    assert result["capacity_blocks"] == 128
    assert result["written_nbytes"] == pytest.approx(result["writes_per_reference"] * (8 << 20) * 2780, rel=0.5)
    answer = kvgate("replay", str(EXCERPT), "--sizes", "1GiB")
    assert answer.returncode == 2
    assert "--block-size" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sizes", "0%"], "--sizes"),
        (["--sizes", "many"], "--sizes"),
        (["--policies", "lur"], "lru"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_what_cannot_be_played_is_said_in_one_line(kvgate: Kvgate, arguments: list[str], complaint: str) -> None:
    answer = kvgate("replay", str(EXCERPT), *arguments)
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert complaint in answer.stderr


def test_a_trace_that_is_none_is_said_in_one_line(kvgate: Kvgate, tmp_path: Path) -> None:
    for name, content in (("t.jsonl", b"{}\n"), ("t.gz", b"no gzip"), ("t.jsonl.gz", gzip.compress(b"[]"))):
        (tmp_path / name).write_bytes(content)
        answer = kvgate("replay", str(tmp_path / name))
        assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert kvgate("replay", str(tmp_path / "none")).returncode == 1


def test_the_table_has_a_line_for_each_policy_and_size(kvgate: Kvgate) -> None:
    answer = kvgate("replay", str(EXCERPT), "--policies", "lru,fifo", "--sizes", "1%,10%", "--block-size", "1MiB")
    lines = answer.stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:6]] == [["lru", "1%"], ["lru", "10%"], ["fifo", "1%"], ["fifo", "10%"]]
    assert lines[-1].startswith("nothing forgotten")
    assert answer.stderr == ""


def test_the_hits_are_drawn_over_the_sizes(kvgate: Kvgate, tmp_path: Path) -> None:
    picture = tmp_path / "hits.png"
    replay(kvgate, EXCERPT, "--policies", "lru", "--sizes", "10%,1%", "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    answer = kvgate("replay", str(EXCERPT), "--policies", "lru", "--limit", "5", "--plot", str(tmp_path / "a.nothing"))
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kvgate.cli.replays.plot import write_plot
    from kvgate.errors import ConfigError

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'kvgate\[plot\]'"):
        write_plot(tmp_path / "p.png", "t", [0.1], {"lru": [0.1]}, 0.2)
