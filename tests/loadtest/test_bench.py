"""`bench.py` measures for real and reports what it measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from driver import Driver
from report import BEGIN, END

from tests.loadtest.conftest import ROOT, Run

TINY = ("--peers", "--rounds", "2", "--seconds", "0.05")


@pytest.fixture(autouse=True)
def _compiler(driver: Driver) -> None:
    """Without one there is nothing to run."""


def test_a_run_reports_speed_cost_and_goals_beside_the_limit(run: Run, tmp_path: Path) -> None:
    results, document = tmp_path / "run.json", tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nan earlier run\n{END}\nafter\n")
    rows = ["GET 256K x1", "PUT 256K x8", "HEAD x8", "HEAD x8 session token", "batch of 64 x 1M", "match x8"]
    done = run(
        "bench.py",
        *TINY,
        *[word for row in rows for word in ("--only", row)],
        "--json",
        results,
        "--markdown",
        document,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(results.read_text())
    figures = {(figure["row"], figure["contender"]): figure for figure in written["figures"]}
    assert set(figures) == {(row, name) for row in rows[:5] for name in ("raw", "kvgate")} | {("match x8", "kvgate")}
    for (row, name), figure in figures.items():
        assert figure["value"] > 0
        assert len(figure["rounds"]) == 2
        assert figure["rss_mib"] > 1
        if row != "match x8":
            assert (figure["of_limit"] == 1) == (name == "raw")
    assert figures["GET 256K x1", "kvgate"]["server_us_per_operation"] > 0
    assert "HEAD x8" in done.stdout
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "an earlier run" not in text
    assert "| PUT 256K x8 | raw |" in text


def test_a_plot_is_drawn_of_the_rows_in_bytes(run: Run, tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed (pip install matplotlib)")
    done = run("bench.py", *TINY, "--only", "GET 256K x1", "--plot", tmp_path / "run.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_objects_on_disk_alone_are_compared_with_reading_their_files(run: Run, tmp_path: Path) -> None:
    done = run("bench.py", "--quick", "--peers", "--rounds", "1", "--only", "cold*", "--json", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    preadv, kvgate = json.loads((tmp_path / "run.json").read_text())["figures"]
    assert preadv["contender"] == "preadv"
    assert kvgate["of_limit"] == pytest.approx(kvgate["value"] / preadv["value"])
    assert [goal["text"] for goal in kvgate["goals"]] == ["of preadv >= 0.9"]


def test_shared_memory_is_compared_with_memcpy(run: Run, tmp_path: Path) -> None:
    if not (ROOT / "loadtest" / "shm.py").exists():
        pytest.skip("this kvgate has no loadtest/shm.py")
    done = run("bench.py", "--peers", "--rounds", "1", "--only", "shm*", "--json", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "run.json").read_text())["figures"]
    goals = {figure["row"]: figure["goals"] for figure in figures if figure["contender"] == "kvgate shm"}
    assert [goal["text"] for goal in goals["shm hand-off"]] == ["p50 <= 30 us"]
    assert [goal["text"] for goal in goals["shm load 64M"]] == ["of memcpy >= 0.8"]


def test_a_row_that_there_is_not_is_refused_with_those_that_there_are(run: Run) -> None:
    done = run("bench.py", "--only", "GET 5M x1")
    assert done.returncode == 2
    assert "no row is called 'GET 5M x1'" in done.stderr
    assert "GET 4M x1" in done.stderr


def test_help_says_how_to_read_the_table(run: Run) -> None:
    done = run("bench.py", "--help")
    assert done.returncode == 0
    assert "python loadtest/bench.py --quick" in done.stdout
    assert "cold disk GET 32M x1" in done.stdout
